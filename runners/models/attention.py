"""Softmax attention, the twin of :mod:`planner.components.attention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.kernels.causal_attention import LARGEST_HEAD_DIM, triton_causal_attention
from runners.kernels.choice import takes_triton
from runners.models.context import BuildContext, Kernels, in_compute_type
from runners.models.norms import inner_norm
from runners.models.rotary import rotate_from


def visible(queries: Tensor, keys: Tensor, window: int | None, dilation: int | None) -> Tensor:
    """Which keys each query sees: (queries, keys) of bool, from the positions of both."""
    distance = queries[:, None] - keys[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= distance < window * (dilation or 1)
    if dilation is not None:
        seen &= distance % dilation == 0
    return seen


def _widened(x: Tensor, channels: int) -> Tensor:
    """``x`` (batch, heads, positions, channels) with further channels of zeros, laid out positions before heads."""
    return F.pad(x.transpose(1, 2), (0, channels)).transpose(1, 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    kernels: Kernels,
) -> Tensor:
    """Weighted values, (batch, num_attention_heads, queries, value_dim).

    ``mask`` is (queries, keys) of bool; ``None`` stands for the plain causal mask over equal positions.
    """
    group = query.shape[1] // key.shape[1]
    if softcap is not None and kernels != "reference":
        result: Tensor = _SoftcappedAttention.apply(query, key, value, mask, scale, softcap)
        return result
    if softcap is None and kernels != "reference":
        missing = query.shape[-1] - value.shape[-1]
        if missing > 0:
            # Fused attention wants one width; zeros in further channels of the values change nothing.
            return attend(query, key, _widened(value, missing), mask, scale, softcap, kernels)[..., :-missing]
        if missing < 0:
            query, key = _widened(query, -missing), _widened(key, -missing)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=group > 1
        )
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, -1, dtype=wide).to(query.dtype) @ value


class _SoftcappedAttention(torch.autograd.Function):
    """Saves queries, keys and values and computes the scores again in the backward pass, as fused kernels do."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.settings = scale, softcap
        return attend(query, key, value, mask, scale, softcap, "reference")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors[:3]]
        with torch.enable_grad():
            scale, softcap = ctx.settings
            mixed = attend(leaves[0], leaves[1], leaves[2], ctx.saved_tensors[3], scale, softcap, "reference")
        return *torch.autograd.grad(mixed, leaves, gradients[0]), None, None, None


class AttentionCache:
    """Keys and values of the last ``kept`` positions, in a ring: position p stands at slot p modulo ``kept``."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return self.keys, self.values

    def before(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of what is held of the positions before ``start``, in order."""
        kept = self.keys.shape[2]
        positions = torch.arange(max(0, start - kept), start, device=self.keys.device)
        slots = positions % kept
        return self.keys[:, :, slots], self.values[:, :, slots], positions

    def write(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Hold new keys and values whose first stands at position ``start``."""
        kept, length = self.keys.shape[2], keys.shape[2]
        first = max(0, length - kept)
        slots = torch.arange(start + first, start + length, device=keys.device) % kept
        self.keys[:, :, slots] = keys[:, :, first:].to(self.keys.dtype)
        self.values[:, :, slots] = values[:, :, first:].to(self.values.dtype)


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.Attention, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        self.theta = component.rope_theta or context.rope_theta
        queries = component.num_attention_heads * component.head_dim
        keys = component.num_key_value_heads * component.head_dim
        bias = component.query_key_value_bias
        self.q_proj = nn.Linear(context.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(context.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(context.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, context.hidden_size, bias=component.output_bias)
        if component.query_key_norm is not None:
            per_head = component.query_key_norm == "head"
            self.q_norm = inner_norm(context, component.head_dim if per_head else queries)
            self.k_norm = inner_norm(context, component.head_dim if per_head else keys)

    def new_cache(
        self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype
    ) -> AttentionCache:
        """An empty cache with the shapes that the planner counts."""
        shapes = [entry.shape for entry in self.component.cache(self.o_proj.out_features, context_length)]
        made = [torch.zeros(batch_size, *shape, device=device, dtype=dtype) for shape in shapes]
        return AttentionCache(made[0], made[1])

    def forward(self, x: Tensor, cache: AttentionCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        batch, length, _ = x.shape
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if component.query_key_norm == "projection":
            query, key = self.q_norm(query), self.k_norm(key)
        query = query.view(batch, length, component.num_attention_heads, component.head_dim)
        key = key.view(batch, length, component.num_key_value_heads, component.head_dim)
        if component.query_key_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        value = value.view(batch, length, component.num_key_value_heads, component.head_dim).transpose(1, 2)
        positions = torch.arange(start, start + length, device=x.device)
        if self.theta is not None:
            query = rotate_from(query, start, component.rotary_dim, self.theta, self.kernels)
            key = rotate_from(key, start, component.rotary_dim, self.theta, self.kernels)
        window, dilation = component.sliding_window, component.dilation
        mask = None if window is None else visible(positions, positions, window, dilation)
        if cache is not None:
            old_key, old_value, old_positions = cache.before(start)
            cache.write(key, value, start)
            if start > 0:
                key = torch.cat((old_key.to(key.dtype), key), 2)
                value = torch.cat((old_value.to(value.dtype), value), 2)
                mask = visible(positions, torch.cat((old_positions, positions)), window, dilation)
        scale = component.softmax_scale or component.head_dim**-0.5
        if component.logit_softcap is None and dilation is None and takes_triton(self.kernels, query, LARGEST_HEAD_DIM):
            # Queries are the last positions of the keys, cached ones included: what the kernel takes them for.
            mixed = triton_causal_attention(query, key, value, scale, window)
        else:
            mixed = attend(query, key, value, mask, scale, component.logit_softcap, self.kernels)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
