"""What bounds an operator, and the length at which attention costs as much as the MLPs.

An operator's intensity is its FLOPs over the bytes that an ideal kernel moves: weights, inputs, outputs and what it
reads of the cache, each once (:mod:`planner.serving.operators`). Below a device's ridge point (peak FLOPs over memory
bandwidth) memory decides how long it takes, above it the arithmetic units do (the roofline model; Williams et al. 2009,
doi:10.1145/1498765.1498785).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.components import Attention, LatentAttention
from planner.components.base import Component
from planner.hardware import Device
from planner.matrices import between_tokens, matrix_flops
from planner.quantities import Quantity
from planner.serving import largest_true
from planner.serving.operators import Operator
from planner.spec import ArchitectureSpec

LONGEST_CROSSOVER = 2**30


@dataclass(frozen=True, slots=True)
class Bound:
    """What holds an operator back on a device, at best."""

    operator: Operator
    by: Literal["memory", "arithmetic"]
    seconds: float
    """Not less than this: the device's promised rates, both in full use."""
    share: float
    """Of the sum over all operators."""


def bounds(found: Sequence[Operator], device: Device, dtype: str) -> list[Bound]:
    """Each operator against the device's ridge point; empty where the device has no rate of ``dtype`` or bandwidth."""
    peak, bandwidth = device.peak_flops.get(dtype), device.memory_bandwidth_bytes_per_second
    if peak is None or bandwidth is None:
        return []
    times = [(each.flops / peak, each.moved_bytes / bandwidth) for each in found]
    total = sum(max(pair) for pair in times)
    return [
        Bound(each, "arithmetic" if arithmetic > memory else "memory", max(arithmetic, memory), max(pair) / total)
        for each, pair in zip(found, times, strict=True)
        for arithmetic, memory in [pair]
    ]


def ridge_point(device: Device, dtype: str) -> float | None:
    """FLOPs a byte at which a device's memory and its arithmetic take equally long; ``None`` where one is not known."""
    peak, bandwidth = device.peak_flops.get(dtype), device.memory_bandwidth_bytes_per_second
    return None if peak is None or bandwidth is None else peak / bandwidth


@dataclass(frozen=True, slots=True)
class Crossover:
    """Sequence lengths from which attention between tokens costs at least what all channel mixers do."""

    counted_tokens: Quantity | None
    """With the whole square multiplied, as a plain kernel does; ``None`` where nothing attends or there is no MLP."""
    needed_tokens: int | None
    """Without what causal masks and windows leave out; ``None`` also where it never comes to that."""


def crossover(spec: ArchitectureSpec) -> Crossover:
    """The attention-to-MLP crossover of a model: scores and weighted values against the channel mixers.

    The projections of attention are on neither side. For multi-head attention as wide as the stream and a plain MLP of
    four times its width the counted length is four hidden sizes.
    """
    counted = crossover_counted(spec)
    if counted is None:
        return Crossover(None, None)

    channel = channel_flops(spec)

    def below(length: int) -> bool:
        return bool(attention_flops(spec, length)[1] < channel * length)

    last = largest_true(below, LONGEST_CROSSOVER)
    return Crossover(counted, None if last == LONGEST_CROSSOVER else last + 1)


def crossover_counted(spec: ArchitectureSpec) -> Quantity | None:
    """The counted length as a formula: what the channel mixers take a token, over what attention takes a pair."""
    nothing = not list(_attending(spec)) or not any(
        layer.channel_mixer is not None for group in spec.layer_groups for layer in group.layers
    )
    return None if nothing else channel_flops(spec) / attention_flops(spec, 1)[0]


def attention_flops(spec: ArchitectureSpec, length: Quantity) -> tuple[Quantity, Quantity]:
    """FLOPs of all scores and weighted values over a sequence: of the whole square, and of what the masks leave."""
    counted: Quantity = 0
    needed: Quantity = 0
    for mixer, repeats in _attending(spec):
        for operation in mixer.operations(spec.hidden_size, length, 1):
            counted = counted + operation.flops * repeats
        counted = counted - matrix_flops(mixer, spec.hidden_size, length) * repeats
        needed = needed + between_tokens(mixer, spec.hidden_size, length, 1) * repeats
    return counted, needed


def _attending(spec: ArchitectureSpec) -> Iterator[tuple[Component, Quantity]]:
    for group in spec.layer_groups:
        for layer in group.layers:
            for _, mixer in layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ():
                if isinstance(mixer, (Attention, LatentAttention)):
                    yield mixer, group.repeats


def channel_flops(spec: ArchitectureSpec) -> Quantity:
    """FLOPs a token of all channel mixers."""
    total: Quantity = 0
    for group in spec.layer_groups:
        for layer in group.layers:
            if layer.channel_mixer is not None:
                for operation in layer.channel_mixer.operations(spec.hidden_size, 1, 1):
                    total = total + operation.flops * group.repeats
    return total
