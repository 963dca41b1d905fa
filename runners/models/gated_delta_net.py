"""Gated DeltaNet, the twin of :mod:`planner.components.gated_delta_net`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.delta_rule import chunked_delta, delta_step, recomputed_delta
from runners.models.mamba1 import ConvolutionFilter, StateCache, initial_step_bias
from runners.models.mlp import activated, gated
from runners.models.norms import RMSNorm

SLOWEST_DECAY, FASTEST_DECAY = 0.01, 16.0
"""Decay rates at initialization, uniform (Mamba-2's, kept away from zero, whose logarithm does not exist)."""


class GatedDeltaNet(nn.Module):
    """The gated delta rule over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.GatedDeltaNet, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        hidden, heads = context.hidden_size, component.num_value_heads
        self.q_proj = nn.Linear(hidden, component.key_size, bias=False)
        self.k_proj = nn.Linear(hidden, component.key_size, bias=False)
        self.v_proj = nn.Linear(hidden, component.value_size, bias=False)
        self.gate_proj = nn.Linear(hidden, component.value_size, bias=False)
        self.beta_proj = nn.Linear(hidden, heads, bias=False)
        self.decay_proj = nn.Linear(hidden, heads, bias=False)
        self.conv1d = ConvolutionFilter(component.convolution_channels, component.conv_kernel, False, context.kernels)
        self.dt_bias = nn.Parameter(torch.ones(heads))
        self.A_log = nn.Parameter(torch.zeros(heads))
        epsilon = context.norm.epsilon if component.norm_epsilon is None else component.norm_epsilon
        self.norm = RMSNorm(component.value_head_dim, epsilon, False, context.kernels)
        self.o_proj = nn.Linear(component.value_size, hidden, bias=False)

    def reset_special(self) -> None:
        """The initialization that time steps and decays need."""
        self.conv1d.reset_parameters()
        with torch.no_grad():
            self.dt_bias.copy_(initial_step_bias(self.component.num_value_heads))
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(SLOWEST_DECAY, FASTEST_DECAY).log())

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> StateCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.o_proj.out_features, context_length)
        return StateCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: StateCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        mixed = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        mixed = activated(self.conv1d(mixed, cache), component.activation, self.kernels)
        q, k, v = mixed.split((component.key_size, component.key_size, component.value_size), -1)
        q, k = (part.unflatten(-1, (component.num_key_heads, -1)) for part in (q, k))
        v = v.unflatten(-1, (component.num_value_heads, -1))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        step = F.softplus(self.decay_proj(x).to(wide) + self.dt_bias.to(wide))
        decay = -torch.exp(self.A_log.to(wide)) * step
        beta = torch.sigmoid(self.beta_proj(x))
        if component.negative_eigenvalues:
            beta = 2 * beta
        if cache is not None:
            held = cache.state.to(wide)
            parts = (q.to(wide), k.to(wide), v.to(wide), decay, beta.to(wide))
            last: Tensor | None
            if x.shape[1] == 1:
                y, last = delta_step(*parts, held)
            else:
                y, last = chunked_delta(*parts, component.chunk_size, held)
            assert last is not None
            cache.state.copy_(last)
            y = y.to(v.dtype)
        elif self.kernels == "reference":
            y, _ = chunked_delta(q, k, v, decay, beta, component.chunk_size)
        else:
            y = recomputed_delta(q, k, v, decay, beta, component.chunk_size)
        gate = self.gate_proj(x).view_as(y)
        return self.o_proj(gated(gate, self.norm(y), component.output_activation, self.kernels).flatten(2))
