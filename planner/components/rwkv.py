"""RWKV-4: attention without queries that runs as a recurrence, and an MLP with a gate (Peng et al. 2023,
arXiv:2305.13048). Both read a mixture of each position and the one before it, channel by channel.

A channel of the time mix keeps two sums of the past, of ``exp(k) v`` and of ``exp(k)``, that decay alike; its output is
their quotient (equations 16 to 18). The exponent of both is kept beside them, so that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from planner.components.base import CacheEntry, Component, Operation, SavedTensor, Tensor, linear, projection
from planner.components.dependence import PositionSet, window_before
from planner.quantities import Quantity


class RWKVTimeMix(Component):
    """``out(sigmoid(r) * wkv(k, v))``, where r, k and v are projections of mixtures with the position before."""

    component: ClassVar[str] = "rwkv_time_mix"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ("attention_hidden_size",)
    widths: ClassVar[tuple[str, ...]] = ("attention_hidden_size",)
    symbols: ClassVar[dict[str, str]] = {"attention_hidden_size": "a"}

    kind: Literal["rwkv_time_mix"] = "rwkv_time_mix"
    attention_hidden_size: int = Field(gt=0)
    """Channels of receptances, keys and values."""

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        for name in ("time_mix_key", "time_mix_value", "time_mix_receptance"):
            yield Tensor(name, (1, 1, hidden_size), self.component, is_matrix=False)
        for name in ("k_proj", "v_proj", "receptance_proj"):
            yield from linear(name, self.component, self.attention_hidden_size, hidden_size)
        for name in ("time_decay", "time_first"):
            yield Tensor(name, (self.attention_hidden_size,), self.component, dtype_class="float32")
        yield from linear("o_proj", self.component, hidden_size, self.attention_hidden_size)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens, width = batch_size * sequence_length, self.attention_hidden_size
        for name in ("key projection", "value projection", "receptance projection"):
            yield projection(name, self.component, tokens, hidden_size, width)
        # The sums are elementwise: FlopCounterMode counts matrix multiplications alone.
        yield projection("output projection", self.component, tokens, width, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens, width = batch_size * sequence_length, self.attention_hidden_size
        yield from _saved_by_the_shift(tokens, hidden_size, 3)
        yield SavedTensor("receptances, keys and values", 3 * tokens * width)
        yield SavedTensor("weighted values", tokens * width)
        yield SavedTensor("gated output", tokens * width)

    def backward_working_set(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        # At most while gradients flow back through the sums. What was saved after the sums is gone by then, and the
        # gradients of the receptances and of the output stand in its place.
        channels = batch_size * sequence_length * self.attention_hidden_size
        yield SavedTensor("sums before each position and their exponents", 3 * channels, "float32")
        yield SavedTensor("gradients of the sums and their exponents", 3 * channels, "float32")
        yield SavedTensor("gradients of keys and values", 2 * channels, "float32")
        yield SavedTensor("exponents, shares and products of a step", 4 * channels, "float32")

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (hidden_size,), grows=False)
        yield CacheEntry("state", (3, self.attention_hidden_size), grows=False)


class RWKVChannelMix(Component):
    """``sigmoid(r) * down(relu(up)^2)``, where r and up are projections of mixtures with the position before."""

    component: ClassVar[str] = "rwkv_channel_mix"
    family: ClassVar[str] = "mlp"
    grows: ClassVar[tuple[str, ...] | None] = ("intermediate_size",)
    widths: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    symbols: ClassVar[dict[str, str]] = {"intermediate_size": "f"}

    kind: Literal["rwkv_channel_mix"] = "rwkv_channel_mix"
    intermediate_size: int = Field(gt=0)

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        for name in ("time_mix_key", "time_mix_receptance"):
            yield Tensor(name, (1, 1, hidden_size), self.component, is_matrix=False)
        yield from linear("up_proj", self.component, self.intermediate_size, hidden_size)
        yield from linear("receptance_proj", self.component, hidden_size, hidden_size)
        yield from linear("down_proj", self.component, hidden_size, self.intermediate_size)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens, width = batch_size * sequence_length, self.intermediate_size
        yield projection("up projection", self.component, tokens, hidden_size, width)
        yield projection("receptance projection", self.component, tokens, hidden_size, hidden_size)
        yield projection("down projection", self.component, tokens, width, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield from _saved_by_the_shift(tokens, hidden_size, 2)
        yield SavedTensor("positive part and its square", 2 * tokens * self.intermediate_size)
        yield SavedTensor("receptances and what they gate", 2 * tokens * hidden_size)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (hidden_size,), grows=False)

    def reads(self, chosen: PositionSet) -> PositionSet:
        return window_before(chosen, 2)


def _saved_by_the_shift(tokens: Quantity, hidden_size: Quantity, mixtures: int) -> Iterator[SavedTensor]:
    """What is kept up to the projections of so many mixtures; the input itself is not."""
    yield SavedTensor("differences to the position before", tokens * hidden_size)
    yield SavedTensor("weights of the mixtures", mixtures * hidden_size, "copy")
    yield SavedTensor("mixtures with the position before", mixtures * tokens * hidden_size)
