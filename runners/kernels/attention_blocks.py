"""Which blocks of keys each tile of queries visits, and the other way round: a kernel's time follows the mask.

Blocks are listed in order, those of which every pair is seen before those that the mask cuts. Over positions that
follow each other from 0 on, the lists are exact and come from :func:`planner.mask_blocks.block_map`. Elsewhere they are
made on the device without waiting for it: no block that holds a pair is left out, and some may be listed without one.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from planner.components.patterns import MaskPattern
from planner.mask_blocks import block_map

LARGEST_TILE = 256
"""Positions of a tile, at most."""


class Places(NamedTuple):
    """Where keys stand that do not all follow each other from position 0 on; queries are the last of them."""

    positions: Tensor
    """(1 or batch, keys) of int: in their sequence, or in their document."""
    documents: Tensor | None = None
    """(1 or batch, keys) of int: the number of a key's document, which never falls; a query sees keys of its own."""


class Visits(NamedTuple):
    """Blocks that each row of blocks visits."""

    blocks: Tensor
    """(1 or batch, rows, most) of int32: their numbers, those that need no mask first."""
    counts: Tensor
    """(1 or batch, rows, 2) of int32: how many need no mask, and how many there are."""


class Tiles(NamedTuple):
    """How the square is cut."""

    query_length: int
    key_length: int
    block_queries: int
    block_keys: int


def visits(pattern: MaskPattern, tiles: Tiles, places: Places | None, by_keys: bool, device: torch.device) -> Visits:
    """Blocks of keys for each tile of queries; with ``by_keys``, tiles of queries for each block of keys."""
    if places is None:
        return _exact(pattern, tiles, by_keys, device)
    some, every = _judged(pattern, tiles, places)
    return _listed(*_turned(some, every, tiles, by_keys))


@functools.lru_cache(maxsize=64)
def _exact(pattern: MaskPattern, tiles: Tiles, by_keys: bool, device: torch.device) -> Visits:
    made = block_map(pattern, tiles.key_length, tiles.block_queries, tiles.block_keys, tiles.query_length)
    some, every = (torch.from_numpy(blocks)[None] for blocks in (made.some, made.every))
    blocks, counts = _listed(*_turned(some, every, tiles, by_keys))
    most = int(counts[..., 1].max())
    return Visits(blocks[..., :most].contiguous().to(device), counts.to(device))


def blocks_seen(pattern: MaskPattern) -> int:
    """Earlier blocks that a block sees, at most, where the sequence is cut into blocks."""
    layout = pattern.layout
    return 0 if layout is None else len(layout.offsets) + (layout.random_blocks or 0)


@functools.lru_cache(maxsize=64)
def block_table(pattern: MaskPattern, length: int, device: torch.device) -> Tensor:
    """(blocks, ``blocks_seen``) of int32: the distances of the earlier blocks that each block sees, and −1 behind them.

    One row where all blocks see alike; else there are rows behind the sequence, which the last tile may reach into.
    """
    layout, width = pattern.layout, blocks_seen(pattern)
    assert layout is not None
    if not layout.random_blocks:
        return torch.tensor([layout.offsets], dtype=torch.int32, device=device)
    table = np.full((-(-(length + LARGEST_TILE) // layout.block_size), width), -1, dtype=np.int32)
    for block in range(-(-length // layout.block_size)):
        keys = np.arange(block)
        distances = block - keys[layout.sees_block(np.int64(block), keys)]
        table[block, : len(distances)] = distances
    return torch.from_numpy(table).to(device)


def _turned(some: Tensor, every: Tensor, tiles: Tiles, by_keys: bool) -> tuple[Tensor, Tensor]:
    """Rows of what is listed. A block that the sequence's end cuts off needs a mask."""
    every = every.clone()
    if by_keys:
        some, every = some.transpose(1, 2), every.transpose(1, 2)
        cut_off = tiles.query_length % tiles.block_queries
    else:
        cut_off = tiles.key_length % tiles.block_keys
    if cut_off:
        every[..., -1] = False
    return some, every


def _listed(some: Tensor, every: Tensor) -> Visits:
    # Kernels read the lists one behind the other, and what was turned is not laid out so.
    rank = torch.where(every, 0, torch.where(some, 1, 2)).to(torch.int8).contiguous()
    return Visits(
        rank.argsort(dim=-1, stable=True).to(torch.int32).contiguous(),
        torch.stack((every.sum(-1), some.sum(-1)), -1).to(torch.int32),
    )


def _judged(pattern: MaskPattern, tiles: Tiles, places: Places) -> tuple[Tensor, Tensor]:
    """(1 or batch, tiles of queries, blocks of keys): those that may hold a pair, those that surely hold all."""
    positions, documents = places
    indices = torch.arange(tiles.key_length, device=positions.device)[None]
    first_query = tiles.key_length - tiles.query_length
    q0, q1 = (edge[:, :, None] for edge in _edges(indices[:, first_query:], tiles.block_queries))
    k0, k1 = (edge[:, None, :] for edge in _edges(indices, tiles.block_keys))
    some, every = k0 <= q1, k1 <= q0
    if documents is None:
        q0, q1 = (edge[:, :, None] for edge in _edges(positions[:, first_query:], tiles.block_queries))
        k0, k1 = (edge[:, None, :] for edge in _edges(positions, tiles.block_keys))
    else:
        d0, d1 = (edge[:, :, None] for edge in _edges(documents[:, first_query:], tiles.block_queries))
        e0, e1 = (edge[:, None, :] for edge in _edges(documents, tiles.block_keys))
        some, every = some & (d0 <= e1) & (e0 <= d1), every & (d0 == e1) & (e0 == d1)
    # Distances within a document are those within the sequence.
    if pattern.recent is not None:
        near = q0 - k1 < pattern.recent
        if pattern.global_tokens is not None or pattern.chunk_summaries is not None:
            near = near | _edges(pattern.remembers(positions).int(), tiles.block_keys)[1][:, None, :].bool()
        some = some & near
    if pattern.is_window and pattern.sliding_window is not None:
        every = every & (q1 - k0 < pattern.sliding_window)
    elif not pattern.is_causal:
        every = torch.zeros_like(every)
    some, every = torch.broadcast_tensors(some, every)
    return some, every


def _edges(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The least and the largest number of each block of ``x`` (batch, positions)."""
    length = x.shape[1]
    places = torch.arange(-(-length // size) * size, device=x.device).clamp(max=length - 1)
    blocks = x[:, places].unflatten(1, (-1, size))
    return blocks.amin(-1), blocks.amax(-1)
