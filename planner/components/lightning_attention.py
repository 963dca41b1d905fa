"""Lightning attention (Qin et al. 2024, arXiv:2401.04658; MiniMax-01, arXiv:2501.08313, section 2.2).

Linear attention whose state S of a head, (head_dim, head_dim), is ``S = exp(-r) S + k v^T`` at each position, with a
rate r that is given, not learned: that of head h of n is ``2 ** (-8 h / n)``. It is computed by whole chunks.
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
    split_by_heads,
)
from planner.components.mlp import READ_FROM_RESULT, Pointwise
from planner.components.narrowing import nearest_heads
from planner.quantities import Quantity, ceiling_divide


class LightningAttention(Component):
    """Activated queries, keys and values, a state that decays at a rate of each head, a norm and an output gate."""

    component: ClassVar[str] = "lightning_attention"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ("num_attention_heads",)
    symbols: ClassVar[dict[str, str]] = {"num_attention_heads": "n_q", "head_dim": "d", "chunk_size": "q"}
    reasons: ClassVar[dict[str, str]] = {
        "num_attention_heads": "the ratio of all heads' channels to the hidden size is kept",
        "head_dim": "a multiple of 8",
    }

    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_attention_heads",)

    kind: Literal["lightning_attention"] = "lightning_attention"
    num_attention_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    """Of queries, keys and values alike."""
    chunk_size: int = Field(default=256, gt=0)
    """Positions in a chunk: inside it the work is quadratic, across chunks linear; no effect on the result."""
    activation: Pointwise = "silu"
    """Of queries, keys and values."""
    slower_with_depth: bool = True
    """Whether the rates fall from layer to layer, by ``1 - l / (L - 1)`` in layer l of L, down to none in the last."""
    norm_epsilon: float | None = Field(default=None, gt=0)
    """Of the norm over all heads' outputs, where it is not that of the model's norms."""

    @property
    def width(self) -> Quantity:
        """Channels of all heads."""
        return self.num_attention_heads * self.head_dim

    def describe(self) -> str:
        return f"{self.num_attention_heads:,} heads, {self.head_dim:,} wide"

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        for name in ("q_proj", "k_proj", "v_proj", "gate_proj"):
            yield from linear(name, self.component, self.width, hidden_size, split="columns")
        yield Tensor("norm.weight", (self.width,), self.component, split="columns")
        yield from linear("o_proj", self.component, hidden_size, self.width, split="rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        for name in ("query projection", "key projection", "value projection", "gate projection"):
            yield projection(name, self.component, tokens, hidden_size, self.width)
        # Padded to whole chunks, which the matrix multiplications pay for.
        chunk, chunks = self.chunk_size, ceiling_divide(sequence_length, self.chunk_size)
        padded = batch_size * chunks * chunk
        for name in ("scores in the chunk", "weighted values"):
            flops = 2 * padded * chunk * self.width
            yield Operation(name, self.component, flops, padded * (chunk + 1) * self.width)
        # The last chunk's state is not read, and the first chunk has none before it.
        carried = batch_size * (chunks - 1) * chunk
        for name in ("chunk states", "outputs from states"):
            yield projection(name, self.component, carried, self.head_dim, self.width)
        yield projection("output projection", self.component, tokens, self.width, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        inner = tokens * self.width
        yield SavedTensor("input", tokens * hidden_size)
        if self.activation not in READ_FROM_RESULT:
            yield SavedTensor("projected queries, keys and values", 3 * inner)
        yield SavedTensor("queries, keys and values", 3 * inner)
        yield SavedTensor("attention output", inner)
        yield SavedTensor("inverse deviations", tokens, "float32")
        yield SavedTensor("gate", inner)
        yield SavedTensor("normalized output", inner)
        yield SavedTensor("gated output", inner)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        saved = self.saved_activations(hidden_size, sequence_length, batch_size)
        return split_by_heads(saved, whole=("inverse deviations",))

    def summed_inside(self) -> tuple[Quantity, Quantity]:
        # The norm goes over all heads: a sum in fp32 is as much as two elements of 16 bits.
        return 2, 2

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        return self.made_by_heads(hidden_size, sequence_length, batch_size)

    def backward_working_set(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        """What is alive once the chunks are computed again, before their gradients are made.

        By then what was saved after the scan is gone, and its gradients stand in its place.
        """
        chunks = batch_size * ceiling_divide(sequence_length, self.chunk_size)
        squares = chunks * self.chunk_size * self.chunk_size * self.num_attention_heads
        yield SavedTensor("weights in the chunks and their gradient", 2 * squares)
        one = self.chunk_size * self.chunk_size * self.num_attention_heads
        yield SavedTensor("decays between positions of a chunk", one)
        inner = chunks * self.chunk_size * self.width
        yield SavedTensor("queries, keys and values by chunk, outputs and gradients in place of saved ones", 6 * inner)
        yield SavedTensor(
            "states of the chunks and their gradients", 4 * chunks * self.width * self.head_dim, "float32"
        )

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("state", (self.num_attention_heads, self.head_dim, self.head_dim), grows=False)

    def narrowed(self, width: float) -> Self:
        head_dim, heads = nearest_heads(self.head_dim, self.num_attention_heads, 1, self.width * width, width)
        return self.model_copy(update={"num_attention_heads": heads, "head_dim": head_dim})
