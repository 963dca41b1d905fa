"""Norms of queries and keys: over a head's channels or the whole projection, RMSNorm or LayerNorm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, Kernels, in_compute_type
from runners.models.norms import rms_norm


class QueryKeyNorm(nn.Module):
    """Norm of queries or keys x (batch, positions, heads, head_dim).

    ``weight`` and ``bias`` have the shape (head_dim,), (heads * head_dim,) or (heads, head_dim).
    """

    def __init__(self, component: components.Attention, heads: int, context: BuildContext) -> None:
        super().__init__()
        self.over_projection = component.query_key_norm == "projection"
        self.is_rms = component.query_key_norm_kind == "rms_norm"
        norm = context.norm
        self.epsilon = norm.epsilon if component.query_key_norm_epsilon is None else component.query_key_norm_epsilon
        self.zero_centered = self.is_rms and isinstance(norm, components.RMSNorm) and norm.zero_centered
        head_dim, self.kernels = component.head_dim, context.kernels
        shape = {"head": (head_dim,), "projection": (heads * head_dim,), "each_head": (heads, head_dim)}
        made = shape[component.query_key_norm or "head"]
        self.weight = nn.Parameter(torch.empty(made)) if component.query_key_norm_weight else None
        self.bias = nn.Parameter(torch.empty(made)) if component.query_key_norm_bias else None
        self.reset_special()

    @torch.no_grad()
    def reset_special(self) -> None:
        """Start as a norm without weights."""
        if self.weight is not None:
            self.weight.fill_(0.0 if self.zero_centered else 1.0)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.over_projection:
            return self._normalized(x.flatten(-2)).unflatten(-1, x.shape[-2:])
        return self._normalized(x)

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.is_rms:
            return layer_norm(x, self.weight, self.bias, self.epsilon, self.kernels)
        kernels = self.kernels
        if self.weight is not None and self.weight.dim() > 1 and kernels != "reference":
            kernels = "eager"  # the Triton kernel reads one row of weights
        return rms_norm(x, self.weight, self.epsilon, self.zero_centered, kernels)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, kernels: Kernels) -> Tensor:
    """Normalize the last dimension of ``x`` to mean 0 and variance 1; ``weight`` may have a row for each head.

    Computed in fp32 (or fp64), returned in ``x``'s or autocast's type.
    """
    if kernels == "reference":
        wide = x if x.dtype == torch.float64 else x.float()
        centered = wide - wide.mean(-1, keepdim=True)
        normalized = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + epsilon)
        return in_compute_type(_scaled(normalized, weight, bias).to(x.dtype))
    result: Tensor = _LayerNormFunction.apply(x, weight, bias, epsilon, in_compute_type(x[..., :0]).dtype)
    return result


def _scaled(normalized: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        normalized = normalized * weight.to(normalized.dtype)
    return normalized if bias is None else normalized + bias.to(normalized.dtype)


class _LayerNormFunction(torch.autograd.Function):
    """Saves the input, and a mean and a scale a row; the weight may have more dimensions than PyTorch's takes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, dtype: torch.dtype
    ) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        mean = wide.mean(-1, keepdim=True)
        centered = wide - mean
        scale = torch.rsqrt(centered.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, mean, scale, weight)
        ctx.bias_type = None if bias is None else bias.dtype
        return _scaled(centered * scale, weight, bias).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        gradient = gradients[0].to(scale.dtype)
        normalized = (x.to(scale.dtype) - mean) * scale
        weighted = gradient if weight is None else gradient * weight.to(scale.dtype)
        along = (weighted * normalized).mean(-1, keepdim=True)
        to_x = ((weighted - weighted.mean(-1, keepdim=True) - normalized * along) * scale).to(x.dtype)
        to_weight = to_bias = None
        if weight is not None:
            rows = gradient.dim() - weight.dim() - 1
            to_weight = (gradient * normalized).flatten(0, rows).sum(0).to(weight.dtype)
            if ctx.bias_type is not None:
                to_bias = gradient.flatten(0, rows).sum(0).to(ctx.bias_type)
        return to_x, to_weight, to_bias, None, None
