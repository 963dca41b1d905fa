"""RMSNorm and LayerNorm, the twins of :mod:`planner.components.norms`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.kernels.choice import takes_triton
from runners.kernels.rms_norm import WIDEST, triton_rms_norm
from runners.models.context import BuildContext, Kernels, in_compute_type, plain_will_do


class _RMSNormFunction(torch.autograd.Function):
    """Saves the input and one scale a row, where autograd through the plain formula keeps three copies."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float, offset: float, dtype: torch.dtype
    ) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(length.square_() / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, scale, weight)
        ctx.offset = offset
        normalized = wide * scale
        return (normalized if weight is None else normalized.mul_(weight.to(wide.dtype) + offset)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        gradient = gradients[0].to(scale.dtype)
        normalized = x.to(scale.dtype) * scale
        # In place: memory that is made anew costs more than the arithmetic.
        product, to_weight = gradient * normalized, None
        if weight is not None:
            to_weight = product.flatten(0, -1 - weight.dim()).sum(0).to(weight.dtype)
            factors = weight.to(scale.dtype) + ctx.offset
            along = product.mul_(factors).mean(-1, keepdim=True)
            weighted = torch.mul(gradient, factors, out=product)
        else:
            along = product.mean(-1, keepdim=True)
            weighted = product.copy_(gradient)
        to_x = weighted.sub_(normalized.mul_(along)).mul_(scale).to(x.dtype)
        return to_x, to_weight, None, None, None


def rms_norm(
    x: Tensor, weight: Tensor | None, epsilon: float, zero_centered: bool, kernels: Kernels, keeps_type: bool = False
) -> Tensor:
    """Normalize the last dimension of ``x``; computed in fp32 (or fp64), returned in ``x``'s or autocast's type.

    Without a weight PyTorch computes it: the Triton kernel reads one. ``keeps_type``: in ``x``'s type under autocast
    too, as what stays on the residual stream must be.
    """
    offset = 1.0 if zero_centered else 0.0
    if weight is not None and takes_triton(kernels, x, WIDEST):
        scaled = triton_rms_norm(x, weight, epsilon, zero_centered)
        return scaled if keeps_type else in_compute_type(scaled)
    if plain_will_do(kernels):
        wide = x if x.dtype == torch.float64 else x.float()
        factors = None if weight is None else weight.to(wide.dtype)
        if zero_centered and factors is not None:
            factors = factors + offset
        if kernels != "reference" and factors is not None and factors.dim() == 1:
            normalized = F.rms_norm(wide, factors.shape, factors, epsilon)
        else:
            normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
            normalized = normalized if factors is None else normalized * factors
        return normalized.to(x.dtype) if keeps_type else in_compute_type(normalized.to(x.dtype))
    dtype = x.dtype if keeps_type else in_compute_type(x[..., :0]).dtype
    result: Tensor = _RMSNormFunction.apply(x, weight, epsilon, offset, dtype)
    return result


class RMSNorm(nn.Module):
    """One weight a channel (or none); ``weight`` has shape (channels,). Each of ``groups`` of channels has a scale of
    its own."""

    def __init__(
        self,
        channels: int,
        epsilon: float,
        zero_centered: bool,
        kernels: Kernels,
        groups: int = 1,
        has_weight: bool = True,
        keeps_type: bool = False,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.keeps_type = keeps_type
        self.epsilon = epsilon
        self.zero_centered = zero_centered
        self.kernels = kernels
        self.weight = (
            nn.Parameter(torch.zeros(channels) if zero_centered else torch.ones(channels)) if has_weight else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return rms_norm(x, self.weight, self.epsilon, self.zero_centered, self.kernels, self.keeps_type)
        grouped = x.unflatten(-1, (self.groups, -1))
        weight = None if self.weight is None else self.weight.view(self.groups, -1)
        # The Triton kernel reads one row of weights.
        kernels: Kernels = "reference" if self.kernels == "reference" else "eager"
        return rms_norm(grouped, weight, self.epsilon, self.zero_centered, kernels, self.keeps_type).flatten(-2)


class _ZeroCenteredLayerNormFunction(torch.autograd.Function):
    """Saves what PyTorch's own does; autograd through it would keep the weight plus one as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, dtype: torch.dtype) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(x, mean, scale, weight)
        ctx.has_bias = bias is not None
        scaled = (wide - mean) * scale * (weight.to(wide.dtype) + 1.0)
        return (scaled if bias is None else scaled + bias).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        gradient = gradients[0].to(scale.dtype)
        normalized = (x.to(scale.dtype) - mean) * scale
        weighted = gradient * (weight.to(scale.dtype) + 1.0)
        along = (weighted * normalized).mean(-1, keepdim=True)
        to_x = ((weighted - weighted.mean(-1, keepdim=True) - normalized * along) * scale).to(x.dtype)
        to_weight = (gradient * normalized).flatten(0, -2).sum(0).to(weight.dtype)
        to_bias = gradient.flatten(0, -2).sum(0).to(weight.dtype) if ctx.has_bias else None
        return to_x, to_weight, to_bias, None, None


class LayerNorm(nn.Module):
    """Optional weight and bias of shape (channels,); computed in fp32 (or fp64)."""

    def __init__(
        self,
        channels: int,
        epsilon: float,
        bias: bool,
        has_weight: bool = True,
        keeps_type: bool = False,
        zero_centered: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.epsilon = epsilon
        self.keeps_type = keeps_type
        self.zero_centered = zero_centered
        self.weight = (
            nn.Parameter(torch.zeros(channels) if zero_centered else torch.ones(channels)) if has_weight else None
        )
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.zero_centered:
            dtype = x.dtype if self.keeps_type else in_compute_type(x[..., :0]).dtype
            result: Tensor = _ZeroCenteredLayerNormFunction.apply(x, self.weight, self.bias, self.epsilon, dtype)
            return result
        normalized = F.layer_norm(x, (self.channels,), self.weight, self.bias, self.epsilon)
        return normalized.to(x.dtype) if self.keeps_type else in_compute_type(normalized)


def stream_norm(context: BuildContext, keeps_type: bool = False) -> nn.Module:
    """The model's kind of norm over the residual stream; ``keeps_type`` where its result stays on the stream."""
    norm, width = context.norm, context.hidden_size
    if isinstance(norm, components.RMSNorm):
        return RMSNorm(
            width,
            norm.epsilon,
            norm.zero_centered,
            context.kernels,
            has_weight=norm.has_weight,
            keeps_type=keeps_type,
        )
    return LayerNorm(width, norm.epsilon, norm.bias, norm.has_weight, keeps_type, norm.zero_centered)


def inner_norm(context: BuildContext, channels: int, epsilon: float | None = None, has_weight: bool = True) -> RMSNorm:
    """An RMSNorm inside a mixer (queries, keys, latents, time steps); where no epsilon is given, with the model's."""
    norm = context.norm
    zero_centered = isinstance(norm, components.RMSNorm) and norm.zero_centered
    if epsilon is None:
        epsilon = norm.epsilon
    return RMSNorm(channels, epsilon, zero_centered, context.kernels, has_weight=has_weight)
