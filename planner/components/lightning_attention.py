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
from planner.quantities import Quantity, ceiling_divide, floor_divide, largest, rounded_up, smallest

DECAY_TILE = 2**20
"""Pairs of positions, of all heads, that are worked on at a time; a test holds the runners to it."""


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

    def _chunk(self, sequence_length: Quantity) -> Quantity:
        """A sequence that is shorter than a chunk is one of its own length."""
        return smallest(self.chunk_size, sequence_length)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        for name in ("query projection", "key projection", "value projection", "gate projection"):
            yield projection(name, self.component, tokens, hidden_size, self.width)
        # Padded to whole chunks, which the matrix multiplications pay for.
        chunk = self._chunk(sequence_length)
        chunks = ceiling_divide(sequence_length, chunk)
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
        yield SavedTensor("rates of decay", self.num_attention_heads, "float32")
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
        """While the gate and the norm run backward, and while the chunks do (``runners.models.decayed_sum``), inside
        them, where their states are read and where they are carried back."""
        inner = batch_size * sequence_length * self.width
        read_before: tuple[str, ...] = ("gated output",)
        made = SavedTensor("opened gate, what it lets through and gradients", 6 * inner)
        yield BackwardMoment(tuple(split_by_heads(iter((made,)))), read_before, ready=("o_proj",))
        read_before = (*read_before, "gate", "normalized output")
        yield BackwardMoment(tuple(split_by_heads(self._made_by_norm(inner))), read_before, ready=("o_proj",))
        read_before = (*read_before, "attention output", "inverse deviations")
        padded = batch_size * rounded_up(sequence_length, self._chunk(sequence_length))
        for scan in (self._made_inside(sequence_length), *self._made_between(sequence_length, batch_size)):
            of_input = SavedTensor("gradient of the input, by the gate", batch_size * sequence_length * hidden_size)
            around = self._made_around(inner, padded * self.width)
            made_now = (*split_by_heads(iter((*around, *scan))), of_input)
            yield BackwardMoment(made_now, read_before, ready=("o_proj", "norm", "gate_proj"))

    def _made_by_norm(self, inner: Quantity) -> Iterator[SavedTensor]:
        yield SavedTensor("gradients of the gate and of the normalized output", 2 * inner)
        yield SavedTensor("normalized output made again, and its gradient", 2 * inner, "float32")
        yield SavedTensor("the gradient that arrives, widened, and the one that leaves", 3 * inner, "copy")

    def _made_around(self, inner: Quantity, padded: Quantity) -> Iterator[SavedTensor]:
        """What is there as long as the chunks run backward."""
        yield SavedTensor("gradient of the attention output", inner)
        yield SavedTensor("gradients of queries, keys and values", 3 * padded)
        # Copies of what is read, where the last chunk is not full.
        copied = padded * smallest(padded - inner, 1)
        yield SavedTensor("queries, keys, values and the output's gradient, padded", 4 * copied)

    def _made_inside(self, sequence_length: Quantity) -> Iterator[SavedTensor]:
        """A tile is as many chunks of one sequence as have at most ``DECAY_TILE`` pairs of positions, or one."""
        chunk, heads = self._chunk(sequence_length), self.num_attention_heads
        chunks = ceiling_divide(sequence_length, chunk)
        tile = chunk * smallest(chunks, largest(floor_divide(DECAY_TILE, chunk * chunk * heads), 1))
        yield SavedTensor("decays between positions of a chunk", chunk * chunk * heads)
        yield SavedTensor("weights of a tile", tile * chunk * heads)
        yield SavedTensor("of a tile, the output's gradient, two that it meets and a product", 3 * tile * self.width)

    def _made_between(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[tuple[SavedTensor, ...]]:
        """All chunks but the last leave a state, and all but the first read one."""
        chunk = self._chunk(sequence_length)
        earlier = batch_size * (ceiling_divide(sequence_length, chunk) - 1)
        rows, states = earlier * chunk * self.width, earlier * self.width * self.head_dim
        kept = SavedTensor("states, or their gradients", states)
        yield kept, SavedTensor("keys as they decay, gradients and what is read of the states", 3 * rows)
        now = SavedTensor(
            "state as it is carried", smallest(earlier, batch_size) * self.width * self.head_dim, "float32"
        )
        yield kept, now, SavedTensor("keys as they decay", rows)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("state", (self.num_attention_heads, self.head_dim, self.head_dim), grows=False)

    def narrowed(self, width: float) -> Self:
        head_dim, heads = nearest_heads(self.head_dim, self.num_attention_heads, 1, self.width * width, width)
        return self.model_copy(update={"num_attention_heads": heads, "head_dim": head_dim})
