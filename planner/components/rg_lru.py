"""The recurrent block of Griffin: a short convolution and a gated linear recurrence (De et al. 2024, arXiv:2402.19427).

Each channel of the RG-LRU has one state, ``h = a h + sqrt(1 - a^2) i x`` at each position (equations 1 to 4), where the
decay a and the input gate i follow from the input, head by head; the first position enters with factor one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field

from planner.components.base import (
    BackwardMoment,
    CacheEntry,
    Component,
    Computation,
    Operation,
    SavedTensor,
    Tensor,
    linear,
    projection,
)
from planner.components.mlp import Pointwise
from planner.components.narrowing import nearest_heads
from planner.quantities import Quantity


class RGLRU(Component):
    """``out(activation(gate(x)) * recurrence(conv(in(x))))``; the recurrence has ``num_heads * head_dim`` channels."""

    component: ClassVar[str] = "rg_lru"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ("num_heads",)
    symbols: ClassVar[dict[str, str]] = {"num_heads": "n_r", "head_dim": "d_r", "conv_kernel": "k"}
    reasons: ClassVar[dict[str, str]] = {
        "num_heads": "the ratio of all heads' channels to the hidden size is kept",
        "head_dim": "a multiple of 8",
    }

    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_heads",)
    """Griffin's gates have a block a head, so that no device needs another's channels (arXiv:2402.19427, section 4)."""

    kind: Literal["rg_lru"] = "rg_lru"
    num_heads: int = Field(gt=0)
    """Blocks of the block-diagonal matrices that make the two gates."""
    head_dim: int = Field(gt=0)
    """Channels of a block."""
    conv_kernel: int = Field(default=4, gt=0)
    activation: Pointwise = "gelu_tanh"
    """Of the branch that gates the recurrence's output."""
    use_bias: bool = True
    """Of the projections into and out of both branches."""
    use_conv_bias: bool = True

    @property
    def width(self) -> Quantity:
        """Channels of the recurrence."""
        return self.num_heads * self.head_dim

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        heads, size = self.num_heads, self.head_dim
        yield from linear("gate_proj", self.component, self.width, hidden_size, self.use_bias, "columns")
        yield from linear("in_proj", self.component, self.width, hidden_size, self.use_bias, "columns")
        yield Tensor("conv1d.weight", (self.width, 1, self.conv_kernel), self.component, split="columns")
        if self.use_conv_bias:
            yield Tensor("conv1d.bias", (self.width,), self.component, split="columns")
        for gate in ("input_gate", "recurrence_gate"):
            yield Tensor(f"{gate}.weight", (heads, size, size), self.component, split="columns")
            yield Tensor(f"{gate}.bias", (heads, size), self.component, is_matrix=False, split="columns")
        yield Tensor("decay", (self.width,), self.component, dtype_class="float32", split="columns")
        yield from linear("out_proj", self.component, hidden_size, self.width, self.use_bias, "rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        yield projection("gate projection", self.component, tokens, hidden_size, self.width)
        yield projection("input projection", self.component, tokens, hidden_size, self.width)
        # The recurrence and the convolution are elementwise: FlopCounterMode counts matrix multiplications alone.
        for name in ("input gate", "recurrence gate"):
            yield projection(name, self.component, tokens, self.head_dim, self.width)
        yield projection("output projection", self.component, tokens, self.width, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("gate", tokens * self.width)
        padded = batch_size * (sequence_length + self.conv_kernel - 1) * self.width
        yield SavedTensor("padded convolution input", padded)
        yield SavedTensor("convolution filter", self.width * self.conv_kernel, "copy")
        yield SavedTensor("convolution output", tokens * self.width)
        yield SavedTensor("input and recurrence gates before their sigmoids", 2 * tokens * self.width)
        yield SavedTensor("recurrence output", tokens * self.width)
        yield SavedTensor("gated output", tokens * self.width)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        return self.kept_by_heads(hidden_size, sequence_length, batch_size)

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        return self.made_by_heads(hidden_size, sequence_length, batch_size)

    def backward_working_set(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        # At most while the gradients of the recurrence's gates are made. What was saved after the recurrence is gone
        # by then, and the gradients of both branches stand in its place.
        tokens = batch_size * sequence_length
        yield SavedTensor(
            "decays, factors, input gates and gradients of the states", 4 * tokens * self.width, "float32"
        )
        yield SavedTensor("gradients through states and through factors", 2 * tokens * self.width, "float32")

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (self.width, self.conv_kernel), grows=False)
        yield CacheEntry("state", (self.width,), grows=False)

    def narrowed(self, width: float) -> Self:
        size, heads = nearest_heads(self.head_dim, self.num_heads, 1, self.width * width, width)
        return self.model_copy(update={"num_heads": heads, "head_dim": size})
