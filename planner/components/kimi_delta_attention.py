"""Kimi Delta Attention: the gated delta rule with a decay for every channel of the keys (arXiv:2510.26692, section 3).

The state S of a head, (head_dim, head_dim), is ``S = (I - b k k^T) diag(a) S + b k v^T`` at each position, with decays
a and a strength b of the correction. Decays and the output gate come from projections of low rank.
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
from planner.components.mlp import READ_FROM_RESULT, Pointwise
from planner.components.narrowing import nearest_heads, stepped
from planner.quantities import Quantity, ceiling_divide


class KimiDeltaAttention(Component):
    """Queries, keys and values through a short convolution, the delta rule, a norm a head and an output gate."""

    component: ClassVar[str] = "kimi_delta_attention"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ("num_heads",)
    symbols: ClassVar[dict[str, str]] = {
        "num_heads": "n",
        "head_dim": "d",
        "gate_rank": "r",
        "conv_kernel": "k",
        "chunk_size": "q",
    }
    reasons: ClassVar[dict[str, str]] = {
        "num_heads": "the ratio of all heads' channels to the hidden size is kept",
        "head_dim": "a multiple of 8",
        "gate_rank": "shrinks with the size of a head",
    }

    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_heads",)

    kind: Literal["kimi_delta_attention"] = "kimi_delta_attention"
    num_heads: int = Field(gt=0)
    head_dim: int = Field(default=128, gt=0)
    """Of queries, keys and values alike."""
    gate_rank: int = Field(default=128, gt=0)
    """Width between the two projections of the decays, and between those of the output gate."""
    conv_kernel: int = Field(default=4, gt=0)
    chunk_size: int = Field(default=64, gt=0)
    """Positions in a chunk, a power of two: inside it the work is quadratic, across chunks linear; no effect on the
    result."""
    activation: Pointwise = "silu"
    """After the convolution."""
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
    def width(self) -> Quantity:
        """Channels of all heads."""
        return self.num_heads * self.head_dim

    def describe(self) -> str:
        return f"{self.num_heads:,} heads, {self.head_dim:,} wide"

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from linear(name, self.component, self.width, hidden_size, split="columns")
        yield Tensor("conv1d.weight", (3 * self.width, 1, self.conv_kernel), self.component, split="columns")
        yield from linear("decay_a_proj", self.component, self.gate_rank, hidden_size)
        yield from linear("decay_b_proj", self.component, self.width, self.gate_rank, split="columns")
        yield Tensor("dt_bias", (self.width,), self.component, dtype_class="float32", split="columns")
        # The dimensions of one channel are those of published weights.
        decays = (1, 1, self.num_heads, 1)
        yield Tensor("A_log", decays, self.component, dtype_class="float32", is_matrix=False, split="columns")
        yield from linear("beta_proj", self.component, self.num_heads, hidden_size, split="columns")
        yield from linear("gate_a_proj", self.component, self.gate_rank, hidden_size)
        yield from linear("gate_b_proj", self.component, self.width, self.gate_rank, split="columns")
        yield Tensor("norm.weight", (self.head_dim,), self.component)
        yield from linear("o_proj", self.component, hidden_size, self.width, split="rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        for name in ("query projection", "key projection", "value projection"):
            yield projection(name, self.component, tokens, hidden_size, self.width)
        for name in ("decay projections", "gate projections"):
            both = hidden_size + self.width
            yield projection(name, self.component, tokens, both, self.gate_rank)
        yield projection("strength projection", self.component, tokens, hidden_size, self.num_heads)
        # Padded to whole chunks, which the matrix multiplications pay for. Decays of single channels stand between the
        # positions that are multiplied, so that only squares below the diagonal are: half a chunk's, then those of its
        # halves. The triangular system of each chunk is solved: FlopCounterMode counts nothing for it.
        chunk, chunks = self.chunk_size, ceiling_divide(sequence_length, self.chunk_size)
        padded = batch_size * chunks * chunk
        for name in ("likeness of keys in the chunk", "scores in the chunk"):
            flops = padded * (chunk - 1) * self.width
            yield Operation(name, self.component, flops, flops)
        for name in ("corrected values", "weighted values"):
            flops = 2 * padded * chunk * self.width
            yield Operation(name, self.component, flops, padded * (chunk + 1) * self.width)
        # The last chunk's state is not read, and the first chunk has none before it.
        carried = batch_size * (chunks - 1) * chunk
        flops = 2 * carried * chunk * self.width
        yield Operation("corrected keys", self.component, flops, carried * (chunk + 1) * self.width)
        for name in ("values foreseen by states", "chunk states", "outputs from states"):
            yield projection(name, self.component, carried, self.head_dim, self.width)
        yield projection("output projection", self.component, tokens, self.width, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        inner, heads = tokens * self.width, self.num_heads
        yield SavedTensor("input", tokens * hidden_size)
        padded = batch_size * (sequence_length + self.conv_kernel - 1) * 3 * self.width
        yield SavedTensor("padded convolution input", padded)
        yield SavedTensor("convolution filter", 3 * self.width * self.conv_kernel, "copy")
        if self.activation not in READ_FROM_RESULT:
            yield SavedTensor("convolution output", 3 * inner)
        yield SavedTensor("queries, keys and values", 3 * inner)
        yield SavedTensor("strengths of the correction", tokens * heads)
        yield SavedTensor("decays and gate at low rank", 2 * tokens * self.gate_rank)
        yield SavedTensor("time steps before softplus", inner, "float32")
        yield SavedTensor("time steps", inner, "float32")
        yield SavedTensor("decay rates and their exponential", 2 * heads, "float32")
        yield SavedTensor("logarithms of the decays", inner, "float32")
        yield SavedTensor("attention output", inner)
        yield SavedTensor("inverse deviations of the heads", tokens * heads, "float32")
        yield SavedTensor("gate", inner)
        yield SavedTensor("normalized output", inner)
        yield SavedTensor("gated output", inner)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        saved = self.saved_activations(hidden_size, sequence_length, batch_size)
        return split_by_heads(saved, whole=("decays and gate at low rank",))

    def summed_inside(self) -> tuple[Quantity, Quantity]:
        # Every rank has the low rank of decays and of the gate whole; gradients come from the heads of all.
        return 0, 2 * self.gate_rank

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        return self.made_by_heads(hidden_size, sequence_length, batch_size)

    def backward_working_set(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        """What is alive once the chunks are computed again and the first gradients in them are made.

        By then what was saved after the scan is gone, and its gradients stand in its place.
        """
        chunks = batch_size * ceiling_divide(sequence_length, self.chunk_size)
        squares = chunks * self.chunk_size * self.chunk_size * self.num_heads
        yield SavedTensor("likenesses, systems, inverses and their gradients", 6 * squares, "float32")
        inner = chunks * self.chunk_size * self.width
        yield SavedTensor("decays summed in the chunks", inner, "float32")
        yield SavedTensor("queries and keys of unit length, values by chunk, outputs and gradients", 6 * inner)
        # In fp32, two elements of a narrower type each; of fp32 they are the arguments themselves.
        yield SavedTensor("queries and keys widened", 2 * 2 * inner, "copy")
        carried = inner - batch_size * self.chunk_size * self.width
        yield SavedTensor("decays from and to the ends of chunks", 2 * carried, "float32")
        yield SavedTensor("those cast", 2 * carried, "copy")
        yield SavedTensor("keys with decays, values as corrected, and their gradients", 6 * carried)
        yield SavedTensor("states of the chunks and a gradient", 2 * chunks * self.width * self.head_dim, "float32")

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (3 * self.width, self.conv_kernel), grows=False)
        yield CacheEntry("state", (self.num_heads, self.head_dim, self.head_dim), grows=False)

    def narrowed(self, width: float) -> Self:
        head_dim, heads = nearest_heads(self.head_dim, self.num_heads, 1, self.width * width, width)
        rank = stepped(self.gate_rank, head_dim / self.head_dim)
        return self.model_copy(update={"num_heads": heads, "head_dim": head_dim, "gate_rank": rank})
