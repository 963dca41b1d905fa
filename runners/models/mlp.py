"""Feed-forward layers, the twin of :mod:`planner.components.mlp`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from planner.components.mlp import Activation, MLPActivation
from runners.kernels.choice import takes_triton
from runners.kernels.swiglu import triton_swiglu
from runners.models.context import BuildContext, Kernels, in_compute_type, plain_will_do
from runners.models.norms import RMSNorm, inner_norm

CLAMP, STEEPNESS = 7.0, 1.702
"""Of GPT-OSS's SwiGLU."""
LINEAR_PART, NEARLY_ZERO, FIRST_CURVATURE = 0.5, -1e-6, 0.8
"""Of xIELU: its slope at zero, what larger inputs count as below zero, and both curvatures before training."""


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
    if plain_will_do(kernels):
        return _gate_and_up(gate, up, activation)
    result: Tensor = _GatedFunction.apply(gate, up, activation)
    return result


class _XIELUFunction(torch.autograd.Function):
    """Saves its input, where autograd through the plain formula keeps both branches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha_p, alpha_n)
        return xielu(x, alpha_p, alpha_n)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        leaves = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        with torch.enable_grad():
            activated = xielu(*leaves)
        return torch.autograd.grad(activated, leaves, gradients[0])


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
    """``a x² + x/2`` above zero and ``b (exp(x) - 1 - x) + x/2`` below, of ``x``'s type; the parameters are (1,).

    ``a`` is the softplus of ``alpha_p``, and ``b`` that of ``alpha_n`` and a half (arXiv:2411.13010, section 3).
    """
    above, below = F.softplus(alpha_p).to(x.dtype), (LINEAR_PART + F.softplus(alpha_n)).to(x.dtype)
    curved = torch.where(x > 0, above * x * x, below * (torch.expm1(x.clamp(max=NEARLY_ZERO)) - x))
    return curved + LINEAR_PART * x


class XIELU(nn.Module):
    """xIELU with its two parameters, (1,) each."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.alpha_p = nn.Parameter(torch.zeros(1))
        self.alpha_n = nn.Parameter(torch.zeros(1))
        self.reset_special()

    def reset_special(self) -> None:
        """Both curvatures start at 0.8."""
        with torch.no_grad():
            self.alpha_p.fill_(math.log(math.expm1(FIRST_CURVATURE)))
            self.alpha_n.fill_(math.log(math.expm1(FIRST_CURVATURE - LINEAR_PART)))

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels == "reference":
            return xielu(x, self.alpha_p, self.alpha_n)
        result: Tensor = _XIELUFunction.apply(x, self.alpha_p, self.alpha_n)
        return result


class FeedForward(nn.Module):
    """Two or three projections through ``width`` channels; also a shared expert."""

    def __init__(
        self, hidden_size: int, width: int, gated: bool, activation: MLPActivation, bias: bool, kernels: Kernels
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.xielu = XIELU(kernels) if activation == "xielu" else None
        self.activation: Activation = "linear" if activation == "xielu" else activation
        self.gate_proj = nn.Linear(hidden_size, width, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden_size, bias=bias)
        self.sub_norm: RMSNorm | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(in_compute_type(x))

    def mixed(self, x: Tensor, gate_multiplier: float | None = None) -> Tensor:
        """The output, of a gate with a factor where one is given."""
        if self.gate_proj is None:
            up = self.up_proj(x)
            up = activated(up, self.activation, self.kernels) if self.xielu is None else self.xielu(up)
            mixed: Tensor = self.down_proj(up if self.sub_norm is None else self.sub_norm(up))
            return mixed
        gate = self.gate_proj(x)
        gate = gate if gate_multiplier is None else gate * gate_multiplier
        up = gated(gate, self.up_proj(x), self.activation, self.kernels)
        mixed = self.down_proj(up if self.sub_norm is None else self.sub_norm(up))
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
        if component.sub_norm:
            self.sub_norm = inner_norm(context, component.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixed(in_compute_type(x), self.gate_multiplier)
        return mixed if self.output_multiplier is None else mixed * self.output_multiplier
