"""Lightning attention, the twin of :mod:`planner.components.lightning_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.decayed_sum import decayed_sum, decays_between
from runners.models.mlp import activated, gated
from runners.models.norms import RMSNorm

EPSILON = 1e-5
"""Keeps the rates of the last layer above zero, and those of a single layer finite."""


def decay_rates(heads: int, layer: int, num_layers: int, slower_with_depth: bool) -> Tensor:
    """The rate of each head (heads), in float64: the logarithm of what a state keeps of itself, negated."""
    rates = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, dtype=torch.float64))
    return rates * (1 - layer / (num_layers - 1 + EPSILON) + EPSILON) if slower_with_depth else rates


def chunked_decay(
    q: Tensor, k: Tensor, v: Tensor, rates: Tensor, chunk: int, initial: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Outputs like ``v``, and from an ``initial`` state also the state after the last position.

    q, k and v (batch, positions, heads, head_dim); rates (heads); initial (batch, heads, head_dim, head_dim). Decays
    are computed in the type of ``rates``, products in that of ``v``, states carried in the type of ``rates``.
    """
    length, wide, narrow = v.shape[1], rates.dtype, v.dtype
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:
        q, k, v = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (q, k, v))
    chunks = (length + missing) // chunk
    q, k, v = (
        part.unflatten(1, (chunks, chunk)).transpose(2, 3) for part in (q, k, v)
    )  # (batch, chunks, heads, chunk, …)

    places = torch.arange(chunk, device=v.device, dtype=wide)
    y = (q @ k.transpose(-1, -2)).mul_(decays_between(rates, chunk, narrow)) @ v

    # What each chunk adds to the state, and what the later ones read of it. The last one ends with the sequence.
    first, last = (1, chunks - 1) if initial is None else (0, chunks)
    carried = initial
    if chunks > first:
        ends = torch.full((last,), chunk - 1, device=v.device, dtype=wide)
        if last == chunks:
            ends[-1] -= missing
        to_end = torch.exp(-rates[:, None] * (ends[:, None, None] - places).clamp(min=0))[..., None].to(narrow)
        left = ((k[:, :last] * to_end).transpose(-1, -2) @ v[:, :last]).to(wide).unbind(1)
        across = torch.exp(-rates * (ends[:, None] + 1))[..., None, None]
        before = [] if carried is None else [carried.to(wide)]
        for index in range(last):
            before.append(before[-1] * across[index] + left[index] if before else left[index])
        carried = before[-1]
        read = torch.stack(before[: chunks - first], 1).to(narrow)
        from_start = torch.exp(-rates[:, None] * (places + 1))[..., None].to(narrow)
        later = (q[:, first:] * from_start) @ read
        y = torch.cat((y[:, :first], y[:, first:] + later), 1) if first else y + later
    y = y.transpose(2, 3).flatten(1, 2)
    return (y[:, :length].clone() if missing else y), carried


def decay_step(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """One position from a state; shapes as in :func:`chunked_decay` with one position."""
    state = initial * torch.exp(-rates)[:, None, None] + k[:, 0, ..., None] * v[:, 0, :, None, :]
    return (q[:, 0, :, None, :] @ state)[..., 0, :][:, None], state


class DecayCache:
    """The state of each head, (batch, heads, head_dim, head_dim)."""

    def __init__(self, state: Tensor) -> None:
        self.state = state

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return (self.state,)


class LightningAttention(nn.Module):
    """Linear attention with given decays over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.LightningAttention, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        self.place = context.layer, context.num_layers
        hidden, width = context.hidden_size, component.width
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj = nn.Linear(hidden, width, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        epsilon = context.norm.epsilon if component.norm_epsilon is None else component.norm_epsilon
        self.norm = RMSNorm(width, epsilon, False, context.kernels)
        self.o_proj = nn.Linear(width, hidden, bias=False)

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> DecayCache:
        """An empty cache with the shape that the planner counts."""
        entries = self.component.cache(self.o_proj.out_features, context_length)
        return DecayCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: DecayCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        q, k, v = (
            activated(made(x), component.activation, self.kernels).unflatten(-1, (component.num_attention_heads, -1))
            for made in (self.q_proj, self.k_proj, self.v_proj)
        )
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        rates = decay_rates(component.num_attention_heads, *self.place, component.slower_with_depth)
        rates = rates.to(device=x.device, dtype=wide)
        if cache is not None:
            held = cache.state.to(wide)
            parts = (q.to(wide), k.to(wide), v.to(wide), rates)
            last: Tensor | None
            if x.shape[1] == 1:
                y, last = decay_step(*parts, held)
            else:
                y, last = chunked_decay(*parts, component.chunk_size, held)
            assert last is not None
            cache.state.copy_(last)
            y = y.to(v.dtype)
        elif self.kernels == "reference":
            y, _ = chunked_decay(q, k, v, rates, component.chunk_size)
        else:
            y = decayed_sum(q, k, v, rates, component.chunk_size)
        return self.o_proj(gated(self.gate_proj(x), self.norm(y.flatten(2)), "sigmoid", self.kernels))
