"""Rotary positions (Su et al. 2021, arXiv:2104.09864) with the two halves of a head as real and imaginary parts."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if channels == 0:
        return x
    turned = x[..., :channels] if channels < x.shape[-1] else x
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((turned, x[..., channels:]), dim=-1) if channels < x.shape[-1] else turned
