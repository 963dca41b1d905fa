"""Mamba-2, the twin of :mod:`planner.components.mamba2`: chunks by matrix products, states carried between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.gated_norm import gated_norm
from runners.models.mamba1 import ConvolutionFilter, StateCache, initial_step_bias
from runners.models.mlp import activated, gated
from runners.models.norms import RMSNorm
from runners.models.state_space_dual import dual, dual_from


def chunked_dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, initial: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """State space dual (Dao & Gu 2024, arXiv:2405.21060, section 6).

    x (batch, positions, heads, head_dim), dt (batch, positions, heads), A (heads,) negative, B and C (batch, positions,
    groups, state), initial (batch, heads, head_dim, state). Returns y like x, and
    from an initial state also the state after the last position. Positions are padded to whole chunks; a step of zero
    length changes no state.
    """
    batch, length, heads, width = x.shape
    groups, state = B.shape[2:]
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:
        x, B, C = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, missing))
    chunks = (length + missing) // chunk

    def heads_of(part: Tensor) -> Tensor:
        """What the heads of a group share, once a head."""
        return part.repeat_interleave(heads // groups, 2)

    dt = dt.view(batch, chunks, chunk, heads).permute(0, 1, 3, 2)  # batch, chunks, heads, chunk
    decay = (dt * A[:, None]).cumsum(-1)
    x = x.view(batch, chunks, chunk, heads, width).transpose(2, 3)
    B = B.view(batch, chunks, chunk, groups, state).transpose(2, 3)
    C = C.view(batch, chunks, chunk, groups, state).transpose(2, 3)
    weighted = x * dt[..., None].to(x.dtype)

    # Inside a chunk: quadratic, like attention with a decaying mask.
    scores = C @ B.transpose(-1, -2)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    between = (decay[..., :, None] - decay[..., None, :]).masked_fill(~causal, float("-inf"))
    mixed = heads_of(scores) * torch.exp(between).to(x.dtype)
    y = mixed @ weighted

    # The state that each chunk leaves, carried from chunk to chunk, and what the later chunks read of it. Nothing comes
    # before the first chunk of a sequence, and nothing is read of the last one's state unless generation goes on.
    first, last = (1, chunks - 1) if initial is None else (0, chunks)
    carried = initial
    if chunks > first:
        to_end = torch.exp(decay[:, :last, :, -1:] - decay[:, :last])
        left = (weighted[:, :last] * to_end[..., None].to(x.dtype)).transpose(-1, -2) @ heads_of(B[:, :last])
        across = torch.exp(decay[:, :last, :, -1])[..., None, None].to(left.dtype)
        before = [] if carried is None else [carried.to(left.dtype)]
        for index in range(last):
            before.append(before[-1] * across[:, index] + left[:, index] if before else left[:, index])
        carried = before[-1]
        read = torch.stack(before[: chunks - first], 1).transpose(-1, -2)
        later = (heads_of(C[:, first:]) * torch.exp(decay[:, first:])[..., None].to(x.dtype)) @ read
        y = torch.cat((y[:, :first], y[:, first:] + later), 1)
    return y.transpose(2, 3).reshape(batch, chunks * chunk, heads, width)[:, :length], carried


def recurrent_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """One position from a state; shapes as in :func:`chunked_dual` with one position."""
    shared = x.shape[2] // B.shape[2]
    B, C = B[:, 0].repeat_interleave(shared, 1), C[:, 0].repeat_interleave(shared, 1)
    decay = torch.exp(dt[:, 0] * A)[..., None, None]
    state = initial * decay + (x[:, 0] * dt[:, 0, :, None])[..., None] * B[..., None, :]
    return (state @ C[..., None])[..., 0][:, None], state


class Mamba2(nn.Module):
    """State space dual with a gated norm over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.Mamba2, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        inner, channels, heads = component.intermediate_size, component.convolution_channels, component.num_heads
        self.in_proj = nn.Linear(context.hidden_size, inner + channels + heads, bias=component.use_bias)
        self.conv1d = ConvolutionFilter(channels, component.conv_kernel, component.use_conv_bias, context.kernels)
        self.dt_bias = nn.Parameter(torch.ones(heads))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, heads + 1, dtype=torch.float32)))
        self.D = nn.Parameter(torch.ones(heads))
        if component.norm:
            groups = component.n_groups if component.norm_groups is None else component.norm_groups
            epsilon = context.norm.epsilon if component.norm_epsilon is None else component.norm_epsilon
            self.norm = RMSNorm(inner, epsilon, False, context.kernels, groups)
        self.out_proj = nn.Linear(inner, context.hidden_size, bias=component.use_bias)

    def reset_special(self) -> None:
        """The initialization that time steps and decays need."""
        self.conv1d.reset_parameters()
        with torch.no_grad():
            self.dt_bias.copy_(initial_step_bias(self.component.num_heads))
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> StateCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.out_proj.out_features, context_length)
        return StateCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: StateCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        batch, length, _ = x.shape
        inner, groups, state = component.intermediate_size, component.n_groups, component.state_size
        gate, mixed, dt = self.in_proj(x).split((inner, component.convolution_channels, component.num_heads), dim=-1)
        if component.projection_multipliers is not None:
            of_gate, *of_mixed, of_steps = component.projection_multipliers
            parts = mixed.split((inner, groups * state, groups * state), dim=-1)
            mixed = torch.cat([part * factor for part, factor in zip(parts, of_mixed, strict=True)], -1)
            gate, dt = gate * of_gate, dt * of_steps
        mixed = activated(self.conv1d(mixed, cache), component.activation, self.kernels)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        if component.clamps_time_steps:
            dt = dt.clamp(component.shortest_time_step, component.longest_time_step)
        A = -torch.exp(self.A_log.to(wide))
        if cache is None and self.kernels != "reference":
            y = dual(mixed, dt, A, self.D.to(wide), groups, state, component.chunk_size)
            return self.out_proj(self._gated(y, gate))
        if cache is not None and length > 1 and self.kernels != "reference":
            steps = mixed.to(wide), dt, A, self.D.to(wide)
            y, last = dual_from(cache.state.to(wide), *steps, groups, state, component.chunk_size)
            cache.state.copy_(last)
            return self.out_proj(self._gated(y.to(x.dtype), gate))
        inputs, B, C = mixed.split((inner, groups * state, groups * state), dim=-1)
        inputs = inputs.view(batch, length, component.num_heads, component.head_dim)
        B, C = B.view(batch, length, groups, state), C.view(batch, length, groups, state)
        if cache is None:
            y, _ = chunked_dual(inputs, dt, A, B, C, component.chunk_size)
        else:
            held = cache.state.to(wide)
            parts = (inputs.to(wide), dt, A, B.to(wide), C.to(wide))
            after: Tensor | None
            if length == 1:
                y, after = recurrent_step(*parts, held)
            else:
                y, after = chunked_dual(*parts, component.chunk_size, held)
            assert after is not None
            cache.state.copy_(after)
        y = (y + self.D.to(wide)[:, None] * inputs).to(inputs.dtype).reshape(batch, length, inner)
        return self.out_proj(self._gated(y, gate))

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """The scan's output through its gate and its norm, in the component's order."""
        if not self.component.norm:
            return gated(gate, y, "silu", self.kernels)
        gates_last = self.component.norm_before_gate
        if self.kernels != "reference":
            assert self.norm.weight is not None
            return gated_norm(y, gate, self.norm.weight, self.norm.epsilon, self.norm.groups, gates_last)
        if gates_last:
            return gated(gate, self.norm(y), "silu", self.kernels)
        return self.norm(gated(gate, y, "silu", self.kernels))
