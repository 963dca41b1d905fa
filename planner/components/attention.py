"""Softmax attention with multi, grouped or single KV heads, and optional (dilated) windows.

Multi-query: Shazeer 2019, arXiv:1911.02150. Grouped-query: Ainslie et al. 2023, arXiv:2305.13245.
Sliding and dilated windows: Beltagy et al. 2020, arXiv:2004.05150.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.components.base import CacheEntry, Component, Operation, SavedTensor, Tensor, linear, projection, refuse
from planner.quantities import Quantity, exact_divide, floor_divide, smallest


def attended_pairs(sequence_length: Quantity, window: Quantity | None, dilation: Quantity | None) -> Quantity:
    """Query-key pairs that a causal mask leaves in one sequence.

    A query at position ``i`` sees the keys ``i, i - dilation, i - 2 dilation …``, at most ``window`` of them.
    """
    if window is None:
        return exact_divide(sequence_length * (sequence_length + 1), 2)
    if dilation is None:
        growing = smallest(sequence_length, window)
        return sequence_length * growing - exact_divide(growing * (growing - 1), 2)
    growing = smallest(sequence_length, window * dilation)
    rounds = floor_divide(growing, dilation)
    rest = growing - rounds * dilation
    return (
        dilation * exact_divide(rounds * (rounds + 1), 2) + rest * (rounds + 1) + (sequence_length - growing) * window
    )


class Attention(Component):
    """Causal self-attention over the residual stream."""

    component: ClassVar[str] = "attention"
    symbols: ClassVar[dict[str, str]] = {
        "num_attention_heads": "n_q",
        "num_key_value_heads": "n_kv",
        "head_dim": "d",
        "sliding_window": "w",
        "dilation": "r",
    }

    kind: Literal["attention"] = "attention"
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    sliding_window: int | None = Field(default=None, gt=0)
    """Keys that a query sees, itself included; absent: all before it."""
    dilation: int | None = Field(default=None, gt=1)
    """Distance between the keys that a windowed query sees; absent: neighbours."""
    query_key_norm: Literal["head", "projection"] | None = None
    """RMSNorm of queries and keys: over each head's channels, or over the whole projection."""
    query_key_value_bias: bool = False
    output_bias: bool = False
    rope_share: float = Field(default=1.0, ge=0, le=1)
    """Share of each head's channels that is rotated, where the model's positions are rotary."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary frequencies of these layers, where it differs from the model's."""
    logit_softcap: float | None = Field(default=None, gt=0)
    """Scores are bounded by ``softcap * tanh(score / softcap)`` before the softmax (Gemma 2)."""
    softmax_scale: float | None = Field(default=None, gt=0)
    """Factor on the scores, where it is not ``head_dim ** -0.5``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            refuse(
                "num_key_value_heads",
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} KV heads evenly.",
                f"Choose a divisor of {self.num_attention_heads}.",
                "heads_not_divisible",
            )
        if self.dilation is not None and self.sliding_window is None:
            refuse("dilation", "A dilation needs a window.", "Set sliding_window, or remove dilation.", "no_window")
        rotated = self.rope_share * self.head_dim
        if abs(rotated / 2 - round(rotated / 2)) > 1e-6:
            refuse(
                "rope_share",
                f"{self.rope_share} of {self.head_dim} channels is no even number of channels to rotate.",
                f"Choose a multiple of {2 / self.head_dim:g}.",
                "odd_rotation",
            )
        return self

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        return round(self.rope_share * self.head_dim)

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        bias = self.query_key_value_bias
        yield from linear("q_proj", self.component, queries, hidden_size, bias)
        yield from linear("k_proj", self.component, keys, hidden_size, bias)
        yield from linear("v_proj", self.component, keys, hidden_size, bias)
        yield from linear("o_proj", self.component, hidden_size, queries, self.output_bias)
        if self.query_key_norm == "head":
            yield Tensor("q_norm.weight", (self.head_dim,), self.component)
            yield Tensor("k_norm.weight", (self.head_dim,), self.component)
        elif self.query_key_norm == "projection":
            yield Tensor("q_norm.weight", (queries,), self.component)
            yield Tensor("k_norm.weight", (keys,), self.component)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        yield projection("query projection", self.component, tokens, hidden_size, queries)
        yield projection("key projection", self.component, tokens, hidden_size, keys)
        yield projection("value projection", self.component, tokens, hidden_size, keys)
        square = 2 * batch_size * queries * sequence_length * sequence_length
        needed = 2 * batch_size * queries * attended_pairs(sequence_length, self.sliding_window, self.dilation)
        yield Operation("scores", self.component, square, needed)
        yield Operation("weighted values", self.component, square, needed)
        yield projection("output projection", self.component, tokens, queries, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        yield SavedTensor("input", tokens * hidden_size)
        if self.query_key_norm is not None:
            yield SavedTensor("queries and keys before their norms", tokens * (queries + keys))
            rows = self.num_attention_heads + self.num_key_value_heads if self.query_key_norm == "head" else 2
            yield SavedTensor("inverse deviations", tokens * rows, "float32")
        yield SavedTensor("queries", tokens * queries)
        yield SavedTensor("keys", tokens * keys)
        yield SavedTensor("values", tokens * keys)
        yield SavedTensor("attention output", tokens * queries)
        if self.logit_softcap is not None:
            # No fused kernel bounds scores: they are computed again from queries and keys, and the mask is kept.
            if self.sliding_window is not None:
                yield SavedTensor("mask", sequence_length * sequence_length, "bool")
            return
        yield SavedTensor("log-sum-exp of scores", tokens * self.num_attention_heads, "float32")
        if self.sliding_window is not None:
            yield SavedTensor("mask", sequence_length * sequence_length)

    def backward_temporaries(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        if self.logit_softcap is not None:
            square = batch_size * self.num_attention_heads * sequence_length * sequence_length
            yield SavedTensor("bounded scores, their softmax, and the gradients of both", 4 * square, "float32")

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        kept = context_length
        if self.sliding_window is not None:
            reach = self.sliding_window
            if self.dilation is not None:
                reach = (self.sliding_window - 1) * self.dilation + 1
            kept = smallest(context_length, reach)
        yield CacheEntry("keys", (self.num_key_value_heads, kept, self.head_dim), grows=True)
        yield CacheEntry("values", (self.num_key_value_heads, kept, self.head_dim), grows=True)
