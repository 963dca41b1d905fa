"""The gated short convolution of LFM2 (Liquid AI 2025, arXiv:2511.23404, section 2; ``LiquidAI/LFM2-1.2B``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from planner.components.base import CacheEntry, Component, Operation, SavedTensor, Tensor, linear, projection
from planner.components.dependence import PositionSet, window_before
from planner.quantities import Quantity


class ShortConvolution(Component):
    """``out(C * conv(B * x))``: one projection gives the gates B and C and the input x, all as wide as the stream."""

    component: ClassVar[str] = "short_convolution"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ()
    symbols: ClassVar[dict[str, str]] = {"conv_kernel": "k"}

    kind: Literal["short_convolution"] = "short_convolution"
    conv_kernel: int = Field(default=3, gt=0)
    """Positions that the causal filter of each channel reads, its own included."""
    use_bias: bool = False
    """Of both projections and of the convolution."""

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        yield from linear("in_proj", self.component, 3 * hidden_size, hidden_size, self.use_bias)
        yield Tensor("conv1d.weight", (hidden_size, 1, self.conv_kernel), self.component)
        if self.use_bias:
            yield Tensor("conv1d.bias", (hidden_size,), self.component)
        yield from linear("out_proj", self.component, hidden_size, hidden_size, self.use_bias)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        # The convolution is elementwise: FlopCounterMode counts matrix multiplications alone.
        yield projection("input projection", self.component, tokens, hidden_size, 3 * hidden_size)
        yield projection("output projection", self.component, tokens, hidden_size, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("projected gates and input", tokens * 3 * hidden_size)
        padded = batch_size * (sequence_length + self.conv_kernel - 1) * hidden_size
        yield SavedTensor("padded convolution input", padded)
        yield SavedTensor("convolution filter", hidden_size * self.conv_kernel, "copy")
        yield SavedTensor("convolution output", tokens * hidden_size)
        yield SavedTensor("gated output", tokens * hidden_size)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (hidden_size, self.conv_kernel), grows=False)

    def reads(self, chosen: PositionSet) -> PositionSet:
        return window_before(chosen, self.conv_kernel)
