"""Rotary positions (Su et al. 2021, arXiv:2104.09864) with the two halves of a head as real and imaginary parts.

The frequencies may be stretched for longer contexts, the twin of :mod:`planner.components.rotary`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.components.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    YarnScaling,
)
from runners.models.context import Kernels, plain_will_do
from runners.models.places import Places


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the first ``channels`` of a head turn with the position."""

    channels: int
    theta: float
    scaling: RotaryScaling | None = None

    @property
    def attention_factor(self) -> float:
        """Factor on what is rotated."""
        if isinstance(self.scaling, YarnScaling | LongRopeScaling):
            return self.scaling.resulting_attention_factor
        return 1.0

    @property
    def changes_beyond(self) -> int | None:
        """Length of a sequence beyond which its positions turn otherwise, by frequencies that depend on the length."""
        if isinstance(self.scaling, DynamicScaling | LongRopeScaling):
            return self.scaling.original_max_position_embeddings
        return None

    def frequencies(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Radians a position of each pair of channels, (channels / 2,), for a sequence of ``length`` positions.

        Two scalings depend on the length. While generating it grows: what was cached stays as it was rotated, and what
        is new turns by the frequencies of the length so far.
        """
        exponents = torch.arange(0, self.channels, 2, device=device, dtype=dtype) / self.channels
        plain = self.theta**-exponents
        match self.scaling:
            case None:
                return plain
            case LinearScaling(factor=factor):
                return plain / factor
            case DynamicScaling(factor=factor, original_max_position_embeddings=original):
                growth = factor * max(length, original) / original - (factor - 1)
                base: float = self.theta * growth ** (self.channels / (self.channels - 2))
                return base**-exponents
            case YarnScaling():
                return _blended(plain, self.scaling.factor, self._yarn_share(self.scaling, exponents))
            case Llama3Scaling():
                return _blended(plain, self.scaling.factor, _llama3_share(self.scaling, plain))
            case LongRopeScaling():
                is_long = length > self.scaling.original_max_position_embeddings
                factors = self.scaling.long_factor if is_long else self.scaling.short_factor
                return plain / torch.tensor(factors, device=device, dtype=dtype)

    def _yarn_share(self, scaling: YarnScaling, exponents: Tensor) -> Tensor:
        """Share of each frequency that is divided: none for the fast, all for the slow, a ramp between."""

        def pair_of(turns: float) -> float:
            """The pair of channels, a real number, that turns so often within the original context."""
            wavelength = scaling.original_max_position_embeddings / turns
            return self.channels * math.log(wavelength / (2 * math.pi)) / (2 * math.log(self.theta))

        first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.channels - 1)
        width = last - first if last != first else 0.001
        pairs = torch.arange(len(exponents), device=exponents.device, dtype=exponents.dtype)
        return ((pairs - first) / width).clamp(0, 1)

    def angles(self, start: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (count, channels) in the type of ``like``, of ``count`` positions from ``start`` on.

        The sine is negative in the first half, as :func:`rotate` takes it.
        """
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        positions = torch.arange(start, start + count, device=like.device, dtype=wide)
        angles = positions[:, None] * self.frequencies(start + count, like.device, wide)[None, :]
        cosine, sine = angles.cos(), angles.sin()
        factor = self.attention_factor
        if factor != 1.0:
            cosine, sine = cosine * factor, sine * factor
        return torch.cat((cosine, cosine), -1).to(like.dtype), torch.cat((-sine, sine), -1).to(like.dtype)


def _blended(plain: Tensor, factor: float, share: Tensor) -> Tensor:
    """Frequencies of which ``share`` is divided by ``factor``, and the rest stays."""
    return plain / factor * share + plain * (1 - share)


def _llama3_share(scaling: Llama3Scaling, plain: Tensor) -> Tensor:
    """Share of each frequency that is divided, by how often it turns within the original context."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:  # nothing is blended
        return (turns < high).to(turns.dtype)
    return ((high - turns) / (high - low)).clamp(0, 1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the first channels of ``x`` (…, positions, head_dim); the rest pass unchanged."""
    channels = cosine.shape[-1]
    turned = x[..., :channels] if channels < x.shape[-1] else x
    first, second = turned.chunk(2, dim=-1)
    turned = torch.addcmul(turned * cosine, torch.cat((second, first), dim=-1), sine)
    return joined(turned, x[..., channels:]) if channels < x.shape[-1] else turned


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Channels of two tensors (batch, heads, positions, …) side by side, laid out positions before heads.

    Fused attention lays its output out as its queries, and positions before heads is what the output projection reads.
    """
    if first.dim() < 4:
        return torch.cat((first, second), dim=-1)
    return torch.cat((first.transpose(1, 2), second.transpose(1, 2)), dim=-1).transpose(1, 2)


class _Turned(torch.autograd.Function):
    """Saves nothing: the backward pass turns by the same angles the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int, rotation: Rotation) -> Tensor:
        ctx.turn = start, rotation
        return rotate(x, *rotation.angles(start, x.shape[-2], x))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        start, rotation = ctx.turn
        gradient = gradients[0]
        cosine, sine = rotation.angles(start, gradient.shape[-2], gradient)
        return rotate(gradient, cosine, -sine), None, None


def rotated(x: Tensor, places: Places, rotation: Rotation | None, kernels: Kernels) -> Tensor:
    """``x`` (…, positions, head_dim) rotated by its places; without a rotation, ``x`` itself."""
    if rotation is None or rotation.channels == 0:
        return x
    if places.rows:
        each = [rotated(x[row : row + 1], own, rotation, kernels) for row, own in enumerate(places.rows)]
        return torch.cat(each)
    if plain_will_do(kernels):
        angles = places.once((rotation, x.dtype), lambda: rotation.angles(places.start, places.length, x))
        return rotate(x, *angles)
    result: Tensor = _Turned.apply(x, places.start, rotation)
    return result
