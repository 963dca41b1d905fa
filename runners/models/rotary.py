"""Rotary positions (Su et al. 2021, arXiv:2104.09864) with the two halves of a head as real and imaginary parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runners.models.context import Kernels


def rotation(positions: Tensor, channels: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (positions, channels), of ``positions`` (positions,) for ``channels`` rotated channels."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, channels, 2, device=positions.device, dtype=wide) / channels
    angles = positions.to(wide)[:, None] * (theta**-exponents)[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the first channels of ``x`` (…, positions, head_dim); the rest pass unchanged."""
    channels = cosine.shape[-1]
    turned = x[..., :channels] if channels < x.shape[-1] else x
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine + torch.cat((-second, first), dim=-1) * sine
    return joined(turned, x[..., channels:]) if channels < x.shape[-1] else turned


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Channels of two tensors (batch, heads, positions, …) side by side, laid out positions before heads.

    Fused attention lays its output out as its queries, and positions before heads is what the output projection reads.
    """
    if first.dim() < 4:
        return torch.cat((first, second), dim=-1)
    return torch.cat((first.transpose(1, 2), second.transpose(1, 2)), dim=-1).transpose(1, 2)


class _Rotation(torch.autograd.Function):
    """Saves nothing: the backward pass turns by the same angles the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int, channels: int, theta: float) -> Tensor:
        ctx.turn = start, channels, theta
        positions = torch.arange(start, start + x.shape[-2], device=x.device)
        return rotate(x, *rotation(positions, channels, theta, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        start, channels, theta = ctx.turn
        gradient = gradients[0]
        positions = torch.arange(start, start + gradient.shape[-2], device=gradient.device)
        cosine, sine = rotation(positions, channels, theta, gradient.dtype)
        return rotate(gradient, cosine, -sine), None, None, None


def rotate_from(x: Tensor, start: int, channels: int, theta: float, kernels: Kernels) -> Tensor:
    """Rotate the first ``channels`` of ``x`` (…, positions, head_dim), whose first position is ``start``."""
    if channels == 0:
        return x
    if kernels == "reference":
        positions = torch.arange(start, start + x.shape[-2], device=x.device)
        return rotate(x, *rotation(positions, channels, theta, x.dtype))
    result: Tensor = _Rotation.apply(x, start, channels, theta)
    return result
