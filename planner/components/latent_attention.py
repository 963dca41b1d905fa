"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values from a narrow latent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.components.attention import eager_scores, log_sum_exp, of_heads
from planner.components.base import (
    FUSED,
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
from planner.components.narrowing import Scale, nearest_heads, stepped
from planner.components.patterns import CAUSAL, MaskPattern
from planner.components.rotary import RotaryScaling, check_rotation
from planner.quantities import Quantity, largest, smallest


class LatentAttention(Component):
    """Causal self-attention whose cache holds one latent and one rotated key a token, shared by all heads."""

    component: ClassVar[str] = "latent_attention"
    family: ClassVar[str] = "latent"
    grows: ClassVar[tuple[str, ...] | None] = ("num_attention_heads",)
    widths: ClassVar[tuple[str, ...]] = ("q_lora_rank", "kv_lora_rank")
    reasons: ClassVar[dict[str, str]] = {
        "num_attention_heads": "the ratio of all heads' channels to the hidden size is kept",
        "qk_nope_head_dim": "a multiple of 8",
        "qk_rope_head_dim": "scaled with the rest of the head, a multiple of 8",
        "v_head_dim": "scaled with the rest of the head, a multiple of 8",
        "short_factor": "as many as there are pairs of rotated channels",
        "long_factor": "as many as there are pairs of rotated channels",
        "softmax_scale": "follows the square root of the size of a head",
    }
    symbols: ClassVar[dict[str, str]] = {
        "num_attention_heads": "n_q",
        "q_lora_rank": "c_q",
        "kv_lora_rank": "c_kv",
        "qk_nope_head_dim": "d_nope",
        "qk_rope_head_dim": "d_rope",
        "v_head_dim": "d_v",
    }
    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_attention_heads",)
    context_parallel: ClassVar[bool] = True

    kind: Literal["latent_attention"] = "latent_attention"
    num_attention_heads: int = Field(gt=0)
    q_lora_rank: int | None = Field(default=None, gt=0)
    """Width of the query latent; absent: queries come straight from the hidden state."""
    kv_lora_rank: int = Field(gt=0)
    qk_nope_head_dim: int = Field(gt=0)
    qk_rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)
    attention_bias: bool = False
    """Biases on the latent and output projections, as DeepSeek's configuration has them."""
    latent_norm_epsilon: float | None = Field(default=None, gt=0)
    """Epsilon of the latents' norms; absent: that of the model's norms."""
    rotated: bool = True
    """Whether ``qk_rope_head_dim`` channels of queries and keys are rotated; where not, they only are what all heads
    share (Kimi Linear; arXiv:2510.26692)."""
    rope_theta: float | None = Field(default=None, gt=0)
    rope_scaling: RotaryScaling | None = None
    """How the rotary frequencies of these layers are stretched, where it differs from the model's."""
    softmax_scale: float | None = Field(default=None, gt=0)

    def check_under(self, positions: Any) -> None:
        if self.rotated and positions.kind != "rotary":
            refuse(
                "qk_rope_head_dim",
                "Latent attention rotates part of its keys, but the model's positions are not rotary.",
                "Set positions to {kind: rotary}, or rotated to false.",
                "positions_not_rotary",
            )
        if positions.kind == "alibi":
            refuse(
                "positions",
                "Linear biases on the scores of latent attention are not modelled.",
                "Choose positions of another kind.",
                "alibi_with_latent_attention",
            )
        check_rotation(positions, self.rotary_dim, self.rope_theta, self.rope_scaling)

    def scaled(self, scale: Scale) -> Self:
        target = self.num_attention_heads * self.qk_nope_head_dim * scale.width
        nope, heads = nearest_heads(self.qk_nope_head_dim, self.num_attention_heads, 1, target, scale.width)
        shrunk = nope / self.qk_nope_head_dim
        rope = stepped(self.qk_rope_head_dim, shrunk)
        changed: dict[str, object] = {
            "num_attention_heads": heads,
            "qk_nope_head_dim": nope,
            "qk_rope_head_dim": rope,
            "v_head_dim": stepped(self.v_head_dim, shrunk),
            "rope_scaling": None if self.rope_scaling is None else self.rope_scaling.for_channels(rope),
        }
        if self.softmax_scale is not None:
            before = self.qk_nope_head_dim + self.qk_rope_head_dim
            changed["softmax_scale"] = self.softmax_scale * math.sqrt(before / (nope + rope))
        return super().scaled(scale).model_copy(update=changed)

    def describe(self) -> str:
        return f"{self.num_attention_heads:,} heads, latent {self.kv_lora_rank:,}"

    @property
    def rotary_dim(self) -> int:
        """Channels that are rotated."""
        return self.qk_rope_head_dim if self.rotated else 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rotated and self.qk_rope_head_dim % 2:
            refuse(
                "qk_rope_head_dim",
                f"{self.qk_rope_head_dim} channels cannot be rotated in pairs.",
                "Choose an even number.",
                "odd_rotation",
            )
        return self

    @property
    def pattern(self) -> MaskPattern:
        """Which keys a query sees: all before it."""
        return CAUSAL

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        heads = self.num_attention_heads
        query_width = heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        if self.q_lora_rank is None:
            yield from linear("q_proj", self.component, query_width, hidden_size, split="columns")
        else:
            yield from linear("q_a_proj", self.component, self.q_lora_rank, hidden_size, self.attention_bias)
            yield Tensor("q_a_norm.weight", (self.q_lora_rank,), self.component)
            yield from linear("q_b_proj", self.component, query_width, self.q_lora_rank, split="columns")
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        yield from linear("kv_a_proj", self.component, latent, hidden_size, self.attention_bias)
        yield Tensor("kv_a_norm.weight", (self.kv_lora_rank,), self.component)
        expanded = heads * (self.qk_nope_head_dim + self.v_head_dim)
        yield from linear("kv_b_proj", self.component, expanded, self.kv_lora_rank, split="columns")
        yield from linear("o_proj", self.component, hidden_size, heads * self.v_head_dim, self.attention_bias, "rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        heads = self.num_attention_heads
        key_width = self.qk_nope_head_dim + self.qk_rope_head_dim
        if self.q_lora_rank is None:
            yield projection("query projection", self.component, tokens, hidden_size, heads * key_width)
        else:
            yield projection("query latent", self.component, tokens, hidden_size, self.q_lora_rank)
            yield projection("query expansion", self.component, tokens, self.q_lora_rank, heads * key_width)
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        yield projection("key-value latent", self.component, tokens, hidden_size, latent)
        expanded = heads * (self.qk_nope_head_dim + self.v_head_dim)
        yield projection("key-value expansion", self.component, tokens, self.kv_lora_rank, expanded)
        pairs = self.pattern.attended_pairs(sequence_length)
        square = sequence_length * sequence_length
        for name, width in (("scores", key_width), ("weighted values", self.v_head_dim)):
            factor = 2 * batch_size * heads * width
            yield Operation(name, self.component, factor * square, factor * pairs)
        yield projection("output projection", self.component, tokens, heads * self.v_head_dim, hidden_size)

    def mixing_flops(self, queries: Quantity, keys: Quantity, absorbed: bool) -> Quantity:
        """FLOPs of one sequence's expansion, scores and weighted values: all of ``queries`` positions against ``keys``.

        Keys and values are expanded from the latents; or, ``absorbed``, queries are taken into the latent space and
        the mixed latents out of it, so that scores and mixing are as wide as the latent is (section 2.1.2).
        """
        heads, rope = self.num_attention_heads, self.qk_rope_head_dim
        unrotated = self.qk_nope_head_dim + self.v_head_dim
        pair = 2 * heads * (2 * self.kv_lora_rank + rope if absorbed else unrotated + rope)
        return queries * keys * pair + (queries if absorbed else keys) * 2 * heads * unrotated * self.kv_lora_rank

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        return self.kept(hidden_size, sequence_length, batch_size, FUSED)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        heads = self.num_attention_heads
        yield SavedTensor("input", tokens * hidden_size)
        if self.q_lora_rank is not None:
            yield SavedTensor("query latent", tokens * self.q_lora_rank)
            yield SavedTensor("inverse deviation of the query latent", tokens, "float32")
            yield SavedTensor("normalized query latent", tokens * self.q_lora_rank)
        yield SavedTensor("key-value latent and rotated key", tokens * (self.kv_lora_rank + self.qk_rope_head_dim))
        yield SavedTensor("inverse deviation of the key-value latent", tokens, "float32")
        yield SavedTensor("normalized key-value latent", tokens * self.kv_lora_rank)
        key_width, mixed = self.qk_nope_head_dim + self.qk_rope_head_dim, tokens * heads * self.v_head_dim
        # Fused attention wants queries, keys and values of one width: the narrower are padded with zeros.
        is_padded = how.pads_heads and not how.eager_attention
        width = largest(key_width, self.v_head_dim) if is_padded else key_width
        value_width = width if is_padded else self.v_head_dim
        yield of_heads("queries", tokens * heads * width)
        yield of_heads("keys", tokens * heads * width, together=True)
        yield of_heads("values", tokens * heads * value_width, together=True)
        if how.eager_attention:
            key_length = sequence_length if how.key_length is None else how.key_length
            yield from eager_scores(heads, sequence_length, key_length, batch_size, how)
        yield of_heads("attention output", tokens * heads * value_width, together=not how.eager_attention)
        if not how.eager_attention:
            yield log_sum_exp(tokens * heads)
        if is_padded:
            yield of_heads("attention output without padding", smallest(1, width - self.v_head_dim) * mixed)
        if how.keeps_exchanged:
            yield of_heads("attention output before its exchange", mixed, together=True)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("key-value latent", (context_length, self.kv_lora_rank), grows=True)
        yield CacheEntry("rotated key", (context_length, self.qk_rope_head_dim), grows=True)
