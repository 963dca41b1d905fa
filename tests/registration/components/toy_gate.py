"""A sequence mixer that no model has: each channel's running sum, scaled by a low-rank gate of the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from planner.components.base import CacheEntry, Component, Operation, SavedTensor, Tensor, linear, projection
from planner.quantities import Quantity


class ToyGate(Component):
    """``up(down(x)) * cumulative sum of x * decay``."""

    component: ClassVar[str] = "toy_gate"
    widths: ClassVar[tuple[str, ...]] = ("rank",)
    symbols: ClassVar[dict[str, str]] = {"rank": "r"}

    kind: Literal["toy_gate"] = "toy_gate"
    rank: int = Field(gt=0)

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        yield from linear("down_proj", self.component, self.rank, hidden_size)
        yield from linear("up_proj", self.component, hidden_size, self.rank)
        yield Tensor("decay", (hidden_size,), self.component, dtype_class="float32")

    def buffers(self, hidden_size: Quantity) -> Iterator[Tensor]:
        yield Tensor("seen", (1,), self.component, dtype_class="float32")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        yield projection("down", self.component, tokens, hidden_size, self.rank)
        yield projection("up", self.component, tokens, self.rank, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("narrow", tokens * self.rank)
        yield SavedTensor("gate", tokens * hidden_size)
        yield SavedTensor("sums, and sums times decay", tokens * 2 * hidden_size)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("sum", (hidden_size,), grows=False)
