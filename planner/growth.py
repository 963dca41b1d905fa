"""How the shares of a model's parts move as it grows, in width or in depth.

Width multiplies the residual stream, the number of heads and the inner widths alike; the size of a head, states,
latents, windows, the vocabulary and the number of experts stay. Depth multiplies the repeats of every group. All sizes
are read in one pass over arrays, so between the valid designs lie lengths that no model could have: the curves are what
the formulas say, not a list of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from planner.compute import flops
from planner.errors import UnsupportedPlan
from planner.sizing import count_parameters
from planner.spec import ArchitectureSpec
from planner.symbolic import candidates

Direction = Literal["width", "depth"]
Measure = Literal["parameters", "flops"]


@dataclass(frozen=True, slots=True)
class Growth:
    """Totals and shares at each factor."""

    factors: tuple[float, ...]
    parameters: tuple[float, ...]
    """Of the whole model at each factor."""
    shares: dict[str, tuple[float, ...]]
    """By component; they sum to one at each factor. ``embedding``: what is outside the layers, the head included."""


def grow(
    spec: ArchitectureSpec,
    factors: Sequence[float],
    by: Direction = "width",
    measure: Measure = "parameters",
    sequence_length: int = 4096,
) -> Growth:
    """Shares of parameters, or of the FLOPs of a forward pass over ``sequence_length`` tokens, at each factor.

    Raises
    ------
    UnsupportedPlan
        where a mixer has no rule of growing in width.
    """
    times = np.asarray(factors, dtype=np.float64)
    fields = _deep(spec) if by == "depth" else _wide(spec)
    grown = candidates(spec, {path: value * times for path, value in fields})
    counts = count_parameters(grown)
    measured: dict[str, Any] = (
        counts.by_component if measure == "parameters" else flops(grown, sequence_length, 1).by_component
    )
    merged: dict[str, Any] = {}
    for component, amount in measured.items():
        name = "embedding" if component in ("token_embedding", "position_embedding", "lm_head") else component
        merged[name] = merged.get(name, 0) + np.broadcast_to(np.asarray(amount, dtype=np.float64), times.shape)
    whole = sum(merged.values())
    total = np.broadcast_to(np.asarray(counts.total, dtype=np.float64), times.shape)
    return Growth(
        tuple(times.tolist()),
        tuple(total.tolist()),
        {name: tuple((amount / whole).tolist()) for name, amount in merged.items()},
    )


def _deep(spec: ArchitectureSpec) -> Iterator[tuple[str, int]]:
    for index, group in enumerate(spec.layer_groups):
        yield f"layer_groups[{index}].repeats", group.repeats


def _wide(spec: ArchitectureSpec) -> Iterator[tuple[str, int]]:
    yield "hidden_size", spec.hidden_size
    for index, group in enumerate(spec.layer_groups):
        for position, layer in enumerate(group.layers):
            for part in ("sequence_mixer", "channel_mixer"):
                mixer = getattr(layer, part)
                if mixer is None:
                    continue
                for end, block in mixer.parts():
                    path = f"layer_groups[{index}].layers[{position}].{part}{end}"
                    if block.grows is None:
                        raise UnsupportedPlan.of(
                            f"How a {block.component.replace('_', ' ')} grows in width is not modelled.",
                            path=path,
                            remedy="Let the model grow in depth.",
                            code="unknown_growth",
                        )
                    for name in block.grows:
                        value = getattr(block, name, None)
                        if value is not None:
                            yield f"{path}.{name}", value
