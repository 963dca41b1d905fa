"""Products of two positions' channels that have decayed on the way from one to the other, each channel by its own rate.

No decay is ever divided by: whatever is exponentiated is a difference of logarithms that is not above zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _halves(part: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Of (…, positions, channels) the earlier and the later of each two blocks, (…, pairs, block, channels)."""
    early, late = part.unflatten(-2, (-1, 2, block)).unbind(-3)
    return early, late


def _corners(square: Tensor, block: int) -> Tensor:
    """Where the later of each two blocks meets the earlier one, a view (…, block, block, pairs) of (…, rows, rows)."""
    pairs = square.shape[-1] // (2 * block)
    parts = square.view(*square.shape[:-2], pairs, 2, block, pairs, 2, block)
    return parts[..., 1, :, :, 0, :].diagonal(0, -4, -2)


class _BelowDiagonal(torch.autograd.Function):
    """Keeps its arguments, and makes the decays of each level again in the backward pass."""

    @staticmethod
    def _level(decay: Tensor, block: int, narrow: torch.dtype) -> tuple[Tensor, Tensor]:
        """Decays from the earlier block's positions to its end, and from there to those of the later block."""
        early, late = _halves(decay, block)
        meeting = early[..., -1:, :]
        return torch.exp(meeting - early).to(narrow), torch.exp(late - meeting).to(narrow)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, decay: Tensor, of_keys: bool) -> tuple[Tensor, ...]:
        ctx.save_for_backward(q, k, decay)
        both = (q, k) if of_keys else (q,)
        squares = tuple(q.new_zeros(*q.shape[:-1], q.shape[-2]) for _ in both)
        block = 1
        while block < q.shape[-2]:
            to_meeting, from_meeting = _BelowDiagonal._level(decay, block, q.dtype)
            right = (_halves(k, block)[0] * to_meeting).transpose(-1, -2)
            for square, rows in zip(squares, both, strict=True):
                left = _halves(rows, block)[1] * from_meeting
                _corners(square, block).copy_((left @ right).movedim(-3, -1))
            block *= 2
        return squares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        q, k, decay = ctx.saved_tensors
        made = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(decay)
        block = 1
        while block < q.shape[-2]:
            to_meeting, from_meeting = _BelowDiagonal._level(decay, block, q.dtype)
            (_, q_late), (k_early, k_late) = _halves(made[0], block), _halves(made[1], block)
            decay_early, decay_late = _halves(made[2], block)
            right = _halves(k, block)[0] * to_meeting
            of_right = torch.zeros_like(right)
            # Without likenesses of keys there is a gradient less.
            for gradient, rows, of_rows in zip(gradients, (q, k), (q_late, k_late), strict=False):
                left = _halves(rows, block)[1] * from_meeting
                corner = _corners(gradient.contiguous(), block).movedim(-1, -3)
                of_left = corner @ right
                of_right += corner.transpose(-1, -2) @ left
                of_rows += of_left * from_meeting
                of_exponent = of_left * left
                decay_late += of_exponent
                decay_early[..., -1, :] -= of_exponent.sum(-2)
            k_early += of_right * to_meeting
            of_exponent = of_right * right
            decay_early -= of_exponent
            decay_early[..., -1, :] += of_exponent.sum(-2)
            block *= 2
        return *made, None


def below_diagonal(q: Tensor, k: Tensor, decay: Tensor, of_keys: bool) -> tuple[Tensor, ...]:
    """``sum_d rows[i, d] k[j, d] exp(decay[i, d] - decay[j, d])`` for j < i, else zero, with q as rows, and
    ``of_keys`` with k as well.

    q, k and decay (…, positions, channels), positions a power of two and decay falling with them. Of each two
    neighbouring blocks, the later one's rows meet the earlier one's keys in a product, both with their decays from or
    to where the blocks meet: no exponent is above zero, however harsh the decays are. Blocks double from single
    positions on.
    """
    made: tuple[Tensor, ...] = _BelowDiagonal.apply(q, k, decay, of_keys)
    return made
