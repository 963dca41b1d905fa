"""Kimi Delta Attention, the twin of :mod:`planner.components.kimi_delta_attention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.delta_rule import from_chunk_to_chunk, unit, unit_lower_inverse
from runners.models.mamba1 import ConvolutionFilter, StateCache, initial_step_bias
from runners.models.mlp import activated, gated
from runners.models.norms import RMSNorm
from runners.models.recompute import recomputed

SLOWEST_DECAY, FASTEST_DECAY = 1.0, 16.0
"""Decay rates at initialization, uniform."""


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
    def forward(ctx: Any, q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, decay)
        squares = tuple(q.new_zeros(*q.shape[:-1], q.shape[-2]) for _ in range(2))
        block = 1
        while block < q.shape[-2]:
            to_meeting, from_meeting = _BelowDiagonal._level(decay, block, q.dtype)
            right = (_halves(k, block)[0] * to_meeting).transpose(-1, -2)
            for square, rows in zip(squares, (k, q), strict=True):
                left = _halves(rows, block)[1] * from_meeting
                _corners(square, block).copy_((left @ right).movedim(-3, -1))
            block *= 2
        return squares[0], squares[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        q, k, decay = ctx.saved_tensors
        made = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(decay)
        block = 1
        while block < q.shape[-2]:
            to_meeting, from_meeting = _BelowDiagonal._level(decay, block, q.dtype)
            (_, q_late), (k_early, k_late) = _halves(made[0], block), _halves(made[1], block)
            decay_early, decay_late = _halves(made[2], block)
            right = _halves(k, block)[0] * to_meeting
            of_right = torch.zeros_like(right)
            for gradient, rows, of_rows in zip(gradients, (k, q), (k_late, q_late), strict=True):
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
        return made


def below_diagonal(q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_d rows[i, d] k[j, d] exp(decay[i, d] - decay[j, d])`` for j < i, else zero, with k and with q as rows.

    q, k and decay (…, positions, channels), positions a power of two and decay falling with them. Of each two
    neighbouring blocks, the later one's rows meet the earlier one's keys in a product, both with their decays from or
    to where the blocks meet: no exponent is above zero, however harsh the decays are. Blocks double from single
    positions on.
    """
    made: tuple[Tensor, Tensor] = _BelowDiagonal.apply(q, k, decay)
    return made


def chunked_channel_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, chunk: int, initial: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Outputs like ``v``, and from an ``initial`` state also the state after the last position.

    q and k (batch, positions, heads, head_dim), made vectors of length one here; v (batch, positions, heads, head_dim);
    decay, the logarithms of a, like k; beta (batch, positions, heads); initial (batch, heads, head_dim, head_dim).
    Decays and systems are computed in the type of ``decay``, products in that of ``v``. Positions are padded to whole
    chunks; without decay and correction a position changes no state.
    """
    length, wide, narrow = v.shape[1], decay.dtype, v.dtype
    q, k = unit(q, wide) * k.shape[-1] ** -0.5, unit(k, wide)
    missing = -length % chunk
    if missing:
        q, k, v, decay = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (q, k, v, decay))
        beta = F.pad(beta, (0, 0, 0, missing))
    chunks = (length + missing) // chunk

    def in_chunks(part: Tensor) -> Tensor:
        """(batch, chunks, heads, chunk, …)."""
        return part.unflatten(1, (chunks, chunk)).transpose(2, 3)

    q, k, v, beta = in_chunks(q), in_chunks(k), in_chunks(v), in_chunks(beta).to(wide)
    decay = in_chunks(decay).cumsum(-2)

    # What each position writes of its own value, and what it takes away of what the state before the chunk foresees.
    likeness, scores = below_diagonal(q, k, decay)
    scores = scores + torch.diag_embed((q * k).sum(-1))
    correction = (unit_lower_inverse(likeness.to(wide) * beta[..., None]) * beta[..., None, :]).to(narrow)
    written = correction @ v

    y, state = from_chunk_to_chunk(q, k, scores, correction, written, decay, initial)
    y = y.transpose(2, 3).flatten(1, 2)
    return y[:, :length].clone() if missing else y, state


def recomputed_channel_delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, chunk: int) -> Tensor:
    """The outputs of :func:`chunked_channel_delta`, with nothing kept for the backward pass but the arguments."""
    return recomputed(
        lambda q, k, v, decay, beta: chunked_channel_delta(q, k, v, decay, beta, chunk)[0], q, k, v, decay, beta
    )


def channel_delta_step(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """One position from a state; shapes as in :func:`chunked_channel_delta` with one position, in the state's type."""
    q, k = (unit(part, initial.dtype)[:, 0] for part in (q, k))
    state = initial * torch.exp(decay[:, 0])[..., None]
    error = (v[:, 0] - (k[..., None, :] @ state)[..., 0, :]) * beta[:, 0, :, None]
    state = state + k[..., None] * error[..., None, :]
    return (q[..., None, :] @ state)[..., 0, :][:, None] * k.shape[-1] ** -0.5, state


class KimiDeltaAttention(nn.Module):
    """The delta rule with decays of single channels over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.KimiDeltaAttention, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        hidden, width, rank = context.hidden_size, component.width, component.gate_rank
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj = nn.Linear(hidden, width, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.conv1d = ConvolutionFilter(3 * width, component.conv_kernel, False)
        self.decay_a_proj = nn.Linear(hidden, rank, bias=False)
        self.decay_b_proj = nn.Linear(rank, width, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(width))
        self.A_log = nn.Parameter(torch.zeros(1, 1, component.num_heads, 1))
        self.beta_proj = nn.Linear(hidden, component.num_heads, bias=False)
        self.gate_a_proj = nn.Linear(hidden, rank, bias=False)
        self.gate_b_proj = nn.Linear(rank, width, bias=False)
        epsilon = context.norm.epsilon if component.norm_epsilon is None else component.norm_epsilon
        self.norm = RMSNorm(component.head_dim, epsilon, False, context.kernels)
        self.o_proj = nn.Linear(width, hidden, bias=False)

    def reset_special(self) -> None:
        """The initialization that time steps and decays need."""
        self.conv1d.reset_parameters()
        with torch.no_grad():
            self.dt_bias.copy_(initial_step_bias(self.component.width))
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(SLOWEST_DECAY, FASTEST_DECAY).log())

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> StateCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.o_proj.out_features, context_length)
        return StateCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: StateCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        heads = component.num_heads
        mixed = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        mixed = activated(self.conv1d(mixed, cache), component.activation, self.kernels)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.chunk(3, -1))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        step = F.softplus(self.decay_b_proj(self.decay_a_proj(x)).to(wide) + self.dt_bias.to(wide))
        decay = -torch.exp(self.A_log.to(wide)) * step.unflatten(-1, (heads, -1))
        beta = torch.sigmoid(self.beta_proj(x))
        if cache is not None:
            held = cache.state.to(wide)
            parts = (q.to(wide), k.to(wide), v.to(wide), decay, beta.to(wide))
            last: Tensor | None
            if x.shape[1] == 1:
                y, last = channel_delta_step(*parts, held)
            else:
                y, last = chunked_channel_delta(*parts, component.chunk_size, held)
            assert last is not None
            cache.state.copy_(last)
            y = y.to(v.dtype)
        elif self.kernels == "reference":
            y, _ = chunked_channel_delta(q, k, v, decay, beta, component.chunk_size)
        else:
            y = recomputed_channel_delta(q, k, v, decay, beta, component.chunk_size)
        gate = self.gate_b_proj(self.gate_a_proj(x)).view_as(y)
        return self.o_proj(gated(gate, self.norm(y), "sigmoid", self.kernels).flatten(2))
