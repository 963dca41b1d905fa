"""A SiLU gate and an RMSNorm beside each other, with nothing kept for the backward pass but what both read.

Rows are worked on in tiles that a core's cache holds: memory that is made anew for each step costs more than the
arithmetic, and no tensor of the stream's size is ever whole in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ELEMENTS = 2**18
"""Elements of the stream that are worked on at a time; at least one row. The planner knows it as ``GATE_TILE``."""


def _tiles(x: Tensor) -> Iterator[slice]:
    """Tiles of rows (rows, channels)."""
    together = max(1, TILE_ELEMENTS // x.shape[1])
    return (slice(first, first + together) for first in range(0, x.shape[0], together))


class _GatedNorm(torch.autograd.Function):
    """Over rows (rows, channels) of y and of the gate, and a weight (channels,)."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, epsilon: float, groups: int, gates_last: bool
    ) -> Tensor:
        wide = torch.float64 if y.dtype == torch.float64 else torch.float32
        result, scales = torch.empty_like(y), y.new_empty(y.shape[0], groups, 1, dtype=wide)
        factors = weight.to(wide)
        for rows in _tiles(y):
            opened = F.silu(gate[rows])
            read = y[rows] if gates_last else y[rows] * opened
            grouped = read.to(wide, copy=True).unflatten(-1, (groups, -1))
            length = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True)
            scales[rows] = torch.rsqrt(length.square_() / grouped.shape[-1] + epsilon)
            normed = grouped.mul_(scales[rows]).flatten(-2).mul_(factors)
            result[rows] = normed.mul_(opened) if gates_last else normed
        ctx.save_for_backward(y, gate, scales, weight)
        ctx.gates_last = gates_last
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        y, gate, scales, weight = ctx.saved_tensors
        to_y, to_gate = torch.empty_like(y), torch.empty_like(y)
        to_weight = torch.zeros_like(weight, dtype=scales.dtype)
        for rows in _tiles(y):
            kept, made = (y[rows], gate[rows], scales[rows]), (to_y[rows], to_gate[rows])
            to_weight += _back(kept, gradients[0][rows], made, weight.to(scales.dtype), ctx.gates_last)
        return to_y, to_gate, to_weight.to(weight.dtype), None, None, None


def _back(
    kept: tuple[Tensor, Tensor, Tensor], gradient: Tensor, made: tuple[Tensor, Tensor], weight: Tensor, last: bool
) -> Tensor:
    """Write a tile's gradients of y and of the gate, ``made``; returns that of the weight."""
    (y, gate, scale), (to_y, to_gate) = kept, made
    groups, wide = scale.shape[1], scale.dtype
    factors, opened = weight.view(groups, -1), F.silu(gate)
    read = y if last else y * opened
    x = read.to(wide, copy=True).unflatten(-1, (groups, -1))
    to_opened = gradient * (x * scale).mul_(factors).flatten(-2).to(y.dtype) if last else None
    arriving = (gradient * opened if last else gradient).to(wide, copy=True).unflatten(-1, (groups, -1))
    # Sums over rows and over channels are products with a vector, which read what they sum once.
    product = (arriving * x).transpose(0, 1)
    to_weight = (scale.permute(1, 2, 0) @ product).flatten()
    along = (product @ factors[:, :, None]).transpose(0, 1).mul_(scale.pow(3) / x.shape[-1])
    del product
    to_read = arriving.mul_(factors).mul_(scale).sub_(x.mul_(along)).flatten(-2).to(y.dtype)
    del x
    if to_opened is None:
        torch.mul(to_read, opened, out=to_y)
        to_opened = to_read.mul_(y)
    else:
        to_y.copy_(to_read)
    torch.ops.aten.silu_backward.grad_input(to_opened, gate, grad_input=to_gate)
    return to_weight


def gated_norm(y: Tensor, gate: Tensor, weight: Tensor, epsilon: float, groups: int, gates_last: bool) -> Tensor:
    """``norm(y * silu(gate))`` or, if it ``gates_last``, ``norm(y) * silu(gate)``; all of one shape (…, channels).

    Each of the groups of channels has a scale of its own. Computed in fp32 or fp64, returned in the type of ``y``.
    """
    result: Tensor = _GatedNorm.apply(y.flatten(0, -2), gate.flatten(0, -2), weight, epsilon, groups, gates_last)
    return result.view(y.shape)
