"""Measures a machine for :mod:`planner.calibration`: matrices by size, what components take beside them, and the rest.

How calls are timed is in ``clocks``, single operators are in ``operators``, and models of a few layers in ``layers``.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence

import torch

from planner.calibration import OPTIONS, PHASES, Calibration, Phase, PhaseRates, Precision, PrecisionRates
from planner.spec import ArchitectureSpec
from runners.environment import default_device, processor_name
from runners.training.calibration import operators
from runners.training.calibration.clocks import Stopwatch, is_queued
from runners.training.calibration.layers import (
    Example,
    example_of,
    examples,
    expert_seconds,
    kind_rates,
    option_rates,
    outer_rates,
    pass_seconds,
)

ROUNDS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What is measured next, of how much."""

    done: int
    total: int
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """A model that is measured beside the calibration, and is no part of it."""

    label: str
    spec: ArchitectureSpec
    batch_size: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """A calibration, and the seconds of each model that was measured beside it, by precision and phase."""

    calibration: Calibration
    passes: dict[tuple[str, Precision, Phase], float]


def measure(
    precisions: Sequence[Precision], models: Sequence[Held] = (), kinds: Sequence[str] | None = None
) -> Iterator[Step | Measured]:
    """Steps before they are done, and what follows from the medians of all rounds at the end; ``kinds`` absent: of
    every component there is."""
    watch = Stopwatch(default_device())
    known = {kind: example for kind, example in examples() if kinds is None or kind in kinds}
    options = [name for name in OPTIONS if example_of(name) in known]
    each_round = 1 + len(precisions) * (1 + len(PHASES) * (len(known) + len(options) + 1 + len(models)))
    done = 0
    for number in range(1, ROUNDS + 1):
        watch.start()
        for message in _measured(watch, precisions, models, known, options):
            if isinstance(message, str):
                yield Step(done, ROUNDS * each_round, f"round {number} of {ROUNDS}, {message}")
                done += 1
    watch.stop()
    for last in _measured(watch, precisions, models, known, options):
        if isinstance(last, Measured):
            yield last


def _measured(
    watch: Stopwatch,
    precisions: Sequence[Precision],
    models: Sequence[Held],
    known: Mapping[str, Example],
    options: Sequence[str],
) -> Iterator[str | Measured]:
    """What is measured next, and what follows from it."""
    found: dict[Precision, PrecisionRates] = {}
    passes: dict[tuple[str, Precision, Phase], float] = {}
    for precision in precisions:
        yield f"{precision}: matrices and scores"
        partial = operators.matrix_tables(watch, precision)
        if "moe" in known:
            each = expert_seconds(watch, precision, known["moe"], partial)
            partial = partial.model_copy(update={"expert_seconds": each})
        phases: dict[Phase, PhaseRates] = {}
        for phase in PHASES:
            yield f"{precision}, {phase}: outside the layers"
            outer = outer_rates(watch, precision, phase, partial)
            rates, added = {}, {}
            for kind, example in known.items():
                yield f"{precision}, {phase}: {kind}"
                rates[kind] = kind_rates(watch, precision, phase, example, partial)
            for name in options:
                yield f"{precision}, {phase}: {name}"
                added[name] = option_rates(watch, precision, phase, name, known, partial)
            phases[phase] = PhaseRates(kinds=rates, options=added, outer=outer)
            for held in models:
                yield f"{precision}, {phase}: {held.label} beside them"
                seconds = pass_seconds(watch, precision, phase, held.spec, held.batch_size, held.length)
                passes[held.label, precision, phase] = seconds
        found[precision] = partial.model_copy(update={"phases": phases})
    yield "copies, attention and the optimizer"
    calibration = Calibration(
        device_name=torch.cuda.get_device_name() if watch.device == "cuda" else processor_name(),
        threads=torch.get_num_threads(),
        versions={"torch": torch.__version__},
        measured_at=datetime.datetime.now(datetime.UTC),
        is_queued=is_queued(watch.device),
        launch_seconds=operators.launch(watch),
        copy_bytes_per_second=operators.copies(watch),
        attention_flops_per_second=operators.attention(watch),
        optimizer_seconds_per_parameter=operators.optimizer(watch),
        optimizer_launch_seconds=operators.optimizer_launch(watch),
        precisions=found,
    )
    yield Measured(calibration, passes)
