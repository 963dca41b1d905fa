"""Feed-forward layers, the twin of :mod:`planner.components.mlp`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from planner.components.mlp import Activation
from runners.kernels.choice import takes_triton
from runners.kernels.swiglu import triton_swiglu
from runners.models.context import BuildContext, Kernels, in_compute_type


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


class _GatedFunction(torch.autograd.Function):
    """Saves its two inputs; autograd through the plain formula keeps the activated gate as well."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activate(gate, activation) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            activated = activate(leaf, ctx.activation)
        (to_gate,) = torch.autograd.grad(activated, leaf, gradients[0] * up)
        return to_gate, gradients[0] * activated.detach(), None


def gated(gate: Tensor, up: Tensor, activation: Activation, kernels: Kernels) -> Tensor:
    """``activation(gate) * up``, all of one shape."""
    if activation == "silu" and takes_triton(kernels, gate):
        return triton_swiglu(gate, up)
    if kernels == "reference":
        return activate(gate, activation) * up
    result: Tensor = _GatedFunction.apply(gate, up, activation)
    return result


class FeedForward(nn.Module):
    """Two or three projections through ``width`` channels; also a shared expert."""

    def __init__(
        self, hidden_size: int, width: int, gated: bool, activation: Activation, bias: bool, kernels: Kernels
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.activation = activation
        self.gate_proj = nn.Linear(hidden_size, width, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = in_compute_type(x)
        if self.gate_proj is None:
            return self.down_proj(activate(self.up_proj(x), self.activation))
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x), self.activation, self.kernels))


class MLP(FeedForward):
    """The channel mixer of a dense layer over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.MLP, context: BuildContext) -> None:
        super().__init__(
            context.hidden_size,
            component.intermediate_size,
            component.gated,
            component.activation,
            component.bias,
            context.kernels,
        )
