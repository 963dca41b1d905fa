"""Which blocks of the square of scores a mask leaves: none, some or all of their pairs.

Kernels leave out the blocks without a pair and mask only those that are cut. A block is judged from its corners, so
that no mask of all positions is ever written out; the judgement is exact, block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.components.block_layout import BlockLayout
from planner.components.patterns import MaskPattern

Blocks = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]
CELLS_AT_A_TIME = 2**22
"""Of a layout's own blocks, those that are looked at together."""
Judged = tuple[Blocks, Blocks]
"""Blocks of which any pair is seen but for the order of the two, and those of which every pair is."""


@dataclass(frozen=True, slots=True)
class BlockMap:
    """Blocks of ``block_size`` queries, (query blocks, key blocks) each; the last ones may be cut off."""

    length: int
    block_size: int
    some: Blocks
    """Whether any query of the block sees any key of it."""
    every: Blocks
    """Whether each query of the block sees each key of it."""

    @property
    def cut(self) -> Blocks:
        """Blocks of which some pairs are seen, and not all."""
        cut: Blocks = self.some & ~self.every
        return cut

    @property
    def density(self) -> float:
        """Share of the blocks that hold a pair: what a kernel that goes block by block computes of the square."""
        return float(self.some.mean())


def block_map(
    pattern: MaskPattern,
    length: int,
    block_size: int,
    key_block_size: int | None = None,
    num_queries: int | None = None,
) -> BlockMap:
    """The blocks of a sequence of ``length`` positions, each of ``block_size`` queries and as many keys.

    ``key_block_size``: keys of a block, where they are not as many as the queries. ``num_queries``: where the queries
    are the last so many positions; their blocks are counted from the first of them.
    """
    first_query = 0 if num_queries is None else length - num_queries
    q0, q1 = _edges(first_query, length, block_size)
    k0, k1 = _edges(0, length, block_size if key_block_size is None else key_block_size)
    corners = q0[:, None], q1[:, None], k0[None, :], k1[None, :]
    if pattern.layout is not None:
        some, every = _of_layout(pattern.layout, *corners)
    else:
        by_kind = _of_chunks if pattern.attention_chunk_size is not None else _of_distances
        some, every = by_kind(pattern, *corners)
    if pattern.global_tokens is not None:
        some = some | (corners[2] < pattern.global_tokens)
    _, last_query, first_key, last_key = corners
    return BlockMap(length, block_size, some & (first_key <= last_query), every & (last_key <= corners[0]))


def _edges(start: int, stop: int, size: int) -> tuple[Positions, Positions]:
    """The first and the last position of each block."""
    first = np.arange(start, stop, size, dtype=np.int64)
    return first, np.minimum(first + size, stop) - 1


def _of_distances(pattern: MaskPattern, q0: Positions, q1: Positions, k0: Positions, k1: Positions) -> Judged:
    """Where distance decides: each from the nearest to the farthest pair of a block occurs in it.

    ``every`` is of the keys behind the global ones.
    """
    window, step, stride = pattern.sliding_window, pattern.dilation or 1, pattern.stride
    nearest, farthest = np.maximum(q0 - k1, 0), q1 - k0
    ordinary = np.maximum(k0, pattern.global_tokens or 0)
    closest, widest = q0 - k1, q1 - ordinary
    alone = closest == widest
    if window is not None:
        reach = window * step
        some = np.minimum(farthest, reach - 1) // step * step >= nearest
        every = (widest < reach) & (alone & (closest % step == 0) if step > 1 else np.True_)
    elif stride is not None:
        some, every = nearest == 0, alone & (closest == 0)
    else:
        return nearest >= 0, closest <= widest
    if stride is not None:
        some = some | (farthest // stride * stride >= nearest)
        # Behind the window a block shows all its pairs only where they are all at one distance, a whole stride.
        every = every | ((np.maximum(closest, window or 0) == widest) & (widest % stride == 0))
    return some, every | (ordinary > k1)


def _of_chunks(pattern: MaskPattern, q0: Positions, q1: Positions, k0: Positions, k1: Positions) -> Judged:
    chunk, back, summaries = (
        pattern.attention_chunk_size or 1,
        pattern.previous_chunks or 0,
        pattern.chunk_summaries or 0,
    )
    latest_key = np.minimum(k1, q1)
    some = np.maximum(q0, latest_key) // chunk - latest_key // chunk <= back
    begin = chunk - summaries
    if summaries:
        next_summary = np.where(k0 % chunk >= begin, k0, k0 // chunk * chunk + begin)
        some = some | (next_summary <= latest_key)
    # The first key that is neither global nor a summary, to be seen from the last query.
    ordinary = np.maximum(k0, pattern.global_tokens or 0)
    ordinary = np.where(ordinary % chunk < begin, ordinary, (ordinary // chunk + 1) * chunk)
    every = (ordinary > k1) | (q1 // chunk - ordinary // chunk <= back) | np.bool_(begin == 0)
    return some, every


def _of_layout(layout: BlockLayout, q0: Positions, q1: Positions, k0: Positions, k1: Positions) -> Judged:
    """From how many of the layout's own blocks are seen of those that the corners stand in."""
    size = layout.block_size
    rows, columns = (q0 // size, q1 // size), (k0 // size, k1 // size)
    # Keys behind the global ones: only they can be hidden.
    ordinary = np.maximum(k0, layout.global_tokens)
    ordinary_column = np.minimum(ordinary // size, columns[1])
    first_row, num_rows = int(rows[0].min()), int(rows[1].max()) + 1
    keys = np.arange(int(columns[1].max()) + 1, dtype=np.int64)[None, :]
    # Seen blocks before an edge, summed over the rows before an edge: (edges of rows, edges of columns).
    edges = [np.ravel(edge) for edge in (columns[0], columns[1] + 1, ordinary_column)]
    sums = [np.zeros((num_rows - first_row + 1, len(edge)), dtype=np.int64) for edge in edges]
    step = max(1, CELLS_AT_A_TIME // keys.size)
    for begin in range(first_row, num_rows, step):
        row = np.arange(begin, min(begin + step, num_rows), dtype=np.int64)[:, None]
        seen = layout.sees_block(row, keys) & (keys <= row)
        counted = np.pad(np.cumsum(seen, axis=1), ((0, 0), (1, 0)))
        for total, edge in zip(sums, edges, strict=True):
            total[begin - first_row + 1 : begin - first_row + 1 + len(row)] = counted[:, edge]
    top, bottom = (np.ravel(edge) - first_row for edge in (rows[0], rows[1] + 1))
    from_first, to_last, from_ordinary = ((total := np.cumsum(each, axis=0))[bottom] - total[top] for each in sums)
    area = (rows[1] - rows[0] + 1) * (columns[1] - ordinary_column + 1)
    every = (to_last - from_ordinary == area) | (ordinary > k1)
    return to_last > from_first, every
