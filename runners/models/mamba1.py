"""Mamba-1, the twin of :mod:`planner.components.mamba1`."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, Kernels, empty_cache, in_compute_type
from runners.models.convolution import last_inputs, short_convolution
from runners.models.mlp import activated, gated
from runners.models.norms import inner_norm
from runners.models.selective_scan import selective_scan, selective_scan_from

SMALLEST_STEP, LARGEST_STEP = 1e-3, 1e-1
"""Time steps at initialization, log-uniform (Gu & Dao 2023, arXiv:2312.00752, section 3.6)."""


def initial_step_bias(channels: int) -> Tensor:
    """The inverse softplus of log-uniform time steps, (channels,)."""
    low, high = math.log(SMALLEST_STEP), math.log(LARGEST_STEP)
    steps = torch.exp(torch.rand(channels) * (high - low) + low)
    return steps + torch.log(-torch.expm1(-steps))


class StateCache:
    """The last inputs of the convolution and the state."""

    def __init__(self, convolution: Tensor, state: Tensor) -> None:
        self.convolution, self.state = convolution, state

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return self.convolution, self.state


class HoldsInputs(Protocol):
    """A cache with the last inputs of a convolution, (batch, channels, taps)."""

    convolution: Tensor


class ConvolutionFilter(nn.Module):
    """The filter of the short convolution: weight (channels, 1, taps), bias (channels,)."""

    def __init__(self, channels: int, taps: int, bias: bool, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within the root of the number of taps, as PyTorch's convolutions start."""
        bound = self.weight.shape[-1] ** -0.5
        self.weight.uniform_(-bound, bound)

    def forward(self, x: Tensor, cache: HoldsInputs | None) -> Tensor:
        taps = self.weight.shape[-1]
        if cache is None:
            return short_convolution(x, self.weight, self.bias, self.kernels)
        before = cache.convolution[..., 1:].transpose(1, 2) if taps > 1 else x[:, :0]
        mixed = short_convolution(x, self.weight, self.bias, self.kernels, before)
        cache.convolution.copy_(last_inputs(cache.convolution, x))
        return mixed


class Mamba1(nn.Module):
    """Gated selective scan over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.Mamba1, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        inner, state, rank = component.intermediate_size, component.state_size, component.time_step_rank
        self.in_proj = nn.Linear(context.hidden_size, 2 * inner, bias=component.use_bias)
        self.conv1d = ConvolutionFilter(inner, component.conv_kernel, component.use_conv_bias, context.kernels)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        if component.parameter_norms:
            epsilon, has_weight = component.parameter_norm_epsilon, component.parameter_norm_weights
            self.dt_norm = inner_norm(context, rank, epsilon, has_weight)
            self.b_norm = inner_norm(context, state, epsilon, has_weight)
            self.c_norm = inner_norm(context, state, epsilon, has_weight)
        self.out_proj = nn.Linear(inner, context.hidden_size, bias=component.use_bias)

    def reset_special(self) -> None:
        """The initialization that the time steps need."""
        self.conv1d.reset_parameters()
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.component.time_step_rank**-0.5), self.component.time_step_rank**-0.5)
            self.dt_proj.bias.copy_(initial_step_bias(self.component.intermediate_size))

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> StateCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.out_proj.out_features, context_length)
        return StateCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: StateCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        inputs, gate = self.in_proj(x).chunk(2, dim=-1)
        inputs = activated(self.conv1d(inputs, cache), component.activation, self.kernels)
        rank, state = component.time_step_rank, component.state_size
        dt, B, C = self.x_proj(inputs).split((rank, state, state), dim=-1)
        if component.parameter_norms:
            dt, B, C = self.dt_norm(dt), self.b_norm(B), self.c_norm(C)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        dt = F.softplus(F.linear(dt, self.dt_proj.weight).to(wide) + self.dt_proj.bias.to(wide))
        A = -torch.exp(self.A_log.to(wide))
        if cache is None:
            y = selective_scan(inputs, dt, A, B, C, component.chunk_size)
        else:
            parts = (inputs.to(wide), dt, A, B.to(wide), C.to(wide))
            y, last = selective_scan_from(cache.state.to(wide), *parts, component.chunk_size)
            cache.state.copy_(last)
        y = (y + self.D.to(wide) * inputs).to(inputs.dtype)
        return self.out_proj(gated(gate, y, "silu", self.kernels))
