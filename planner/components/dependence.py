"""On which positions an output depends: sets of positions, as arrays of bool over one sequence.

Each function takes the positions of outputs and gives those of the inputs that they read, themselves included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.components.block_layout import BlockLayout

PositionSet = npt.NDArray[np.bool_]
"""(sequence_length,): whether each position is in the set."""


def everything_before(chosen: PositionSet) -> PositionSet:
    """All positions up to the last one that was chosen: full causal attention, and whatever carries a state along."""
    seen: PositionSet = np.logical_or.accumulate(chosen[::-1])[::-1]
    return seen


def window_before(chosen: PositionSet, window: int, dilation: int = 1) -> PositionSet:
    """``i, i - dilation, i - 2 dilation …`` of each chosen ``i``, at most ``window`` of them."""
    length = len(chosen)
    rows = -(-length // dilation)
    # Positions that are whole dilations apart stand in one column; a window is then that many neighbours of a column.
    columns = np.zeros((rows, dilation), dtype=np.int64)
    columns.reshape(-1)[:length] = chosen
    below = np.cumsum(columns[::-1], axis=0)[::-1]
    hidden = np.zeros_like(below)
    if window < rows:
        hidden[: rows - window] = below[window:]
    seen: PositionSet = (below - hidden).reshape(-1)[:length] > 0
    return seen


def chunk_before(chosen: PositionSet, chunk: int, previous: int = 0) -> PositionSet:
    """The positions of each chosen one's own ``chunk`` up to it, and those of so many ``previous`` chunks.

    Chunks are counted from the sequence's start.
    """
    length = len(chosen)
    rows = np.zeros((-(-length // chunk), chunk), dtype=np.bool_)
    rows.reshape(-1)[:length] = chosen
    own = np.flip(np.logical_or.accumulate(np.flip(rows, 1), axis=1), 1)
    # Whether the chunk after it, or one of so many after that, holds a chosen position.
    held: PositionSet = np.logical_or.reduce(rows, axis=1)
    following = np.append(held[1:], np.False_)
    seen: PositionSet = own | window_before(following, previous).reshape(-1, 1)
    return seen.reshape(-1)[:length]


def blocks_before(chosen: PositionSet, layout: BlockLayout) -> PositionSet:
    """The positions of the earlier blocks that a layout shows to the blocks of the chosen ones."""
    length, size = len(chosen), layout.block_size
    blocks = -(-length // size)
    places = np.unique(np.flatnonzero(chosen) // size)
    seen = np.zeros(blocks, dtype=np.bool_)
    # Some rows of the square of blocks at a time, so that a long sequence of small blocks does not need all of it.
    for rows in np.array_split(places, 1 + len(places) * blocks // 2**22):
        keys = np.arange(blocks)[None, :]
        seen |= (layout.sees_block(rows[:, None], keys) & (keys < rows[:, None])).any(axis=0)
    return np.repeat(seen, size)[:length]
