"""Kimi Delta Attention, the twin of :mod:`planner.components.kimi_delta_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.channel_decay import below_diagonal
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.delta_rule import from_chunk_to_chunk, unit, unit_lower_inverse
from runners.models.mamba1 import ConvolutionFilter, StateCache, initial_step_bias
from runners.models.mlp import activated, gated
from runners.models.norms import RMSNorm
from runners.models.recompute import recomputed

SLOWEST_DECAY, FASTEST_DECAY = 1.0, 16.0
"""Decay rates at initialization, uniform."""


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
    scores, likeness = below_diagonal(q, k, decay, True)
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
        self.conv1d = ConvolutionFilter(3 * width, component.conv_kernel, False, context.kernels)
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
