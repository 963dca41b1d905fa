"""From queries, keys and values to mixed values: masks, biases and sinks on the scores, and which kernel takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runners.kernels.causal_attention import dot_product_attention
from runners.models.blocked_attention import blocked_causal_attention, takes_blocks
from runners.models.context import Kernels
from runners.models.recompute import recomputed

Gaps = tuple[Tensor, Tensor]
"""Positions of queries (queries,) and keys (keys,), where the keys do not all follow each other."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What is done with the products of queries and keys before the softmax."""

    scale: float
    softcap: float | None = None
    """Scores are bounded by ``softcap * tanh(score / softcap)``."""
    slopes: tuple[float, ...] | None = None
    """What a position of distance takes from the scores of each head."""

    @property
    def are_plain(self) -> bool:
        """Whether nothing but the scale stands between the products and the softmax."""
        return self.softcap is None and self.slopes is None


def linear_slopes(heads: int, max_bias: float) -> tuple[float, ...]:
    """Slopes of the linear biases of each head (Press et al. 2021, arXiv:2108.12409, and the authors' code).

    For a power of two the geometric series ``2 ** (-max_bias / heads)``, ``2 ** (-2 max_bias / heads)`` …; for another
    number that of the power below it, then every second one of the series for the power above.
    """
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-max_bias * index / power) for index in range(1, power + 1)]
    rest = [2 ** (-max_bias * index / (2 * power)) for index in range(1, 2 * power, 2)]
    return tuple((first + rest)[:heads])


def _widened(x: Tensor, channels: int) -> Tensor:
    """``x`` (batch, heads, positions, channels) with further channels of zeros, laid out positions before heads."""
    return F.pad(x.transpose(1, 2), (0, channels)).transpose(1, 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scores: Scores,
    kernels: Kernels,
    sinks: Tensor | None = None,
    gaps: Gaps | None = None,
) -> Tensor:
    """Weighted values, (batch, num_attention_heads, queries, value_dim).

    ``mask`` is (queries, keys) of bool, or (batch, 1, queries, keys); ``None`` stands for the plain causal mask over
    equal positions, and for all keys where there is one query. Where there are more keys than queries, the queries are
    the last positions of the keys, or ``gaps`` tell. ``sinks`` (num_attention_heads,) are logits of a key without a
    value.
    """
    if kernels == "reference":
        return _plain(query, key, value, mask, scores, sinks, gaps)
    if sinks is not None or not scores.are_plain:
        return recomputed(
            lambda query, key, value, mask, sinks: _plain(query, key, value, mask, scores, sinks, gaps),
            query, key, value, mask, sinks,
        )  # fmt: skip
    if mask is None and takes_blocks(query, key):
        return blocked_causal_attention(query, key, value, scores.scale)
    missing = query.shape[-1] - value.shape[-1]
    if missing > 0:
        # Fused attention wants one width; zeros in further channels of the values change nothing.
        return attend(query, key, _widened(value, missing), mask, scores, kernels)[..., :-missing]
    if missing < 0:
        query, key = _widened(query, -missing), _widened(key, -missing)
    return dot_product_attention(query, key, value, scores.scale, mask)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scores: Scores,
    sinks: Tensor | None,
    gaps: Gaps | None,
) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    products = query @ key.transpose(-1, -2) * scores.scale
    wide = products.dtype if products.dtype == torch.float64 else torch.float32
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    if scores.slopes is not None:
        products = products.to(wide) + _linear_biases(scores.slopes, products, gaps)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(products.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        products = products.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        beside = sinks.to(products.dtype)[None, :, None, None].expand(*products.shape[:-1], 1)
        products = torch.cat((products, beside), -1)
    weights = torch.softmax(products, -1, dtype=wide)
    if sinks is not None:
        weights = weights[..., :-1]
    return weights.to(query.dtype) @ value


def _linear_biases(slopes: tuple[float, ...], products: Tensor, gaps: Gaps | None) -> Tensor:
    """(heads, queries, keys): minus the distance, times the slope of the head."""
    queries, keys = products.shape[-2:]
    wide = products.dtype if products.dtype == torch.float64 else torch.float32
    if gaps is None:
        columns = torch.arange(keys, device=products.device, dtype=wide)
        distance = columns[keys - queries :, None] - columns[None, :]
    else:
        distance = (gaps[0][:, None] - gaps[1][None, :]).to(wide)
    return -torch.tensor(slopes, device=products.device, dtype=wide)[:, None, None] * distance
