"""The gated short convolution, the twin of :mod:`planner.components.short_convolution`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.mamba1 import ConvolutionFilter


class ConvolutionCache:
    """The last inputs of the convolution, (batch, channels, taps)."""

    def __init__(self, convolution: Tensor) -> None:
        self.convolution = convolution

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return (self.convolution,)


class ShortConvolution(nn.Module):
    """A convolution between two gates over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.ShortConvolution, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        width, bias = context.hidden_size, component.use_bias
        self.in_proj = nn.Linear(width, 3 * width, bias=bias)
        self.conv1d = ConvolutionFilter(width, component.conv_kernel, bias, context.kernels)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def reset_special(self) -> None:
        """The initialization of the filter."""
        self.conv1d.reset_parameters()

    def new_cache(
        self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype
    ) -> ConvolutionCache:
        """An empty cache with the shape that the planner counts."""
        entries = self.component.cache(self.out_proj.out_features, context_length)
        return ConvolutionCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: ConvolutionCache | None = None, start: int = 0) -> Tensor:
        before, after, inputs = self.in_proj(in_compute_type(x)).chunk(3, dim=-1)
        mixed: Tensor = self.out_proj(after * self.conv1d(before * inputs, cache))
        return mixed
