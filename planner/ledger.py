"""Predictions that were followed by a measurement: the pairs, the planner's error over them, and the nearest ones.

A pair is immutable: the prediction is the one that stood before the measurement. Pairs of one's own come from stored
results; published runs (:mod:`planner.measured`) are predicted today, and say so.

The error of a pair is the prediction's, as a share of what was measured. A group of pairs is told by its median and
its worst, never by a mean that hides both.
"""

from __future__ import annotations

import datetime
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.hardware import hardware
from planner.measured import TrainingRow, training_rows
from planner.measured.predicted import Reading, memory_of, time_of
from planner.sizing import size
from planner.spec import ArchitectureSpec

Origin = Literal["own", "published"]
NEAREST = 10
"""Pairs by which the error of an estimate is told."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One quantity of one run, predicted and measured."""

    quantity: str
    """As people read it: ``Peak training memory``."""
    unit: str
    predicted: float
    measured: float
    device: str
    """The device's name: the catalogue's, else as whoever measured wrote it."""
    kinds: frozenset[str]
    """Kinds of components of the model."""
    parameters: int
    origin: Origin
    label: str
    """What was run, in a few words."""
    source: str
    """Repository and path of a published run; a job's id of one's own."""
    when: datetime.date | None
    profile: str = ""
    """The efficiencies, or the profile of a machine, that the prediction was made with."""

    @property
    def error(self) -> float:
        """The prediction's error as a share of what was measured: above 0 where it is too high."""
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else math.inf
        return (self.predicted - self.measured) / self.measured


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """How far the predictions of some pairs are off."""

    name: str
    count: int
    median: float
    """Of the errors' sizes."""
    ninth_decile: float
    """Nine of ten errors are no greater."""
    worst: float
    bias: float
    """Median of the errors with their signs: above 0 where predictions are mostly too high."""

    @classmethod
    def of(cls, name: str, pairs: Sequence[Pair]) -> ErrorSummary:
        """The summary of at least one pair."""
        errors = [pair.error for pair in pairs]
        sizes = sorted(abs(error) for error in errors)
        return cls(
            name,
            len(sizes),
            statistics.median(sizes),
            sizes[math.ceil(0.9 * len(sizes)) - 1],
            sizes[-1],
            statistics.median(errors),
        )


def summarise(pairs: Iterable[Pair], by: Callable[[Pair], Iterable[str]]) -> tuple[ErrorSummary, ...]:
    """Errors by group, the worst median first; a pair may stand in several groups (each component of its model)."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        for name in by(pair):
            groups.setdefault(name, []).append(pair)
    found = [ErrorSummary.of(name, group) for name, group in groups.items()]
    return tuple(sorted(found, key=lambda each: (-each.median, each.name)))


BY: dict[str, Callable[[Pair], Iterable[str]]] = {
    "quantity": lambda pair: (pair.quantity,),
    "device": lambda pair: (pair.device,),
    "component": lambda pair: sorted(pair.kinds),
    "source": lambda pair: ("/".join(pair.source.split("/")[:2]) if pair.origin == "published" else "this store",),
    "month": lambda pair: () if pair.when is None else (f"{pair.when:%Y-%m}",),
}
"""Ways of grouping pairs."""


def kinds_of_spec(spec: ArchitectureSpec) -> frozenset[str]:
    """The kinds of mixers of a model."""
    mixers = (
        mixer
        for group in spec.layer_groups
        for layer in group.layers
        for mixer in (layer.sequence_mixer, layer.channel_mixer)
    )
    return frozenset(mixer.kind for mixer in mixers if mixer is not None)


def nearest(
    pairs: Iterable[Pair], spec: ArchitectureSpec, quantity: str, device: str | None = None, count: int = NEAREST
) -> tuple[Pair, ...]:
    """The pairs of a quantity that are most like a design: its device, then its components, then its size.

    A pair on another device is one step away, a component that only one of both has a step times its share of all that
    either has, and ten times the parameters half a step.
    """
    kinds, parameters = kinds_of_spec(spec), size(spec).parameters.total

    def distance(pair: Pair) -> float:
        elsewhere = 0.0 if device is None or pair.device.lower() == device.lower() else 1.0
        unlike = len(pair.kinds ^ kinds) / max(len(pair.kinds | kinds), 1)
        return elsewhere + unlike + abs(math.log10(max(pair.parameters, 1) / max(parameters, 1))) / 2

    own = [pair for pair in pairs if pair.quantity == quantity]
    return tuple(sorted(own, key=distance)[:count])


MEMORY, STEP_TIME = "Peak training memory", "Time of a training step"


@functools.cache
def published_pairs() -> tuple[Pair, ...]:
    """Every published training run that the planner predicts; what it refuses is counted by :func:`unpredicted`."""
    return tuple(pair for row in training_rows() for pair in _of_training(row) if isinstance(pair, Pair))


@functools.cache
def unpredicted() -> dict[str, int]:
    """Readings of published runs that have no prediction, by reason."""
    reasons: dict[str, int] = {}
    for row in training_rows():
        for reason in _of_training(row):
            if isinstance(reason, str):
                reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


@functools.cache
def _of_training(row: TrainingRow) -> tuple[Pair | str, ...]:
    found: list[Pair | str] = []
    for reading, quantity, unit in ((memory_of(row), MEMORY, "bytes"), (time_of(row), STEP_TIME, "seconds")):
        if reading is None:
            continue
        if reading.predicted is None:
            found.append(reading.reason)
        else:
            found.append(_pair(row, quantity, unit, reading))
    return tuple(found)


def _pair(row: TrainingRow, quantity: str, unit: str, reading: Reading) -> Pair:
    return Pair(
        quantity=quantity,
        unit=unit,
        predicted=reading.predicted or 0.0,
        measured=reading.measured,
        device=row.gpu if row.plan.hardware is None else hardware(row.plan.hardware).name,
        kinds=kinds_of_spec(row.spec),
        parameters=size(row.spec).parameters.total,
        origin="published",
        label=row.model,
        source=row.source,
        when=None,
        profile=reading.profile,
    )
