"""RMSNorm and LayerNorm, the twins of :mod:`planner.components.norms`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.kernels.choice import takes_triton
from runners.kernels.rms_norm import WIDEST, triton_rms_norm
from runners.models.context import BuildContext, Kernels, in_compute_type


class _RMSNormFunction(torch.autograd.Function):
    """Saves the input and one scale a row, where autograd through the plain formula keeps three copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float, dtype: torch.dtype) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, scale, weight)
        ctx.offset = offset
        return (wide * scale * (weight.to(wide.dtype) + offset)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        gradient = gradients[0].to(scale.dtype)
        normalized = x.to(scale.dtype) * scale
        weighted = gradient * (weight.to(scale.dtype) + ctx.offset)
        along = (weighted * normalized).mean(-1, keepdim=True)
        to_x = ((weighted - normalized * along) * scale).to(x.dtype)
        to_weight = (gradient * normalized).flatten(0, -1 - weight.dim()).sum(0).to(weight.dtype)
        return to_x, to_weight, None, None, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, zero_centered: bool, kernels: Kernels) -> Tensor:
    """Normalize the last dimension of ``x``; computed in fp32 (or fp64), returned in ``x``'s or autocast's type."""
    offset = 1.0 if zero_centered else 0.0
    if takes_triton(kernels, x, WIDEST):
        return in_compute_type(triton_rms_norm(x, weight, epsilon, zero_centered))
    if kernels == "reference":
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        return in_compute_type((wide * scale * (weight.to(wide.dtype) + offset)).to(x.dtype))
    dtype = in_compute_type(x[..., :0]).dtype
    result: Tensor = _RMSNormFunction.apply(x, weight, epsilon, offset, dtype)
    return result


class RMSNorm(nn.Module):
    """One weight a channel; ``weight`` has shape (channels,). Each of ``groups`` of channels has a scale of its own."""

    def __init__(self, channels: int, epsilon: float, zero_centered: bool, kernels: Kernels, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.epsilon = epsilon
        self.zero_centered = zero_centered
        self.kernels = kernels
        self.weight = nn.Parameter(torch.zeros(channels) if zero_centered else torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return rms_norm(x, self.weight, self.epsilon, self.zero_centered, self.kernels)
        grouped, weight = x.unflatten(-1, (self.groups, -1)), self.weight.view(self.groups, -1)
        # The Triton kernel reads one row of weights.
        kernels: Kernels = "reference" if self.kernels == "reference" else "eager"
        return rms_norm(grouped, weight, self.epsilon, self.zero_centered, kernels).flatten(-2)


class LayerNorm(nn.Module):
    """Weight and optional bias of shape (channels,); computed in fp32 (or fp64)."""

    def __init__(self, channels: int, epsilon: float, bias: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return in_compute_type(F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon))


def stream_norm(context: BuildContext, channels: int | None = None) -> nn.Module:
    """The model's kind of norm over the residual stream (or over ``channels``)."""
    norm = context.norm
    width = channels if channels is not None else context.hidden_size
    if isinstance(norm, components.RMSNorm):
        return RMSNorm(width, norm.epsilon, norm.zero_centered, context.kernels)
    return LayerNorm(width, norm.epsilon, norm.bias)


def inner_norm(context: BuildContext, channels: int) -> RMSNorm:
    """An RMSNorm inside a mixer (queries, keys, latents, time steps) with the model's epsilon."""
    norm = context.norm
    zero_centered = isinstance(norm, components.RMSNorm) and norm.zero_centered
    return RMSNorm(channels, norm.epsilon, zero_centered, context.kernels)
