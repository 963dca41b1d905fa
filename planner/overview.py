"""The numbers that are first asked for, each with its status, and the few by which models of a list are sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from planner.cache import cache_bytes
from planner.compute import flops
from planner.errors import PlannerError, Problem
from planner.plans import ServingPlan, TrainingPlan
from planner.scaling import chinchilla_tokens
from planner.serving import estimate_inference
from planner.sizing import size
from planner.spec import ArchitectureSpec
from planner.training import estimate_training
from planner.uncertainty import Uncertainty, of_chinchilla, of_serving, of_training

Unit = Literal["count", "flops", "bytes"]


@dataclass(frozen=True, slots=True)
class OverviewNumber:
    """One number; ``value`` is ``None`` where it is not modelled, and ``problem`` says what stands in the way."""

    quantity: str
    unit: Unit
    value: float | None
    status: str
    problem: Problem | None = None
    uncertainty: Uncertainty | None = None
    """Of a value that is not exact: between which values the truth lies, and how that is known."""


def overview(spec: ArchitectureSpec, serving: ServingPlan, training: TrainingPlan) -> dict[str, OverviewNumber]:
    """Parameters, FLOPs a token, cache, memory and tokens to train on, by quantity.

    FLOPs are those of one token of a sequence of ``training.sequence_length``; the cache and the memory of inference
    are those of ``serving``, the memory of training that of ``training`` on one device.
    """
    parameters = size(spec).parameters
    length = training.sequence_length
    numbers = [
        OverviewNumber("parameters", "count", parameters.total, "exact"),
        OverviewNumber("active_parameters", "count", parameters.active, "exact"),
        OverviewNumber("flops_forward", "flops", flops(spec, length).total / length, "exact"),
        OverviewNumber("flops_training", "flops", flops(spec, length, training=True).total / length, "exact"),
        _modelled(
            "cache",
            lambda: (cache_bytes(spec, serving.context_length, serving.batch_size, serving.cache_dtype), None),
            status="exact",
        ),
        _modelled("inference_memory", lambda: _serving(spec, serving)),
        _modelled("training_memory", lambda: _training(spec, training)),
        OverviewNumber(
            "chinchilla_tokens", "count", chinchilla_tokens(spec), "approximated", uncertainty=of_chinchilla(spec)
        ),
    ]
    return {number.quantity: number for number in numbers}


def _serving(spec: ArchitectureSpec, plan: ServingPlan) -> tuple[int, Uncertainty]:
    memory = estimate_inference(spec, plan).memory
    return memory.total_bytes, of_serving(spec, plan, memory)


def _training(spec: ArchitectureSpec, plan: TrainingPlan) -> tuple[int, Uncertainty]:
    memory = estimate_training(spec, plan).memory
    return memory.total_bytes, of_training(spec, plan, memory)


def _modelled(
    quantity: str, estimate: Callable[[], tuple[int, Uncertainty | None]], status: str = "modelled"
) -> OverviewNumber:
    try:
        value, uncertainty = estimate()
    except PlannerError as error:
        return OverviewNumber(quantity, "bytes", None, "unsupported", error.problems[0])
    return OverviewNumber(quantity, "bytes", value, status, uncertainty=uncertainty)


@dataclass(frozen=True, slots=True)
class ListNumbers:
    """One model in a list: all counted, so all exact."""

    parameters: int
    active_parameters: int
    flops_a_token: float
    """Of a forward pass over a sequence of the given length."""
    cache_bytes_a_token: int
    """What one more token adds while no window is full, in bf16; zero where only states are kept."""
    cache_bytes: int
    """Of one sequence at the given context, in bf16."""
    sequence_kinds: tuple[str, ...]
    """Kinds of sequence mixer, the commonest first."""
    channel_kinds: tuple[str, ...]
    windowed: bool
    """Whether some layer sees a window alone."""


def list_numbers(spec: ArchitectureSpec, *, sequence_length: int, context_length: int) -> ListNumbers:
    """The numbers by which a list of models is sorted and filtered."""
    parameters = size(spec).parameters
    sequence: dict[str, int] = {}
    channel: dict[str, int] = {}
    windowed = False
    for group in spec.layer_groups:
        for layer in group.layers:
            for mixer, counts in ((layer.sequence_mixer, sequence), (layer.channel_mixer, channel)):
                if mixer is not None:
                    counts[mixer.kind] = counts.get(mixer.kind, 0) + group.repeats
            for _, part in layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ():
                windowed = windowed or getattr(part, "sliding_window", None) is not None
    return ListNumbers(
        parameters.total,
        parameters.active,
        flops(spec, sequence_length).total / sequence_length,
        cache_bytes(spec, 2) - cache_bytes(spec, 1),
        cache_bytes(spec, context_length),
        tuple(sorted(sequence, key=lambda kind: -sequence[kind])),
        tuple(sorted(channel, key=lambda kind: -channel[kind])),
        windowed,
    )
