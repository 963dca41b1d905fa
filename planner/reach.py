"""How far back a model sees: the positions of the input that one position's stream depends on, layer by layer.

A layer says which positions its outputs read (:meth:`planner.components.Component.reads`); a stack is the composition
of that, from its last layer down, and the residual stream keeps what was reached. Of ``n`` equal layers with a window
of ``w`` keys that is ``n (w - 1) + 1`` positions (Jiang et al. 2023, arXiv:2310.06825, section 2, count ``n w``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.activations import saved_model_activations
from planner.components import Attention, Component
from planner.components.dependence import PositionSet
from planner.components.patterns import MaskPattern
from planner.errors import UnsupportedPlan
from planner.prototype import REFERENCE_CONTEXT, ScaledSpec, narrowed
from planner.sizing import count_parameters
from planner.spec import ArchitectureSpec, Layer

PROBE_LENGTH = 2**18
"""Positions over which the reach of a whole design is looked for: more than all but a few contexts."""
PARTS_SEEN = 4
"""A narrowed model's widest window or chunk is at most the sequence over this, so that several stand in it."""
KEPT_SCORES = 2
"""The softmax of every layer, and its mask."""
MADE_SCORES = 6
"""Products, scaled and masked, and the gradients of all while one layer is led back."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What the stream at one position depends on after ``depth`` layers."""

    depth: int
    position: int
    seen: PositionSet
    """(sequence_length,): whether the stream depends on each position of the input."""

    @property
    def farthest(self) -> int:
        """Positions from the farthest that is seen to the position itself, both counted."""
        return self.position - int(np.argmax(self.seen)) + 1

    @property
    def count(self) -> int:
        """Positions that are seen."""
        return int(self.seen.sum())


def reach_by_depth(
    spec: ArchitectureSpec, sequence_length: int, depths: Iterable[int] | None = None, position: int | None = None
) -> tuple[Reach, ...]:
    """The reach of ``position`` (absent: the last) after each of ``depths`` layers (absent: every number of them).

    Raises
    ------
    UnsupportedPlan
        where there is no such position or depth.
    """
    place = sequence_length - 1 if position is None else position
    if not 0 <= place < sequence_length:
        raise UnsupportedPlan.of(
            f"A sequence of {sequence_length:,} has no position {place:,}.",
            path="position",
            remedy=f"Choose from 0 to {sequence_length - 1:,}.",
            code="no_such_position",
        )
    layers = [layer for _, layer in spec.iterate_layers()]
    suppliers = key_value_suppliers([layer.sequence_mixer for layer in layers])
    wanted = range(1, len(layers) + 1) if depths is None else depths
    found = []
    for depth in wanted:
        if not 0 <= depth <= len(layers):
            raise UnsupportedPlan.of(
                f"The model has {len(layers):,} layers, not {depth:,}.",
                path="depths",
                remedy=f"Choose from 0 to {len(layers):,}.",
                code="no_such_depth",
            )
        seen = np.zeros(sequence_length, dtype=np.bool_)
        seen[place] = True
        found.append(Reach(depth, place, _composed(layers[:depth], suppliers, seen)))
    return tuple(found)


def _composed(layers: Sequence[Layer], suppliers: Sequence[int | None], seen: PositionSet) -> PositionSet:
    """What the stream at the positions ``seen`` depends on through these layers, the last one first."""
    supplied: dict[int, PositionSet] = {}
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if layer.channel_mixer is not None:
            mixed = layer.channel_mixer.reads(seen)
            if layer.residual == "sequential":
                seen = seen | mixed
        if layer.sequence_mixer is not None:
            read = layer.sequence_mixer.reads(seen)
            supplier = suppliers[index]
            if supplier is None:
                seen = seen | read
            else:  # keys and values are those of an earlier layer, made from the stream there
                supplied[supplier] = supplied.get(supplier, np.zeros_like(seen)) | read
        if layer.channel_mixer is not None and layer.residual != "sequential":
            seen = seen | mixed
        if index in supplied:
            seen = seen | supplied.pop(index)
    return seen


def key_value_suppliers(mixers: Sequence[Component | None]) -> tuple[int | None, ...]:
    """For each sequence mixer the index of the layer whose keys and values it reads; ``None`` where it has its own."""
    latest: dict[MaskPattern | None, int] = {}
    suppliers: list[int | None] = []
    for index, mixer in enumerate(mixers):
        pattern = getattr(mixer, "pattern", None)
        shares = getattr(mixer, "shares_key_values", None)
        if shares is False:
            latest[pattern] = index
        suppliers.append(latest[pattern] if shares else None)
    return tuple(suppliers)


def held_bytes(spec: ArchitectureSpec, sequence_length: int, element_bytes: int) -> int:
    """Memory in which one sequence can be followed back through all layers, with scores computed plainly.

    What fused attention would keep, of each layer's square of scores :data:`KEPT_SCORES` tensors, and of the largest
    :data:`MADE_SCORES` more.
    """
    fused = sum(
        int(times * saved.elements) for _, times, saved in saved_model_activations(spec, sequence_length, batch_size=1)
    )
    heads = [
        int(getattr(part, "num_attention_heads", 0))
        for _, layer in spec.iterate_layers()
        for _, part in (layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ())
    ]
    scores = (KEPT_SCORES * sum(heads) + MADE_SCORES * max(heads, default=0)) * sequence_length**2
    return element_bytes * (fused + scores + 2 * count_parameters(spec).total)


def dependent_pairs(mixer: Component, sequence_length: int) -> int:
    """Pairs of an output and an input position of which the one depends on the other, in one layer of this mixer.

    Of attention these are the pairs of its score matrix that a mask leaves.
    """
    pairs = 0
    for position in range(sequence_length):
        chosen = np.zeros(sequence_length, dtype=np.bool_)
        chosen[position] = True
        pairs += int(mixer.reads(chosen).sum())
    return pairs


def widest_part(spec: ArchitectureSpec) -> int:
    """The widest window, with its dilation, or chunks that are seen at once, or stride; 0 where none has one."""
    widest = 0
    for _, layer in spec.iterate_layers():
        for _, part in layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ():
            if isinstance(part, Attention):
                window = (part.sliding_window or 0) * (part.dilation or 1)
                chunks = (part.attention_chunk_size or 0) * (1 + (part.previous_chunks or 0))
                blocks = (part.block_size or 0) * (1 + max(part.block_offsets or (0,)))
                widest = max(widest, window, chunks, part.stride or 0, blocks)
    return widest


def narrowed_for_reach(
    spec: ArchitectureSpec, hidden_size: int, sequence_length: int, keep_windows: bool
) -> ScaledSpec:
    """All layers of a design in a narrow stream, with windows and chunks that show in a short sequence.

    Windows shrink alike, so far that what the whole stack sees fits the sequence, and the widest a quarter of it.
    """
    if keep_windows:
        return narrowed(spec, hidden_size, sequence_length, 1.0)
    widest = widest_part(spec)
    share = sequence_length / REFERENCE_CONTEXT
    if widest:
        (whole,) = reach_by_depth(spec, PROBE_LENGTH, [spec.num_layers])
        share = sequence_length / PARTS_SEEN / widest
        if whole.farthest < PROBE_LENGTH:
            share = min(share, sequence_length / whole.farthest)
    return narrowed(spec, hidden_size, sequence_length, min(1.0, share))
