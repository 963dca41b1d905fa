"""Gated DeltaNet: linear attention whose state forgets and is corrected (Yang et al. 2024, arXiv:2412.06464).

The state S of a head, (key_head_dim, value_head_dim), is ``S = a (I - b k k^T) S + b k v^T`` at each position, with a
decay a and a strength b of the correction; it is advanced by whole chunks (Yang et al. 2024, arXiv:2406.06484).
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
)
from planner.components.mlp import READ_FROM_RESULT, Pointwise
from planner.components.narrowing import eights, nearest_heads
from planner.quantities import Quantity, ceiling_divide


class GatedDeltaNet(Component):
    """Queries, keys and values through a short convolution, the gated delta rule, a norm a head and an output gate."""

    component: ClassVar[str] = "linear_attention"
    family: ClassVar[str] = "linear"
    grows: ClassVar[tuple[str, ...] | None] = ("num_key_heads", "num_value_heads")
    symbols: ClassVar[dict[str, str]] = {
        "num_key_heads": "n_k",
        "num_value_heads": "n_v",
        "key_head_dim": "d_k",
        "value_head_dim": "d_v",
        "conv_kernel": "k",
        "chunk_size": "q",
    }

    reasons: ClassVar[dict[str, str]] = {
        "num_key_heads": "the ratio of all heads' channels to the hidden size is kept",
        "num_value_heads": "heads of values a head of keys are kept",
        "key_head_dim": "a multiple of 8",
        "value_head_dim": "the ratio of all heads' channels to the hidden size is kept",
    }

    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_key_heads", "num_value_heads")

    kind: Literal["gated_delta_net"] = "gated_delta_net"
    num_key_heads: int = Field(gt=0)
    """Heads of queries and keys; each serves as many heads of values."""
    num_value_heads: int = Field(gt=0)
    key_head_dim: int = Field(default=128, gt=0)
    value_head_dim: int = Field(default=128, gt=0)
    conv_kernel: int = Field(default=4, gt=0)
    chunk_size: int = Field(default=64, gt=0)
    """Positions in a chunk: inside it the work is quadratic, across chunks linear; no effect on the result."""
    activation: Pointwise = "silu"
    """After the convolution."""
    output_activation: Literal["silu", "sigmoid"] = "silu"
    """Of the output gate."""
    negative_eigenvalues: bool = False
    """Whether the correction's strength reaches 2, not 1, so that a state can also turn over (arXiv:2411.12537)."""
    norm_epsilon: float | None = Field(default=None, gt=0)
    """Of the norm over each head's output, where it is not that of the model's norms."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_value_heads % self.num_key_heads:
            refuse(
                "num_value_heads",
                f"{self.num_value_heads} heads of values cannot share {self.num_key_heads} heads of keys evenly.",
                f"Choose a multiple of {self.num_key_heads}.",
                "heads_not_divisible",
            )
        return self

    @property
    def key_size(self) -> Quantity:
        """Channels of all heads' keys, and of their queries."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_size(self) -> Quantity:
        """Channels of all heads' values."""
        return self.num_value_heads * self.value_head_dim

    @property
    def convolution_channels(self) -> Quantity:
        """Channels that pass through the short convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        yield from linear("q_proj", self.component, self.key_size, hidden_size, split="columns")
        yield from linear("k_proj", self.component, self.key_size, hidden_size, split="columns")
        yield from linear("v_proj", self.component, self.value_size, hidden_size, split="columns")
        yield from linear("gate_proj", self.component, self.value_size, hidden_size, split="columns")
        yield from linear("beta_proj", self.component, self.num_value_heads, hidden_size, split="columns")
        yield from linear("decay_proj", self.component, self.num_value_heads, hidden_size, split="columns")
        filters = (self.convolution_channels, 1, self.conv_kernel)
        yield Tensor("conv1d.weight", filters, self.component, split="columns")
        for name in ("dt_bias", "A_log"):
            yield Tensor(name, (self.num_value_heads,), self.component, dtype_class="float32", split="columns")
        yield Tensor("norm.weight", (self.value_head_dim,), self.component)
        yield from linear("o_proj", self.component, hidden_size, self.value_size, split="rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        for name, width in (
            ("query projection", self.key_size),
            ("key projection", self.key_size),
            ("value projection", self.value_size),
            ("gate projection", self.value_size),
            ("strength and decay projections", 2 * self.num_value_heads),
        ):
            yield projection(name, self.component, tokens, hidden_size, width)
        # Padded to whole chunks, which the matrix multiplications pay for. The triangular system of each chunk is
        # solved, not multiplied: FlopCounterMode counts nothing for it.
        chunk, chunks = self.chunk_size, ceiling_divide(sequence_length, self.chunk_size)
        padded = batch_size * chunks * chunk
        for name, pairs, width in (
            ("likeness of keys in the chunk", chunk - 1, self.key_size),
            ("scores in the chunk", chunk + 1, self.key_size),
            ("corrected values", chunk + 1, self.value_size),
            ("weighted values", chunk + 1, self.value_size),
        ):
            yield Operation(name, self.component, 2 * padded * chunk * width, padded * pairs * width)
        # The last chunk's state is not read, and the first chunk has none before it.
        carried = batch_size * (chunks - 1) * chunk
        keys = self.num_value_heads * self.key_head_dim
        yield Operation("corrected keys", self.component, 2 * carried * chunk * keys, carried * (chunk + 1) * keys)
        for name in ("values foreseen by states", "chunk states", "outputs from states"):
            yield projection(name, self.component, carried, self.key_head_dim, self.value_size)
        yield projection("output projection", self.component, tokens, self.value_size, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        channels, heads = self.convolution_channels, self.num_value_heads
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("padded convolution input", batch_size * (sequence_length + self.conv_kernel - 1) * channels)
        yield SavedTensor("convolution filter", channels * self.conv_kernel, "copy")
        if self.activation not in READ_FROM_RESULT:
            yield SavedTensor("convolution output", tokens * channels)
        yield SavedTensor("queries, keys and values", tokens * channels)
        yield SavedTensor("strengths of the correction", tokens * heads)
        if self.negative_eigenvalues:
            yield SavedTensor("doubled strengths", tokens * heads)
        yield SavedTensor("time steps before softplus", tokens * heads, "float32")
        yield SavedTensor("time steps", tokens * heads, "float32")
        yield SavedTensor("decay rates and their exponential", 2 * heads, "float32")
        yield SavedTensor("logarithms of the decays", tokens * heads, "float32")
        yield SavedTensor("attention output", tokens * self.value_size)
        yield SavedTensor("inverse deviations of the heads", tokens * heads, "float32")
        yield SavedTensor("gate", tokens * self.value_size)
        yield SavedTensor("normalized output", tokens * self.value_size)
        yield SavedTensor("gated output", tokens * self.value_size)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        return self.kept_by_heads(hidden_size, sequence_length, batch_size)

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        return self.made_by_heads(hidden_size, sequence_length, batch_size)

    def backward_temporaries(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        # Inside every chunk a square of positions a head: decays, systems and their inverses in fp32, and scores.
        chunks = batch_size * ceiling_divide(sequence_length, self.chunk_size)
        squares = chunks * self.chunk_size * self.chunk_size * self.num_value_heads
        yield SavedTensor("decays, systems and inverses of the chunks", 6 * squares, "float32")
        yield SavedTensor("likenesses, scores and weights of the chunks", 2 * squares)
        keys = chunks * self.chunk_size * self.num_value_heads * self.key_head_dim
        yield SavedTensor("queries and keys of unit length, a head of values each", 3 * keys, "float32")
        yield SavedTensor("decayed and corrected keys", 2 * keys)
        states = chunks * self.num_value_heads * self.key_head_dim * self.value_head_dim
        yield SavedTensor("states of the chunks", states, "float32")

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (self.convolution_channels, self.conv_kernel), grows=False)
        yield CacheEntry("state", (self.num_value_heads, self.key_head_dim, self.value_head_dim), grows=False)

    def narrowed(self, width: float) -> Self:
        shared = self.num_value_heads // self.num_key_heads
        key_head_dim, keys = nearest_heads(self.key_head_dim, self.num_key_heads, 1, self.key_size * width, width)
        return self.model_copy(
            update={
                "num_key_heads": keys,
                "num_value_heads": keys * shared,
                "key_head_dim": key_head_dim,
                "value_head_dim": min(self.value_head_dim, eights(self.value_size * width / (keys * shared))),
            }
        )
