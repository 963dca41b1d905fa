"""The recurrent block of Griffin, the twin of :mod:`planner.components.rg_lru`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.mamba1 import ConvolutionFilter, StateCache
from runners.models.mlp import gated

SHARPNESS = 8.0
"""The constant c that the recurrence gate's exponent is multiplied with (arXiv:2402.19427, section 2.4)."""
SLOWEST, FASTEST = 0.999, 0.9
"""Decays of a channel at initialization where its gate is open, uniform (section 2.4)."""
LARGEST_SLOPE = 1000.0
"""Bound on the derivative of the root in the input's factor, which has none at a decay of one."""


def recur(decay: Tensor, states: Tensor, backwards: bool = False) -> Tensor:
    """States h[t] = decay[t] h[t-1] + states[t] over dimension 1 of (batch, positions, channels), both in place.

    ``backwards``: h[t] = decay[t] h[t+1] + states[t]. Spans of one, two, four … positions are joined two by two, so the
    number of steps is the logarithm of the number of positions (Hillis & Steele 1986, DOI 10.1145/7902.7903).
    """
    span = 1
    while span < decay.shape[1]:
        to, of = slice(span, None), slice(None, -span)
        if backwards:
            to, of = of, to
        states[:, to] += decay[:, to] * states[:, of]
        decay[:, to] *= decay[:, of].clone()
        span *= 2
    return states


def _opened(gate: Tensor, decay: Tensor) -> Tensor:
    """A gate after its sigmoid, in the type of ``decay``."""
    return gate.to(decay.dtype, copy=True).sigmoid_()


def _rates(recurrence_gate: Tensor, decay: Tensor, at_beginning: bool) -> tuple[Tensor, Tensor]:
    """Decays a[t] and factors sqrt(1 - a[t]^2) of the inputs, in the type of ``decay``.

    What is ``at_beginning`` has no state before it: its first position enters whole.
    """
    logarithm = -SHARPNESS * F.softplus(decay) * _opened(recurrence_gate, decay)
    factor = torch.expm1(2 * logarithm).neg_().sqrt_()
    if at_beginning:
        factor[:, 0] = 1
    return logarithm.exp_(), factor


class _RecurrenceFunction(torch.autograd.Function):
    """Saves what enters; the backward pass computes gates and states again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, decay: Tensor) -> Tensor:
        ctx.save_for_backward(x, input_gate, recurrence_gate, decay)
        rates, factor = _rates(recurrence_gate, decay, True)
        return recur(rates, factor.mul_(_opened(input_gate, decay)).mul_(x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        x, input_gate, recurrence_gate, decay = ctx.saved_tensors
        rates, factor = _rates(recurrence_gate, decay, True)
        states = recur(rates.clone(), factor * _opened(input_gate, decay) * x)
        # Gradients flow back through the states as the states flowed on: s[t] = g[t] + a[t+1] s[t+1].
        to_states = gradients[0].to(decay.dtype, copy=True)
        recur(F.pad(rates[:, 1:], (0, 0, 0, 1)), to_states, backwards=True)
        # Of the logarithms of the decays: through the states before, and through the factors of the inputs.
        to_logarithm = F.pad(to_states[:, 1:] * states[:, :-1], (0, 0, 1, 0)).mul_(rates)
        del states
        opened = _opened(input_gate, decay)
        through_factor = (to_states * opened).mul_(x).mul_(rates.square_())
        del rates
        through_factor[:, 0] = 0
        to_logarithm -= through_factor.div_(factor.clamp_min(1 / (2 * LARGEST_SLOPE)))
        del through_factor
        to_x = to_states.mul_(factor).mul_(opened)
        to_input_gate = (to_x * x).mul_(1 - opened).to(input_gate.dtype)
        to_x = to_x.to(x.dtype)
        del factor, opened, to_states
        opened = _opened(recurrence_gate, decay)
        to_open = to_logarithm.mul_(-SHARPNESS)
        to_decay = (to_open * opened).sum((0, 1)) * torch.sigmoid(decay)
        to_recurrence_gate = to_open.mul_(F.softplus(decay)).mul_(opened).mul_(1 - opened)
        return to_x, to_input_gate, to_recurrence_gate.to(recurrence_gate.dtype), to_decay


def recurrence(x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, decay: Tensor) -> Tensor:
    """The RG-LRU's states like x (batch, positions, channels), of gates before their sigmoids and ``decay`` (channels).

    Computed in the type of ``decay``, from the beginning of a sequence.
    """
    result: Tensor = _RecurrenceFunction.apply(x, input_gate, recurrence_gate, decay)
    return result


class BlockDiagonal(nn.Module):
    """A projection of each head's channels by themselves: weight (heads, inputs, outputs), bias (heads, outputs)."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, size, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))

    @torch.no_grad()
    def reset_special(self) -> None:
        """Biases start at zero, though they have two dimensions."""
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        by_head = x.view(-1, *self.bias.shape).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], by_head, self.weight).transpose(0, 1).reshape(x.shape)


class RGLRU(nn.Module):
    """The recurrent block over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.RGLRU, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        width, bias = component.width, component.use_bias
        self.gate_proj = nn.Linear(context.hidden_size, width, bias=bias)
        self.in_proj = nn.Linear(context.hidden_size, width, bias=bias)
        self.conv1d = ConvolutionFilter(width, component.conv_kernel, component.use_conv_bias, context.kernels)
        self.input_gate = BlockDiagonal(component.num_heads, component.head_dim)
        self.recurrence_gate = BlockDiagonal(component.num_heads, component.head_dim)
        self.decay = nn.Parameter(torch.zeros(width))
        self.out_proj = nn.Linear(width, context.hidden_size, bias=bias)

    def reset_special(self) -> None:
        """The initialization that the filter and the decays need."""
        self.conv1d.reset_parameters()
        with torch.no_grad():
            decays = torch.empty_like(self.decay).uniform_(FASTEST, SLOWEST)
            self.decay.copy_(torch.log(torch.expm1(-torch.log(decays) / SHARPNESS)))

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> StateCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.out_proj.out_features, context_length)
        return StateCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: StateCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        gate = self.gate_proj(x)
        inputs = self.conv1d(self.in_proj(x), cache)
        decay = self.decay.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        parts = inputs, self.input_gate(inputs), self.recurrence_gate(inputs), decay
        if cache is None:
            states = recurrence(*parts)
        else:
            states = self._continued(*parts, cache, start == 0)
        return self.out_proj(gated(gate, states, self.component.activation, self.kernels))

    @torch.no_grad()
    def _continued(
        self,
        x: Tensor,
        input_gate: Tensor,
        recurrence_gate: Tensor,
        decay: Tensor,
        cache: StateCache,
        at_beginning: bool,
    ) -> Tensor:
        """States that go on from the cached one, which becomes the last of them."""
        rates, factor = _rates(recurrence_gate, decay, at_beginning)
        entering = factor * _opened(input_gate, decay) * x
        entering[:, 0] += rates[:, 0] * cache.state
        states = recur(rates, entering)
        cache.state.copy_(states[:, -1])
        return states.to(x.dtype)
