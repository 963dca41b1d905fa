"""Softmax attention with multi, grouped or single KV heads, masks of several patterns, sinks and gates.

Multi-query: Shazeer 2019, arXiv:1911.02150. Grouped-query: Ainslie et al. 2023, arXiv:2305.13245.
Masks: ``planner/components/patterns.py``. Linear biases: Press et al. 2021, arXiv:2108.12409.
Sinks: Xiao et al. 2023, arXiv:2309.17453, as learned logits in GPT-OSS, arXiv:2508.10925. Keys and values shared by
layers: Brandon et al. 2024, arXiv:2405.12981. Gated output: Qiu et al. 2025, arXiv:2505.06708.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from planner.components.base import (
    FUSED,
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
from planner.components.dependence import PositionSet, blocks_before, chunk_before, everything_before, window_before
from planner.components.narrowing import Scale, nearest_heads, stepped
from planner.components.patterns import MaskPattern
from planner.components.rotary import RotaryScaling, check_rotation
from planner.quantities import Quantity, largest, smallest


def of_heads(name: str, elements: Quantity, together: bool = False) -> SavedTensor:
    """A saved tensor of the compute type that tensor parallelism divides by heads."""
    return SavedTensor(name, elements, split="tensor", together=together)


def eager_scores(
    heads: Quantity, sequence_length: Quantity, key_length: Quantity, batch_size: Quantity, how: Computation
) -> Iterator[SavedTensor]:
    """What attention keeps of its scores where no fused kernel computes them again.

    The softmax's result, which it and the product with the values read; under dropout also the mask and what is left
    (Korthikanti et al. 2022, arXiv:2205.05198, section 4.1: five bytes a score in 16 bits).
    """
    square = batch_size * heads * sequence_length * key_length
    yield SavedTensor("weights of the values", square, split="tensor", core=True)
    if how.dropout:
        yield SavedTensor("mask of dropped weights", square, "bool", "tensor", core=True)
        yield SavedTensor("weights that are left", square, split="tensor", core=True)


def log_sum_exp(rows: Quantity) -> SavedTensor:
    """What fused attention keeps of the scores of each row."""
    return SavedTensor("log-sum-exp of scores", rows, "float32", "tensor", together=True, core=True)


class Attention(Component):
    """Causal self-attention over the residual stream."""

    component: ClassVar[str] = "attention"
    family: ClassVar[str] = "attention"
    grows: ClassVar[tuple[str, ...] | None] = ("num_attention_heads", "num_key_value_heads")
    symbols: ClassVar[dict[str, str]] = {
        "num_attention_heads": "n_q",
        "num_key_value_heads": "n_kv",
        "head_dim": "d",
        "value_head_dim": "d_v",
        "sliding_window": "w",
        "dilation": "r",
        "attention_chunk_size": "c",
        "previous_chunks": "p",
        "chunk_summaries": "u",
        "global_tokens": "g",
        "stride": "s",
        "block_size": "b",
        "random_blocks": "z",
    }
    reasons: ClassVar[dict[str, str]] = {
        "num_attention_heads": "query heads a KV head are kept",
        "num_key_value_heads": "query heads a KV head are kept",
        "head_dim": "a multiple of 8",
        "value_head_dim": "scaled with the rest of the head, a multiple of 8",
        "sliding_window": "the window's share of the context is kept, at least 8",
        "attention_chunk_size": "the chunk's share of the context is kept, at least 8",
        "chunk_summaries": "the summaries' share of a chunk is kept",
        "global_tokens": "the global tokens' share of the context is kept, at least 8",
        "stride": "the stride's share of the context is kept, at least 8",
        "block_size": "the block's share of the context is kept, at least 8",
        "rope_share": "the nearest share that rotates an even number of channels",
        "short_factor": "as many as there are pairs of rotated channels",
        "long_factor": "as many as there are pairs of rotated channels",
        "softmax_scale": "follows the square root of the size of a head",
    }
    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_attention_heads", "num_key_value_heads")
    context_parallel: ClassVar[bool] = True
    has_linear_biases: ClassVar[bool] = False
    """Whether scores fall with the distance: see :meth:`under`."""

    kind: Literal["attention"] = "attention"
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    value_head_dim: int | None = Field(default=None, gt=0)
    """Channels of a value head, where they are not ``head_dim``."""
    sliding_window: int | None = Field(default=None, gt=0)
    """Keys that a query sees, itself included; absent: all before it."""
    dilation: int | None = Field(default=None, gt=1)
    """Distance between the keys that a windowed query sees; absent: neighbours."""
    attention_chunk_size: int | None = Field(default=None, gt=0)
    """The sequence is cut into chunks of as many positions, and a query sees keys of its own chunk alone (Llama 4)."""
    previous_chunks: int | None = Field(default=None, gt=0)
    """Chunks before its own that a query sees too (BigBird's window of blocks)."""
    chunk_summaries: int | None = Field(default=None, gt=0)
    """The last positions of every chunk, so many, are seen by all later queries (fixed attention of Sparse
    Transformers)."""
    global_tokens: int | None = Field(default=None, gt=0)
    """The first positions of the sequence, so many, are seen by all later queries (Longformer, StreamingLLM)."""
    stride: int | None = Field(default=None, gt=1)
    """A query sees the keys at multiples of this distance too (strided attention of Sparse Transformers)."""
    block_size: int | None = Field(default=None, gt=0)
    """The sequence is cut into blocks of as many positions, and a query sees its own block and others that the next
    fields name."""
    block_offsets: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(default=None, min_length=1)
    """Earlier blocks that a query sees, as distances from its own in blocks: 1 is the one before it."""
    random_blocks: int | None = Field(default=None, gt=0)
    """Earlier blocks, so many, that are drawn for each block of queries among those that it does not see anyway
    (BigBird)."""
    random_seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Another number draws other random blocks; absent: 0."""
    shares_key_values: bool = False
    """No keys and values of its own: those of the nearest earlier attention layer that has some and the same
    mask."""
    query_key_norm: Literal["head", "projection", "each_head"] | None = None
    """Norm of queries and keys: over each head's channels, over the whole projection, or over each head's channels with
    weights for every head."""
    query_key_norm_kind: Literal["rms_norm", "layer_norm"] = "rms_norm"
    query_key_norm_weight: bool = True
    query_key_norm_bias: bool = False
    query_key_norm_epsilon: float | None = Field(default=None, gt=0)
    """Absent: that of the model's norms."""
    query_key_norm_after_rope: bool = False
    """Whether queries and keys are normalized after they were rotated."""
    query_key_value_bias: bool = False
    query_key_value_clip: float | None = Field(default=None, gt=0)
    """Normalized queries and keys, and values, are clamped to plus and minus this (DBRX, OLMo)."""
    value_multiplier: float | None = Field(default=None, gt=0)
    """Factor on the values (MiMo-V2)."""
    output_gate: Literal["elementwise", "headwise"] | None = None
    """A sigmoid of a projection of the input multiplies the mixed values: one a channel, or one a head."""
    output_gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    sub_norm: bool = False
    """An RMSNorm over all heads' mixed values, before the output projection (SubLN; arXiv:2210.06423)."""
    output_bias: bool = False
    sinks: bool = False
    """A learned logit a query head stands in the softmax beside the scores, and leads to no value."""
    rope_share: float = Field(default=1.0, ge=0, le=1)
    """Share of each head's channels that is rotated, where the model's positions are rotary."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary frequencies of these layers, where it differs from the model's."""
    rope_scaling: RotaryScaling | None = None
    """How the rotary frequencies of these layers are stretched, where it differs from the model's."""
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
        self._check_mask()
        rotated = self.rope_share * self.head_dim
        if abs(rotated / 2 - round(rotated / 2)) > 1e-6:
            refuse(
                "rope_share",
                f"{self.rope_share} of {self.head_dim} channels is no even number of channels to rotate.",
                f"Choose a multiple of {2 / self.head_dim:g}.",
                "odd_rotation",
            )
        if self.output_gate_activation != "sigmoid" and self.output_gate is None:
            refuse(
                "output_gate_activation",
                "There is no gate.",
                "Set output_gate, or remove output_gate_activation.",
                "no_output_gate",
            )
        self._check_query_key_norm()
        return self

    def _check_mask(self) -> None:
        if self.dilation is not None and self.sliding_window is None:
            refuse("dilation", "A dilation needs a window.", "Set sliding_window, or remove dilation.", "no_window")
        if self.attention_chunk_size is not None and self.sliding_window is not None:
            refuse(
                "attention_chunk_size",
                "A layer sees a window or a chunk, and this one names both.",
                "Remove sliding_window or attention_chunk_size.",
                "window_and_chunk",
            )
        self._check_blocks()
        for field in ("previous_chunks", "chunk_summaries"):
            if getattr(self, field) is not None and self.attention_chunk_size is None:
                refuse(field, "There are no chunks.", f"Set attention_chunk_size, or remove {field}.", "no_chunks")
        if self.chunk_summaries is not None and self.chunk_summaries > (self.attention_chunk_size or 0):
            refuse(
                "chunk_summaries",
                f"A chunk of {self.attention_chunk_size:,} has no {self.chunk_summaries:,} last positions.",
                "Choose at most attention_chunk_size.",
                "more_summaries_than_positions",
            )
        for field in ("attention_chunk_size", "dilation"):
            if self.stride is not None and getattr(self, field) is not None:
                refuse(
                    "stride",
                    f"A stride stands alone or beside a window of neighbours, and this layer has {field}.",
                    f"Remove stride or {field}.",
                    "stride_beside_others",
                )
        if self.global_tokens is not None and not self.sees_a_part:
            refuse(
                "global_tokens",
                "Every query sees all before it, so that no token is more global than others.",
                "Set sliding_window, attention_chunk_size, stride or block_size, or remove global_tokens.",
                "nothing_hidden",
            )

    def _check_blocks(self) -> None:
        for field in ("block_offsets", "random_blocks"):
            if getattr(self, field) is not None and self.block_size is None:
                refuse(field, "There are no blocks.", f"Set block_size, or remove {field}.", "no_blocks")
        if self.random_seed is not None and self.random_blocks is None:
            refuse("random_seed", "Nothing is drawn.", "Set random_blocks, or remove random_seed.", "no_random_blocks")
        for field in ("sliding_window", "attention_chunk_size", "stride"):
            if self.block_size is not None and getattr(self, field) is not None:
                refuse(
                    "block_size",
                    f"A layer that sees blocks sees nothing else but global tokens, and this one has {field}.",
                    f"Remove block_size or {field}; block_offsets names blocks before a query's own.",
                    "blocks_beside_others",
                )
        offsets = self.block_offsets or ()
        if list(offsets) != sorted(set(offsets)):
            refuse(
                "block_offsets",
                "The distances are not in rising order, each once.",
                f"Write {', '.join(map(str, sorted(set(offsets))))}.",
                "offsets_not_rising",
            )

    def _check_query_key_norm(self) -> None:
        kind, weight, bias = self.query_key_norm_kind, self.query_key_norm_weight, self.query_key_norm_bias
        if self.query_key_norm is None:
            for field, value, default in (
                ("query_key_norm_kind", kind, "rms_norm"),
                ("query_key_norm_weight", weight, True),
                ("query_key_norm_bias", bias, False),
                ("query_key_norm_epsilon", self.query_key_norm_epsilon, None),
                ("query_key_norm_after_rope", self.query_key_norm_after_rope, False),
            ):
                if value != default:
                    refuse(
                        field,
                        "Queries and keys are not normalized.",
                        f"Set query_key_norm, or remove {field}.",
                        "no_query_key_norm",
                    )
        if bias and kind == "rms_norm":
            refuse(
                "query_key_norm_bias",
                "An RMSNorm has no bias.",
                "Set query_key_norm_kind to layer_norm, or remove query_key_norm_bias.",
                "rms_norm_bias",
            )
        if bias and not weight:
            refuse(
                "query_key_norm_bias",
                "A norm without weights has no bias.",
                "Set query_key_norm_weight, or remove query_key_norm_bias.",
                "bias_without_weight",
            )
        if self.query_key_norm == "each_head" and not weight:
            refuse(
                "query_key_norm_weight",
                "Without weights, a norm for each head is the same as one for all of them.",
                "Set query_key_norm to head.",
                "no_weights_for_each_head",
            )

    def under(self, positions: str) -> Attention:
        if positions != "alibi":
            return self
        return _BiasedAttention.model_construct(**{name: getattr(self, name) for name in type(self).model_fields})

    def check_under(self, positions: Any) -> None:
        check_rotation(positions, self.rotary_dim, self.rope_theta, self.rope_scaling)

    def scaled(self, scale: Scale) -> Self:
        queries_per_key = self.num_attention_heads // self.num_key_value_heads
        target = self.num_attention_heads * self.head_dim * scale.width
        head_dim, key_value_heads = nearest_heads(
            self.head_dim, self.num_key_value_heads, queries_per_key, target, scale.width
        )
        shrunk = head_dim / self.head_dim
        # An even number of channels is rotated, so the share may move to the nearest that allows it.
        rotary_dim = max(min(4, self.rotary_dim), 2 * round(self.rope_share * head_dim / 2))
        changed: dict[str, object] = {
            "num_key_value_heads": key_value_heads,
            "num_attention_heads": queries_per_key * key_value_heads,
            "head_dim": head_dim,
            "rope_share": rotary_dim / head_dim,
            "rope_scaling": None if self.rope_scaling is None else self.rope_scaling.for_channels(rotary_dim),
        }
        if self.value_head_dim is not None:
            changed["value_head_dim"] = stepped(self.value_head_dim, shrunk)
        for field in ("sliding_window", "attention_chunk_size", "global_tokens", "stride", "block_size"):
            if getattr(self, field) is not None:
                changed[field] = scale.window_of(getattr(self, field))
        if self.chunk_summaries is not None and self.attention_chunk_size is not None:
            share = scale.window_of(self.attention_chunk_size) / self.attention_chunk_size
            changed["chunk_summaries"] = max(1, round(self.chunk_summaries * share))
        if self.softmax_scale is not None:
            changed["softmax_scale"] = self.softmax_scale / math.sqrt(shrunk)
        return self.model_copy(update=changed)

    def variety(self) -> str:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        sharing = "multi-head" if shared == heads else "multi-query" if shared == 1 else "grouped-query"
        return f"{sharing}, {self.pattern.words()}" + (", shared keys and values" if self.shares_key_values else "")

    def describe(self) -> str:
        return f"{self.num_attention_heads:,} heads, {self.num_key_value_heads:,} KV, {self.head_dim:,} wide"

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        return round(self.rope_share * self.head_dim)

    @property
    def pattern(self) -> MaskPattern:
        """Which keys a query sees."""
        return MaskPattern(
            sliding_window=self.sliding_window,
            dilation=self.dilation,
            attention_chunk_size=self.attention_chunk_size,
            previous_chunks=self.previous_chunks,
            chunk_summaries=self.chunk_summaries,
            global_tokens=self.global_tokens,
            stride=self.stride,
            block_size=self.block_size,
            block_offsets=self.block_offsets,
            random_blocks=self.random_blocks,
            random_seed=self.random_seed,
        )

    @property
    def sees_a_part(self) -> bool:
        """Whether a window, chunks, a stride or blocks hide earlier keys."""
        return not self.pattern.is_causal

    @property
    def recomputes_scores(self) -> bool:
        """Whether PyTorch's fused kernels leave the scores to be computed again in the backward pass."""
        return self.logit_softcap is not None or self.sinks or self.has_linear_biases

    @property
    def _value_dim(self) -> Quantity:
        return self.head_dim if self.value_head_dim is None else self.value_head_dim

    def _projected(self) -> tuple[Quantity, Quantity, Quantity]:
        """Channels of queries, and of the layer's own keys and values."""
        queries = self.num_attention_heads * self.head_dim
        if self.shares_key_values:
            return queries, 0, 0
        return queries, self.num_key_value_heads * self.head_dim, self.num_key_value_heads * self._value_dim

    def _gates(self) -> Quantity:
        heads = self.num_attention_heads
        return heads * self._value_dim if self.output_gate == "elementwise" else heads

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        queries, keys, values = self._projected()
        bias = self.query_key_value_bias
        yield from linear("q_proj", self.component, queries, hidden_size, bias, "columns")
        if not self.shares_key_values:
            yield from linear("k_proj", self.component, keys, hidden_size, bias, "columns")
            yield from linear("v_proj", self.component, values, hidden_size, bias, "columns")
        if self.output_gate is not None:
            yield from linear("gate_proj", self.component, self._gates(), hidden_size, bias, "columns")
        mixed = self.num_attention_heads * self._value_dim
        yield from linear("o_proj", self.component, hidden_size, mixed, self.output_bias, "rows")
        if self.sub_norm:
            yield Tensor("sub_norm.weight", (mixed,), self.component, split="columns")
        if self.query_key_norm is not None and self.query_key_norm_weight:
            yield from self._norm_tensors("q_norm", self.num_attention_heads)
            if not self.shares_key_values:
                yield from self._norm_tensors("k_norm", self.num_key_value_heads)
        if self.sinks:
            yield Tensor("sinks", (self.num_attention_heads,), self.component, split="columns")

    def _norm_tensors(self, name: str, heads: Quantity) -> Iterator[Tensor]:
        shapes: dict[str | None, tuple[Quantity, ...]] = {
            "head": (self.head_dim,),
            "projection": (heads * self.head_dim,),
            "each_head": (heads, self.head_dim),
        }
        split = "whole" if self.query_key_norm == "head" else "columns"
        shape = shapes[self.query_key_norm]
        yield Tensor(f"{name}.weight", shape, self.component, is_matrix=False, split=split)
        if self.query_key_norm_bias:
            yield Tensor(f"{name}.bias", shape, self.component, is_matrix=False, split=split)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        queries, keys, values = self._projected()
        yield projection("query projection", self.component, tokens, hidden_size, queries)
        if not self.shares_key_values:
            yield projection("key projection", self.component, tokens, hidden_size, keys)
            yield projection("value projection", self.component, tokens, hidden_size, values)
        square = sequence_length * sequence_length
        pairs = self.pattern.attended_pairs(sequence_length)
        mixed = self.num_attention_heads * self._value_dim
        for name, width in (("scores", queries), ("weighted values", mixed)):
            factor = 2 * batch_size * width
            yield Operation(name, self.component, factor * square, factor * pairs)
        if self.output_gate is not None:
            yield projection("output gate", self.component, tokens, hidden_size, self._gates())
        yield projection("output projection", self.component, tokens, mixed, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        return self.kept(hidden_size, sequence_length, batch_size, FUSED)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        queries, keys, values = self._projected()
        yield SavedTensor("input", tokens * hidden_size)
        if self.query_key_norm is not None:
            yield of_heads("queries and keys before their norms", tokens * (queries + keys))
            key_heads = 0 if self.shares_key_values else self.num_key_value_heads
            key_rows = 0 if self.shares_key_values else 1
            over_all = self.query_key_norm == "projection"
            rows = 1 + key_rows if over_all else self.num_attention_heads + key_heads
            split = "whole" if over_all else "tensor"
            if self.query_key_norm_kind == "rms_norm":
                yield SavedTensor("inverse deviations", tokens * rows, "float32", split)
            else:
                yield SavedTensor("means and inverse deviations", 2 * tokens * rows, "float32", split)
        if self.query_key_value_clip is not None:
            yield of_heads("queries, keys and values before they are clamped", tokens * (queries + keys + values))
        key_length = sequence_length if how.key_length is None else how.key_length
        yield from self._saved_by_the_kernel(sequence_length, key_length, batch_size, how)
        if self.sees_a_part:
            square = sequence_length * key_length
            kept_as = "bool" if self.recomputes_scores and not how.eager_attention else "compute"
            yield SavedTensor("mask", square, kept_as, "whole")
        if self.output_gate is not None:
            yield of_heads("output gate", tokens * self._gates())
            if self.output_gate_activation == "softplus":
                yield of_heads("output gate before its activation", tokens * self._gates())
            yield of_heads("gated output", tokens * self.num_attention_heads * self._value_dim)
        if self.sub_norm:
            yield SavedTensor("inverse deviation of the mixed values", tokens, "float32", "whole")
            yield of_heads("normalized mixed values", tokens * self.num_attention_heads * self._value_dim)

    def _saved_by_the_kernel(
        self, sequence_length: Quantity, key_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        heads, key_heads, shares = self.num_attention_heads, self.num_key_value_heads, self.shares_key_values
        tokens = batch_size * sequence_length
        mixed = tokens * heads * self._value_dim
        is_one_width = self.value_head_dim is None or not how.pads_heads
        if how.eager_attention or self.recomputes_scores or is_one_width:
            yield of_heads("queries", tokens * heads * self.head_dim)
            if not shares:
                yield of_heads("keys", tokens * key_heads * self.head_dim, together=True)
                yield of_heads("values", tokens * key_heads * self._value_dim, together=True)
            if how.eager_attention:
                yield from eager_scores(heads, sequence_length, key_length, batch_size, how)
            yield of_heads("attention output", mixed, together=not how.eager_attention)
        else:
            # Fused attention wants queries, keys and values of one width: the narrower are padded with zeros, and
            # where keys and values are shared, padded copies are the layer's own.
            width = largest(self.head_dim, self.value_head_dim)
            keys_padded, values_padded = (smallest(1, width - own) for own in (self.head_dim, self.value_head_dim))
            yield of_heads("queries", tokens * heads * width)
            yield of_heads("keys", tokens * key_heads * width * (keys_padded if shares else 1), together=True)
            yield of_heads("values", tokens * key_heads * width * (values_padded if shares else 1), together=True)
            yield of_heads("attention output", tokens * heads * width, together=True)
            if self.output_gate is None:
                yield of_heads("attention output without padding", values_padded * mixed)
        if not self.recomputes_scores and not how.eager_attention:
            yield log_sum_exp(tokens * heads)
        if how.keeps_exchanged:
            yield of_heads("attention output before its exchange", mixed, together=True)

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """Also when the fused kernel has just run: by then the output projection has its gradient, which is more than
        that of the input where heads are many and tokens are few."""
        yield from super().backward_moments(hidden_size, sequence_length, batch_size)
        if self.recomputes_scores:
            return
        read_before = (
            "attention output without padding",
            "output gate",
            "output gate before its activation",
            "gated output",
            "inverse deviation of the mixed values",
            "normalized mixed values",
        )
        kept = self._saved_by_the_kernel(sequence_length, sequence_length, batch_size, FUSED)
        made = (tensor for tensor in kept if tensor.dtype_class == "compute" and tensor.name not in read_before)
        yield BackwardMoment(tuple(made), read_before, ready=("o_proj",))

    def backward_temporaries(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        if self.recomputes_scores:
            square = batch_size * self.num_attention_heads * sequence_length * sequence_length
            yield SavedTensor("softmax, its gradient and that of the scores", 3 * square, "float32", "tensor")
            if self.logit_softcap is not None:
                yield of_heads("bounded scores", square)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        if self.shares_key_values:
            return
        pattern = self.pattern
        kept, runs = pattern.kept(context_length), pattern.runs(context_length)
        reserved = context_length if self.sees_a_part else None
        yield CacheEntry("keys", (self.num_key_value_heads, kept, self.head_dim), True, reserved, runs)
        yield CacheEntry("values", (self.num_key_value_heads, kept, self._value_dim), True, reserved, runs)

    def reads(self, chosen: PositionSet) -> PositionSet:
        if not self.sees_a_part:
            return everything_before(chosen)
        seen = chosen
        if self.sliding_window is not None:
            seen = seen | window_before(chosen, self.sliding_window, self.dilation or 1)
        if self.attention_chunk_size is not None:
            seen = seen | chunk_before(chosen, self.attention_chunk_size, self.previous_chunks or 0)
        if self.stride is not None:
            seen = seen | window_before(chosen, len(chosen), self.stride)
        layout = self.pattern.layout
        if layout is not None:
            seen = seen | chunk_before(chosen, layout.block_size) | blocks_before(chosen, layout)
        return seen | (everything_before(chosen) & self.pattern.remembers(np.arange(len(chosen))))


class _BiasedAttention(Attention):
    """Attention in a model whose positions are linear biases on the scores."""

    has_linear_biases: ClassVar[bool] = True


def check_shared_key_values(mixers: Sequence[Component | None]) -> tuple[int, str] | None:
    """The first of a model's sequence mixers whose shared keys and values no earlier one supplies, and why."""
    owners: dict[MaskPattern, Attention] = {}
    for index, mixer in enumerate(mixers):
        if not isinstance(mixer, Attention):
            continue
        if not mixer.shares_key_values:
            owners[mixer.pattern] = mixer
            continue
        owner = owners.get(mixer.pattern)
        if owner is None:
            return index, "no earlier attention layer with the same mask has keys and values of its own"
        for field in ("num_key_value_heads", "head_dim", "value_head_dim", "sinks", "logit_softcap"):
            if getattr(mixer, field) != getattr(owner, field):
                return index, f"the layer that they come from has another {field}"
    return None
