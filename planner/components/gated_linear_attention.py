"""Gated linear attention (Yang et al. 2023, arXiv:2312.06635): a state whose channels fall as each token says.

The state S of a head, (key_head_dim, value_head_dim), is ``S = diag(a) S + k v^T`` at each position, with decays a from
the input through a projection of low rank, ``a = sigmoid(z) ** (1 / gate_logit_normalizer)`` (section 4.4). It is
advanced by whole chunks, in which decays only ever stand as differences of logarithms (section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

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
    refuse,
    split_by_heads,
)
from planner.components.narrowing import eights, nearest_heads, stepped
from planner.quantities import Quantity, ceiling_divide, smallest


class GatedLinearAttention(Component):
    """Queries, keys and values, a state with a decay a channel of the keys, a norm a head and an output gate."""

    component: ClassVar[str] = "gated_linear_attention"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ("num_heads",)
    symbols: ClassVar[dict[str, str]] = {
        "num_heads": "n",
        "key_head_dim": "d_k",
        "value_head_dim": "d_v",
        "gate_rank": "r",
        "chunk_size": "q",
    }
    reasons: ClassVar[dict[str, str]] = {
        "num_heads": "the ratio of all heads' channels to the hidden size is kept",
        "key_head_dim": "a multiple of 8",
        "value_head_dim": "the ratio of all heads' channels to the hidden size is kept",
        "gate_rank": "shrinks with the size of a head",
    }

    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_heads",)

    kind: Literal["gated_linear_attention"] = "gated_linear_attention"
    num_heads: int = Field(gt=0)
    key_head_dim: int = Field(gt=0)
    """Of queries and keys; the authors have half of the hidden size in all heads."""
    value_head_dim: int = Field(gt=0)
    gate_rank: int = Field(default=16, gt=0)
    """Width between the two projections of the decays."""
    gate_logit_normalizer: float = Field(default=16.0, gt=0)
    """What the logarithms of the decays are divided by: with more, states keep longer."""
    chunk_size: int = Field(default=64, gt=0)
    """Positions in a chunk, a power of two: inside it the work is quadratic, across chunks linear; no effect on the
    result."""
    norm_epsilon: float | None = Field(default=None, gt=0)
    """Of the norm over each head's output, where it is not that of the model's norms."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chunk_size & (self.chunk_size - 1):
            refuse(
                "chunk_size",
                f"Chunks are halved again and again, and {self.chunk_size} is no power of two.",
                "Choose 32, 64 or 128: the result is the same.",
                "not_a_power_of_two",
            )
        return self

    @property
    def key_size(self) -> Quantity:
        """Channels of all heads' keys, and of their queries."""
        return self.num_heads * self.key_head_dim

    @property
    def value_size(self) -> Quantity:
        """Channels of all heads' values."""
        return self.num_heads * self.value_head_dim

    def describe(self) -> str:
        return f"{self.num_heads:,} heads, keys {self.key_head_dim:,} and values {self.value_head_dim:,} wide"

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        yield from linear("q_proj", self.component, self.key_size, hidden_size, split="columns")
        yield from linear("k_proj", self.component, self.key_size, hidden_size, split="columns")
        yield from linear("v_proj", self.component, self.value_size, hidden_size, split="columns")
        yield from linear("gate_proj", self.component, self.value_size, hidden_size, split="columns")
        yield from linear("decay_a_proj", self.component, self.gate_rank, hidden_size)
        yield from linear("decay_b_proj", self.component, self.key_size, self.gate_rank, True, "columns")
        yield Tensor("norm.weight", (self.value_head_dim,), self.component)
        yield from linear("o_proj", self.component, hidden_size, self.value_size, split="rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        for name, width in (
            ("query projection", self.key_size),
            ("key projection", self.key_size),
            ("value projection", self.value_size),
            ("gate projection", self.value_size),
        ):
            yield projection(name, self.component, tokens, hidden_size, width)
        yield projection("decay projections", self.component, tokens, hidden_size + self.key_size, self.gate_rank)
        # Padded to whole chunks, which the matrix multiplications pay for. Decays of single channels stand between the
        # positions that are multiplied, so that only squares below the diagonal are: half a chunk's, then those of its
        # halves.
        chunk, chunks = self.chunk_size, ceiling_divide(sequence_length, self.chunk_size)
        padded = batch_size * chunks * chunk
        flops = padded * (chunk - 1) * self.key_size
        yield Operation("scores in the chunk", self.component, flops, flops)
        flops = 2 * padded * chunk * self.value_size
        yield Operation("weighted values", self.component, flops, padded * (chunk + 1) * self.value_size)
        # The last chunk's state is not read, and the first chunk has none before it.
        carried = batch_size * (chunks - 1) * chunk
        for name in ("chunk states", "outputs from states"):
            yield projection(name, self.component, carried, self.key_head_dim, self.value_size)
        yield projection("output projection", self.component, tokens, self.value_size, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        keys, values = tokens * self.key_size, tokens * self.value_size
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("queries and keys", 2 * keys)
        yield SavedTensor("values", values)
        yield SavedTensor("decays at low rank", tokens * self.gate_rank)
        yield SavedTensor("decays before the sigmoid", keys)
        yield SavedTensor("logarithms of the decays", keys, "float32")
        yield SavedTensor("attention output", values)
        yield SavedTensor("inverse deviations of the heads", tokens * self.num_heads, "float32")
        yield SavedTensor("gate", values)
        yield SavedTensor("normalized output", values)
        yield SavedTensor("gated output", values)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        saved = self.saved_activations(hidden_size, sequence_length, batch_size)
        return split_by_heads(saved, whole=("decays at low rank",))

    def summed_inside(self) -> tuple[Quantity, Quantity]:
        # Every rank has the low rank of the decays whole; its gradient comes from the heads of all.
        return 0, self.gate_rank

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        made = split_by_heads(self.backward_working_set(hidden_size, sequence_length, batch_size))
        yield BackwardMoment(tuple(made), ready=("o_proj", "norm", "gate_proj"))

    def backward_working_set(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        """What is alive once the chunks are computed again, before their gradients are made.

        By then what was saved after the scan is gone, and its gradients stand in its place.
        """
        chunks = batch_size * ceiling_divide(sequence_length, self.chunk_size)
        squares = chunks * self.chunk_size * self.chunk_size * self.num_heads
        yield SavedTensor("scores in the chunks and their gradient", 2 * squares)
        keys, values = (chunks * self.chunk_size * size for size in (self.key_size, self.value_size))
        yield SavedTensor("scaled queries, queries and keys by chunk", 3 * keys)
        yield SavedTensor("decays summed in the chunks", keys, "float32")
        yield SavedTensor("values by chunk, outputs and gradients in place of saved ones", values)
        is_padded = smallest(1, chunks * self.chunk_size - batch_size * sequence_length)
        yield SavedTensor("keys and values padded to whole chunks", is_padded * (keys + values))
        # All chunks but the last leave a state, and all but the first read one.
        earlier = chunks - batch_size
        carried = earlier * self.chunk_size * self.key_size
        yield SavedTensor("decays from and to the ends of chunks", 2 * carried, "float32")
        yield SavedTensor("those cast", 2 * carried, "copy")
        yield SavedTensor("queries and keys with decays", 2 * carried)
        states = earlier * self.key_size * self.value_head_dim
        yield SavedTensor("states, and gradients of what the chunks add to them", 3 * states, "float32")
        yield SavedTensor("gradients of the states that are read", states)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("state", (self.num_heads, self.key_head_dim, self.value_head_dim), grows=False)

    def narrowed(self, width: float) -> Self:
        key_head_dim, heads = nearest_heads(self.key_head_dim, self.num_heads, 1, self.key_size * width, width)
        return self.model_copy(
            update={
                "num_heads": heads,
                "key_head_dim": key_head_dim,
                "value_head_dim": min(self.value_head_dim, eights(self.value_size * width / heads)),
                "gate_rank": stepped(self.gate_rank, key_head_dim / self.key_head_dim),
            }
        )
