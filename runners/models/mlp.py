"""Feed-forward layers, the twin of :mod:`planner.components.mlp`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from planner.components.mlp import Activation
from runners.kernels.choice import takes_triton
from runners.kernels.swiglu import triton_swiglu
from runners.models.context import BuildContext, Kernels, in_compute_type

CLAMP, STEEPNESS = 7.0, 1.702
"""Of GPT-OSS's SwiGLU."""


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply a nonlinearity of one argument by the name that specifications use."""
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
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "tanh":
            return torch.tanh(x)
        case "relu6":
            return F.relu6(x)
        case "leaky_relu":
            return F.leaky_relu(x)
        case "mish":
            return F.mish(x)
        case "hardswish":
            return F.hardswish(x)
        case "laplace":  # the normal distribution's; arXiv:2209.10655, section 3.1
            return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))
        case "clipped_gelu":  # within what eight bits hold; arXiv:2004.09602
            return F.gelu(x).clamp(-10.0, 10.0)
        case "sqrt_softplus":
            return F.softplus(x).sqrt()
        case "linear":
            return x
        case "clamped_swiglu":
            raise ValueError("clamped_swiglu reads a gate and an up projection")


class _ActivatedFunction(torch.autograd.Function):
    """Saves its input, where autograd through the plain formula keeps the steps between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return activate(x, activation)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            activated = activate(leaf, ctx.activation)
        return *torch.autograd.grad(activated, leaf, gradients[0]), None


SEVERAL_STEPS = frozenset({"quick_gelu", "laplace", "clipped_gelu", "sqrt_softplus"})
"""Activations of which autograd would keep more than their input."""


def activated(x: Tensor, activation: Activation, kernels: Kernels) -> Tensor:
    """``activation(x)``, with nothing kept for the backward pass but the input or the result."""
    if activation not in SEVERAL_STEPS or kernels == "reference":
        return activate(x, activation)
    result: Tensor = _ActivatedFunction.apply(x, activation)
    return result


def _gate_and_up(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    if activation == "clamped_swiglu":
        gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
        return gate * torch.sigmoid(STEEPNESS * gate) * (up + 1.0)
    return activate(gate, activation) * up


class _GatedFunction(torch.autograd.Function):
    """Saves its two inputs; autograd through the plain formula keeps the activated gate as well."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _gate_and_up(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        leaves = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        with torch.enable_grad():
            product = _gate_and_up(leaves[0], leaves[1], ctx.activation)
        return *torch.autograd.grad(product, leaves, gradients[0]), None


def gated(gate: Tensor, up: Tensor, activation: Activation, kernels: Kernels) -> Tensor:
    """``activation(gate) * up``, or what ``clamped_swiglu`` makes of the two; all of one shape."""
    if activation == "silu" and takes_triton(kernels, gate):
        return triton_swiglu(gate, up)
    if kernels == "reference":
        return _gate_and_up(gate, up, activation)
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
        return self.mixed(in_compute_type(x))

    def mixed(self, x: Tensor, gate_multiplier: float | None = None) -> Tensor:
        """The output, of a gate with a factor where one is given."""
        if self.gate_proj is None:
            mixed: Tensor = self.down_proj(activated(self.up_proj(x), self.activation, self.kernels))
            return mixed
        gate = self.gate_proj(x)
        gate = gate if gate_multiplier is None else gate * gate_multiplier
        mixed = self.down_proj(gated(gate, self.up_proj(x), self.activation, self.kernels))
        return mixed


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
        self.gate_multiplier, self.output_multiplier = component.gate_multiplier, component.output_multiplier

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixed(in_compute_type(x), self.gate_multiplier)
        return mixed if self.output_multiplier is None else mixed * self.output_multiplier
