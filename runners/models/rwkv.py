"""RWKV-4's time mix and channel mix, the twins of :mod:`planner.components.rwkv`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.mlp import activated, gated

NOTHING = -1e38
"""Exponent of an empty sum: finite, so that differences of two are numbers."""


def decayed_sums(rate: Tensor, exponents: Tensor, values: tuple[Tensor, ...], backwards: bool = False) -> None:
    """Sums over i up to t of ``exp((t - i) rate + exponents[i]) values[i]``, in place: over dimension 1 of tensors
    (batch, positions, channels), each ``exp(exponents[t]) values[t]``; ``rate`` (channels) is negative.

    ``backwards``: over i from t on. Spans of one, two, four … positions are joined two by two, so the number of steps
    is the logarithm of the number of positions (Hillis & Steele 1986, DOI 10.1145/7902.7903).
    """
    span = 1
    while span < exponents.shape[1]:
        to, of = slice(span, None), slice(None, -span)
        _join(span * rate, exponents, values, *((of, to) if backwards else (to, of)))
        span *= 2


def _join(rate: Tensor, exponents: Tensor, values: tuple[Tensor, ...], to: slice, of: slice) -> None:
    """Add to the sums at positions ``to`` those at ``of``, which have fallen by ``rate``, in place."""
    reaching = exponents[:, of] + rate
    highest = torch.maximum(exponents[:, to], reaching)
    share = reaching.sub_(highest).exp_()
    own = (exponents[:, to] - highest).exp_()
    for value in values:
        added = share * value[:, of]  # before the positions that it overlaps change
        value[:, to].mul_(own).add_(added)
        del added
    exponents[:, to] = highest


def _quotients(
    key: Tensor, value: Tensor, bonus: Tensor, before: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, and of their quotients the exponent, the position's own part of the denominator, and the denominator.

    All in the type of ``bonus``; ``before`` are the exponents, numerators and denominators that the positions before
    have summed up to.
    """
    exponents, numerators, denominators = before
    own = key + bonus
    highest = torch.maximum(exponents, own)
    share = (exponents - highest).exp_()
    own = own.sub_(highest).exp_()
    denominator = share * denominators + own
    return share.mul_(numerators).add_(own * value).div_(denominator), highest, own, denominator


def _sums_before(rate: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the positions before each one have summed up to, from the beginning of a sequence."""
    exponents, numerators = (F.pad(part[:, :-1], (0, 0, 1, 0)).to(rate.dtype) for part in (key, value))
    denominators = torch.ones_like(exponents)
    exponents[:, 0], denominators[:, 0] = NOTHING, 0
    decayed_sums(rate, exponents, (numerators, denominators))
    return exponents, numerators, denominators


class _WeightedValues(torch.autograd.Function):
    """Saves keys and values; the backward pass computes the sums again."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, time_decay: Tensor, bonus: Tensor) -> Tensor:
        ctx.save_for_backward(key, value, time_decay, bonus)
        before = _sums_before(-torch.exp(time_decay), key, value)
        return _quotients(key, value, bonus, before)[0].to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        key, value, time_decay, bonus = ctx.saved_tensors
        rate = -torch.exp(time_decay)
        before = _sums_before(rate, key, value)
        output, exponents, own, denominator = _quotients(key, value, bonus, before)
        to_numerator = gradients[0].to(bonus.dtype) / denominator
        del denominator
        to_denominator = (to_numerator * output).neg_()
        to_value = own.mul_(to_numerator)
        to_key = to_value * output.neg_().add_(value)
        to_bonus = to_key.sum((0, 1))
        del output
        # Gradients flow back through the sums as the sums flowed on; at t they are now those of all outputs from t on.
        exponents.neg_()
        decayed_sums(rate, exponents, (to_numerator, to_denominator), backwards=True)
        # Of the rate, through what each position handed on of the sums before it. No exponent is above zero here.
        share = (exponents[:, 2:] + before[0][:, 1:-1]).add_(rate).exp_()
        handed_on = to_numerator[:, 2:] * before[1][:, 1:-1] + to_denominator[:, 2:] * before[2][:, 1:-1]
        to_rate = handed_on.mul_(share).sum((0, 1))
        del before, handed_on
        share = (exponents[:, 1:] + key[:, :-1]).exp_()
        del exponents
        to_value[:, :-1] += share * to_numerator[:, 1:]
        to_key[:, :-1] += to_numerator[:, 1:].mul_(value[:, :-1]).add_(to_denominator[:, 1:]).mul_(share)
        return to_key.to(key.dtype), to_value.to(value.dtype), to_rate * rate, to_bonus


def weighted_values(key: Tensor, value: Tensor, time_decay: Tensor, bonus: Tensor) -> Tensor:
    """Averages of the values up to each position, weighted by ``exp(key)`` and the distance (equation 16).

    key and value (batch, positions, channels); the weights fall by ``exp(-exp(time_decay))`` a position, and that of
    the position itself has the factor ``exp(bonus)``; both (channels). Computed in the type of ``bonus``.
    """
    result: Tensor = _WeightedValues.apply(key, value, time_decay, bonus)
    return result


class ShiftCache:
    """The last input (batch, hidden_size), and of a time mix its sums and their exponent (batch, 3, channels)."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors


class _Shifted(nn.Module):
    """What both mixes share: mixtures of each position with the one before, with a weight a channel each."""

    component: components.RWKVTimeMix | components.RWKVChannelMix

    def __init__(self, hidden_size: int, mixed: tuple[str, ...]) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.mixed = mixed
        for name in mixed:
            self.register_parameter(f"time_mix_{name}", nn.Parameter(torch.empty(1, 1, hidden_size)))

    @torch.no_grad()
    def reset_special(self) -> None:
        """Weights of the present position rise from channel to channel, as in RWKV-4's first layer."""
        for name in self.mixed:
            weight = self.get_parameter(f"time_mix_{name}")
            weight.copy_((torch.arange(self.hidden_size) / self.hidden_size).expand_as(weight))

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> ShiftCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.hidden_size, context_length)
        return ShiftCache(empty_cache(entries, batch_size, device, dtype))

    def mixtures(self, x: Tensor, cache: ShiftCache | None) -> tuple[Tensor, ...]:
        """The mixtures of x (batch, positions, hidden_size), whose last position the cache then holds."""
        if cache is None:
            shifted = F.pad(x, (0, 0, 1, -1))
        else:
            shifted = torch.cat((cache.tensors[0][:, None].to(x.dtype), x[:, :-1]), 1)
            cache.tensors[0].copy_(x[:, -1].detach())
        difference = x - shifted
        weights = (self.get_parameter(f"time_mix_{name}").to(x.dtype) for name in self.mixed)
        return tuple(shifted + difference * weight for weight in weights)


class RWKVTimeMix(_Shifted):
    """The time mix over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.RWKVTimeMix, context: BuildContext) -> None:
        super().__init__(context.hidden_size, ("key", "value", "receptance"))
        self.component = component
        self.kernels = context.kernels
        hidden, width = context.hidden_size, component.attention_hidden_size
        self.k_proj = nn.Linear(hidden, width, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.receptance_proj = nn.Linear(hidden, width, bias=False)
        self.time_decay = nn.Parameter(torch.empty(width))
        self.time_first = nn.Parameter(torch.empty(width))
        self.o_proj = nn.Linear(width, hidden, bias=False)

    @torch.no_grad()
    def reset_special(self) -> None:
        """Decays from slow to fast over the channels, and bonuses in a zigzag, as in RWKV-4's first layer."""
        super().reset_special()
        width = len(self.time_decay)
        channels = torch.arange(width)
        self.time_decay.copy_(8 * (channels / max(1, width - 1)) ** 0.7 - 5)
        self.time_first.copy_(math.log(0.3) + 0.5 * ((channels + 1) % 3 - 1))

    def forward(self, x: Tensor, cache: ShiftCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        for_key, for_value, for_receptance = self.mixtures(x, cache)
        key, value, receptance = self.k_proj(for_key), self.v_proj(for_value), self.receptance_proj(for_receptance)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        time_decay, bonus = self.time_decay.to(wide), self.time_first.to(wide)
        if cache is None:
            mixed = weighted_values(key, value, time_decay, bonus)
        else:
            parts = key.to(wide), value.to(wide), time_decay, bonus
            mixed = self._continued(*parts, cache.tensors[1], start == 0).to(value.dtype)
        return self.o_proj(gated(receptance, mixed, "sigmoid", self.kernels))

    @torch.no_grad()
    def _continued(
        self, key: Tensor, value: Tensor, time_decay: Tensor, bonus: Tensor, state: Tensor, at_beginning: bool
    ) -> Tensor:
        """Outputs that go on from the sums of the cache, which become those after the last position."""
        rate = -torch.exp(time_decay)
        first = list(state.to(key.dtype)[:, :, None].unbind(1))
        if at_beginning:
            first = [torch.full_like(first[0], NOTHING), torch.zeros_like(first[1]), torch.zeros_like(first[2])]
        own = (key, value, torch.ones_like(key))
        # The sums before each position, and after the last one.
        exponents, numerators, denominators = (torch.cat(parts, 1) for parts in zip(first, own, strict=True))
        decayed_sums(rate, exponents, (numerators, denominators))
        before = exponents[:, :-1], numerators[:, :-1], denominators[:, :-1]
        mixed = _quotients(key, value, bonus, before)[0]
        # A rounded exponent is made up for by the sums.
        exponent = exponents[:, -1].to(state.dtype)
        share = torch.exp(exponents[:, -1] - exponent)
        state.copy_(torch.stack((exponent, numerators[:, -1] * share, denominators[:, -1] * share), 1))
        return mixed


class RWKVChannelMix(_Shifted):
    """The channel mix over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.RWKVChannelMix, context: BuildContext) -> None:
        super().__init__(context.hidden_size, ("key", "receptance"))
        self.component = component
        self.kernels = context.kernels
        self.up_proj = nn.Linear(context.hidden_size, component.intermediate_size, bias=False)
        self.receptance_proj = nn.Linear(context.hidden_size, context.hidden_size, bias=False)
        self.down_proj = nn.Linear(component.intermediate_size, context.hidden_size, bias=False)

    def forward(self, x: Tensor, cache: ShiftCache | None = None, start: int = 0) -> Tensor:
        for_key, for_receptance = self.mixtures(in_compute_type(x), cache)
        mixed = self.down_proj(activated(self.up_proj(for_key), "relu_squared", self.kernels))
        return gated(self.receptance_proj(for_receptance), mixed, "sigmoid", self.kernels)
