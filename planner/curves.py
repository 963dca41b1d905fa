"""Quantities over the length of a sequence, for plots: FLOPs a token, and attention beside the channel mixers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.compute import flops
from planner.intensity import attention_flops, channel_flops
from planner.spec import ArchitectureSpec


@dataclass(frozen=True, slots=True)
class FlopsCurve:
    """FLOPs a token at each length."""

    lengths: tuple[int, ...]
    forward: tuple[float, ...]
    """As counted: masks save nothing."""
    needed: tuple[float, ...]
    """Of a forward pass, without what masks leave out."""
    training: tuple[float, ...]
    """Forward and backward, as counted."""


def flops_curve(spec: ArchitectureSpec, lengths: Sequence[int]) -> FlopsCurve:
    """FLOPs a token of one sequence of each length."""
    passes = [flops(spec, length) for length in lengths]
    steps = [flops(spec, length, training=True) for length in lengths]
    return FlopsCurve(
        tuple(lengths),
        tuple(each.total / length for each, length in zip(passes, lengths, strict=True)),
        tuple(each.needed_total / length for each, length in zip(passes, lengths, strict=True)),
        tuple(each.total / length for each, length in zip(steps, lengths, strict=True)),
    )


@dataclass(frozen=True, slots=True)
class CrossoverCurve:
    """FLOPs a token of attention between tokens and of all channel mixers, at each length."""

    lengths: tuple[int, ...]
    attention_counted: tuple[float, ...]
    attention_needed: tuple[float, ...]
    channel: float


def crossover_curve(spec: ArchitectureSpec, lengths: Sequence[int]) -> CrossoverCurve:
    """The two sides whose crossing :func:`planner.crossover` finds."""
    both = [attention_flops(spec, length) for length in lengths]
    return CrossoverCurve(
        tuple(lengths),
        tuple(counted / length for (counted, _), length in zip(both, lengths, strict=True)),
        tuple(needed / length for (_, needed), length in zip(both, lengths, strict=True)),
        float(channel_flops(spec)),
    )
