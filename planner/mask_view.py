"""A layer's mask as a picture and as numbers: what is seen, what is computed, what is kept and how far it reaches."""

from __future__ import annotations

from dataclasses import dataclass

from planner.components import Component
from planner.components.patterns import MaskPattern
from planner.mask_blocks import BlockMap, block_map
from planner.quantities import ceiling_divide, smallest
from planner.reach import reach_by_depth
from planner.spec import ArchitectureSpec

CELLS = 64
"""Cells a side of the picture, at most."""
KERNEL_BLOCK = 128
"""Positions a side of the blocks that a kernel skips or computes."""
MOST_BLOCKS = 1024
"""Blocks a side up to which those of a kernel are counted."""
LONGEST_REACH = 2**15
"""Positions over which the reach is looked for, at most."""


@dataclass(frozen=True, slots=True)
class MaskView:
    """One layer's mask over a sequence."""

    pattern: MaskPattern
    sequence_length: int
    picture: BlockMap
    """Cells of the picture."""
    pairs: int
    """Pairs of a query and a key that it sees."""
    density: float
    """Those, as a share of the square of scores."""
    block_density: float | None
    """Share of a kernel's blocks that hold a pair; ``None`` where they are too many to count."""
    context_length: int
    kept: int
    """Positions that stay in the layer's cache at the context length."""
    reach: tuple[tuple[int, int], ...]
    """Layers of the stack from the first on, and how far back the last position sees through them, itself counted."""
    reach_length: int
    """Positions over which the reach was looked for: it ends there."""


def pattern_of(mixer: Component) -> MaskPattern | None:
    """The mask of a sequence mixer, or of the part of it that has one; ``None`` where nothing is masked."""
    for _, part in mixer.parts():
        pattern: MaskPattern | None = getattr(part, "pattern", None)
        if pattern is not None:
            return pattern
    return None


def mask_view(spec: ArchitectureSpec, pattern: MaskPattern, sequence_length: int, context_length: int) -> MaskView:
    """A mask of one of the layers of ``spec``, over so many positions of training and of serving."""
    depths = [2**power for power in range(spec.num_layers.bit_length()) if 2**power < spec.num_layers]
    reach_length = smallest(sequence_length, LONGEST_REACH)
    reached = reach_by_depth(spec, reach_length, [*depths, spec.num_layers])
    is_countable = ceiling_divide(sequence_length, KERNEL_BLOCK) <= MOST_BLOCKS
    return MaskView(
        pattern,
        sequence_length,
        block_map(pattern, sequence_length, ceiling_divide(sequence_length, CELLS)),
        pattern.attended_pairs(sequence_length),
        pattern.density(sequence_length),
        block_map(pattern, sequence_length, KERNEL_BLOCK).density if is_countable else None,
        context_length,
        pattern.kept(context_length),
        tuple((each.depth, each.farthest) for each in reached),
        reach_length,
    )
