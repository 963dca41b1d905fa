"""Attention that computes only the blocks of scores in which a mask leaves a pair.

The sequence is cut into blocks. A block of queries meets the blocks of keys that it sees anything of, gathered side by
side, in one call of PyTorch's scaled dot product attention; so the softmax is over a whole row, and nothing is merged.
For the backward pass queries, keys and values are kept alone, and each block of queries is computed again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from planner.components.patterns import MaskPattern
from planner.mask_blocks import block_map
from runners.kernels.causal_attention import dot_product_attention
from runners.kernels.choice import Kernels

BLOCK_SIZE = 128
"""Positions of a block, unless told otherwise."""

Span = tuple[int, int]
"""First position, and the one behind the last."""


@functools.lru_cache(maxsize=64)
def _rows(pattern: MaskPattern, length: int, block_size: int) -> tuple[tuple[Span, tuple[Span, ...], bool], ...]:
    """For each block of queries its span, the spans of keys that it meets, and whether it sees all of them."""
    blocks = block_map(pattern, length, block_size)
    rows = []
    for index in range(len(blocks.some)):
        met = np.flatnonzero(blocks.some[index])
        runs = [
            [int(block) for _, block in run]
            for _, run in itertools.groupby(enumerate(met), key=lambda pair: int(pair[1]) - pair[0])
        ]
        spans = tuple((run[0] * block_size, min(length, (run[-1] + 1) * block_size)) for run in runs)
        span = index * block_size, min(length, (index + 1) * block_size)
        rows.append((span, spans, not blocks.cut[index].any()))
    return tuple(rows)


def _gathered(x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    parts = [x[:, :, first:stop] for first, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _mask(pattern: MaskPattern, span: Span, spans: tuple[Span, ...], device: torch.device) -> Tensor:
    queries = torch.arange(*span, device=device)
    keys = torch.cat([torch.arange(*each, device=device) for each in spans])
    seen: Tensor = pattern.sees(queries[:, None], keys[None, :])
    return seen


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pattern: MaskPattern, scale: float, block_size: int
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.pattern, ctx.scale, ctx.block_size = pattern, scale, block_size
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        for (first, stop), mixed, _ in _each(query, key, value, pattern, scale, block_size):
            output[:, :, first:stop] = mixed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        gradients = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        with torch.enable_grad():
            for (first, stop), mixed, (parts, spans) in _each(
                query, key, value, ctx.pattern, ctx.scale, ctx.block_size
            ):
                found = torch.autograd.grad(mixed, parts, gradient[:, :, first:stop])
                gradients[0][:, :, first:stop] = found[0]
                for total, part in zip(gradients[1:], found[1:], strict=True):
                    place = 0
                    for begin, end in spans:
                        total[:, :, begin:end] += part[:, :, place : place + end - begin]
                        place += end - begin
        return (*gradients, None, None, None)


Parts = tuple[Tensor, Tensor, Tensor]
Row = tuple[Span, Tensor, tuple[Parts, tuple[Span, ...]]]


def _each(
    query: Tensor, key: Tensor, value: Tensor, pattern: MaskPattern, scale: float, block_size: int
) -> Iterator[Row]:
    """Each block of queries: its span, its mixed values, and the parts that they are made of with the keys' spans."""
    for span, spans, is_full in _rows(pattern, query.shape[2], block_size):
        parts: Parts = query[:, :, span[0] : span[1]], _gathered(key, spans), _gathered(value, spans)
        if torch.is_grad_enabled():
            parts = tuple(part.detach().requires_grad_() for part in parts)  # type: ignore[assignment]
        if is_full:
            mask = torch.ones(1, 1, dtype=torch.bool, device=query.device)
        else:
            mask = _mask(pattern, span, spans, query.device)
        yield span, dot_product_attention(*parts, scale, mask), (parts, spans)


def takes_blocks(kernels: Kernels, pattern: MaskPattern, query: Tensor, key: Tensor) -> bool:
    """Whether scores are computed block by block: where asked for, of whole sequences of which a part is hidden."""
    return kernels == "block_sparse" and not pattern.is_causal and query.shape[2] == key.shape[2]


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: MaskPattern, scale: float, block_size: int = BLOCK_SIZE
) -> Tensor:
    """Mixed values (batch, num_attention_heads, positions, value_head_dim) of one whole sequence each.

    ``query`` (batch, num_attention_heads, positions, head_dim), ``key`` and ``value`` (batch, num_key_value_heads,
    positions, channels) stand at the same positions, from 0 on.

    Raises
    ------
    ValueError
        where there are not as many keys as queries.
    """
    if not query.shape[2] == key.shape[2] == value.shape[2]:
        raise ValueError(
            f"{query.shape[2]} queries, {key.shape[2]} keys and {value.shape[2]} values are not one sequence"
        )
    mixed: Tensor = _BlockSparse.apply(query, key, value, pattern, scale, block_size)
    return mixed
