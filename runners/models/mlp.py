"""Feed-forward layers, the twin of :mod:`planner.components.mlp`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from planner.components.mlp import Activation
from runners.models.context import BuildContext


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply a nonlinearity by the name that specifications use."""
    match activation:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "relu_squared":
            return F.relu(x).square()


class FeedForward(nn.Module):
    """Two or three projections through ``width`` channels; also a shared expert."""

    def __init__(self, hidden_size: int, width: int, gated: bool, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(hidden_size, width, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(activate(self.up_proj(x), self.activation))
        return self.down_proj(activate(self.gate_proj(x), self.activation) * self.up_proj(x))


class MLP(FeedForward):
    """The channel mixer of a dense layer over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.MLP, context: BuildContext) -> None:
        super().__init__(
            context.hidden_size, component.intermediate_size, component.gated, component.activation, component.bias
        )
