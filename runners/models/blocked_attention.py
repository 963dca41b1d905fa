"""Causal attention on a CPU in bf16, block by block, by batched products of matrices.

PyTorch's own fused attention multiplies bf16 at a small part of the speed that ``bmm`` has on processors with
instructions for it (AVX512-BF16). It saves what that one does, queries, keys, values, output and the log-sum-exp of the
scores, and the scores of a block are the only ones that exist. A block's scores are rounded to bf16, as those of plain
attention are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries (forward) or keys (backward) that are worked on together."""
SHORTEST, LONGEST = 128, 2048
"""Lengths for which it was the faster one."""
MOST_SCORES = 2**21
"""Scores that exist at a time: heads beyond are worked on one after the other."""


_in_blocks: ContextVar[bool] = ContextVar("_in_blocks", default=True)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Within it PyTorch's own fused attention computes, whose memory is that of the fused kernels on GPUs."""
    token = _in_blocks.set(False)
    try:
        yield
    finally:
        _in_blocks.reset(token)


def takes_blocks(query: Tensor, key: Tensor) -> bool:
    """Whether these (batch, heads, positions, channels) are multiplied here, under the plain causal mask."""
    if not _in_blocks.get():
        return False
    length = query.shape[2]
    is_narrow = query.device.type == "cpu" and query.dtype == key.dtype == torch.bfloat16
    return is_narrow and length == key.shape[2] and SHORTEST <= length <= LONGEST


def _spans(length: int, width: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + width, length)) for first in range(0, length, width))


def _merged(x: Tensor, repeats: int = 1) -> Tensor:
    """(batch, heads, positions, channels) as (batch times heads, positions, channels), each head ``repeats`` times."""
    return x.repeat_interleave(repeats, 1).flatten(0, 1) if repeats > 1 else x.flatten(0, 1)


def _future(like: Tensor) -> Tensor:
    """(BLOCK, BLOCK): minus infinity at the keys behind a query."""
    return torch.full((BLOCK, BLOCK), float("-inf"), device=like.device, dtype=like.dtype).triu(1)


def _with_offset(x: Tensor, offset: Tensor) -> Tensor:
    """``x`` with channels whose product with ones takes ``offset`` (…, positions) off, to twice bf16's precision."""
    high = offset.to(x.dtype)
    low = (offset - high).to(x.dtype)
    return torch.cat((x, -high[..., None], -low[..., None]), -1)


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat((x, x.new_ones(*x.shape[:-1], 2)), -1)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        batch, heads, length, _ = query.shape
        repeats = heads // key.shape[1]
        # Laid out positions before heads, as the output projection reads it.
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        logarithms = query.new_empty(batch * heads, length, dtype=torch.float32)
        mixed = query.new_empty(batch * heads, length, value.shape[-1])
        queries, keys, values = _merged(query) * scale, _merged(key, repeats), _merged(value, repeats)
        future = _future(query)
        for low, high in _spans(batch * heads, max(1, MOST_SCORES // (BLOCK * length))):
            for first, end in _spans(length, BLOCK):
                scores = torch.bmm(queries[low:high, first:end], keys[low:high, :end].transpose(1, 2))
                scores[..., first:end] += future[: end - first, : end - first]
                highest = scores.amax(-1, keepdim=True)
                weights = scores.sub_(highest).exp_()
                total = weights.sum(-1, keepdim=True, dtype=torch.float32)
                mixed[low:high, first:end] = torch.bmm(weights, values[low:high, :end]).float().mul_(1 / total)
                logarithms[low:high, first:end] = (highest + total.log())[..., 0]
        output.copy_(mixed.view(batch, heads, length, -1))
        ctx.save_for_backward(query, key, value, output, logarithms)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query, key, value, output, logarithms = ctx.saved_tensors
        batch, heads, length, channels = query.shape
        repeats = heads // key.shape[1]
        gradient = gradients[0]
        # What the softmax takes off every gradient of a row: the sum of the gradients, weighted (arXiv:2205.14135).
        means = gradient.float().mul_(output).sum(-1).flatten(0, 1)
        from_queries = _with_offset(_merged(query) * ctx.scale, logarithms)
        from_gradients = _with_offset(_merged(gradient), means)
        keys, values = _with_ones(_merged(key, repeats)), _with_ones(_merged(value, repeats))
        to_query = query.new_zeros(batch * heads, length, channels, dtype=torch.float32)
        to_key, to_value = torch.empty_like(keys[..., :-2]), torch.empty_like(values[..., :-2])
        future = _future(query)
        for low, high in _spans(batch * heads, max(1, MOST_SCORES // (BLOCK * length))):
            for first, end in _spans(length, BLOCK):
                # Products are of contiguous parts: others would be copied for each.
                own, seen_by = keys[low:high, first:end], from_queries[low:high, first:].contiguous()
                weights = torch.bmm(seen_by, own.transpose(1, 2))
                weights[:, : end - first] += future[: end - first, : end - first]
                weights.exp_()
                arriving = from_gradients[low:high, first:].contiguous()
                to_value[low:high, first:end] = torch.bmm(weights.transpose(1, 2), arriving)[..., :-2]
                to_scores = torch.bmm(arriving, values[low:high, first:end].transpose(1, 2)).mul_(weights)
                to_key[low:high, first:end] = torch.bmm(to_scores.transpose(1, 2), seen_by)[..., :-2]
                to_query[low:high, first:] += torch.bmm(to_scores, own[..., :-2])
        laid_out = query.new_empty(batch, length, heads, channels).transpose(1, 2)
        laid_out.copy_(to_query.mul_(ctx.scale).view(batch, heads, length, channels))
        return laid_out, _summed(to_key, key, repeats), _summed(to_value, value, repeats), None


def _summed(gradient: Tensor, like: Tensor, repeats: int) -> Tensor:
    """The gradient of keys or values from those of their copies for every head of queries."""
    batch, heads, length, channels = like.shape
    result = like.new_empty(batch, length, heads, channels).transpose(1, 2)
    grouped = gradient.view(batch, heads, repeats, length, channels)
    return result.copy_(grouped[:, :, 0] if repeats == 1 else grouped.sum(2, dtype=torch.float32))


def blocked_causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Weighted values (batch, num_attention_heads, positions, value_dim) under the causal mask.

    ``query`` is (batch, num_attention_heads, positions, head_dim), ``key`` (batch, num_key_value_heads, positions,
    head_dim), ``value`` (batch, num_key_value_heads, positions, value_dim).
    """
    result: Tensor = _BlockedAttention.apply(query, key, value, scale)
    return result
