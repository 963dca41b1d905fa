"""Mixture of experts: a router sends each token to a few of many MLPs, beside shared experts that see all tokens.

Routing by softmax: Shazeer et al. 2017, arXiv:1701.06538; Mixtral, arXiv:2401.04088. Fine-grained and shared experts:
DeepSeekMoE, arXiv:2401.06066. Sigmoid scores with a bias that balances the load: DeepSeek-V3, arXiv:2412.19437. Experts
that work in a narrower, latent space between two projections shared by all: Nemotron 3, arXiv:2512.20856.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.components.base import (
    FUSED,
    BackwardMoment,
    Component,
    Computation,
    Operation,
    SavedTensor,
    Tensor,
    linear,
    projection,
    refuse,
)
from planner.components.mlp import Activation, activation_words, check_gate, made_inside, saved_inside
from planner.components.narrowing import Scale
from planner.quantities import Quantity


class MoE(Component):
    """Routed experts (dropless, top-k), with an optional shared expert."""

    component: ClassVar[str] = "moe"
    family: ClassVar[str] = "experts"
    grows: ClassVar[tuple[str, ...] | None] = ("intermediate_size", "shared_intermediate_size", "latent_size")
    widths: ClassVar[tuple[str, ...]] = ("intermediate_size", "shared_intermediate_size", "latent_size")
    reasons: ClassVar[dict[str, str]] = {
        "num_experts": "fewer, as the budget is small; those of a token are kept",
    }
    symbols: ClassVar[dict[str, str]] = {
        "num_experts": "E",
        "num_experts_per_tok": "k",
        "intermediate_size": "f",
        "shared_intermediate_size": "f_s",
        "latent_size": "l",
    }
    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("shared_intermediate_size",)
    context_parallel: ClassVar[bool] = True

    kind: Literal["moe"] = "moe"
    num_experts: int = Field(gt=0)
    num_experts_per_tok: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    """Width of one routed expert."""
    shared_intermediate_size: int | None = Field(default=None, gt=0)
    """Width of all shared experts together; absent: none."""
    shared_expert_gate: bool = False
    """Whether the shared expert's output is scaled by a learned sigmoid, as in Qwen2-MoE."""
    shared_expert_bias: bool = False
    shared_scaling_factor: float = Field(default=1.0, gt=0)
    """Factor on the shared expert's output, as ``routed_scaling_factor`` is on the others'."""
    latent_size: int | None = Field(default=None, gt=0)
    """Width of the space that the routed experts work in, between a projection into it and one back; absent: that of
    the stream."""
    latent_bias: bool = False
    gated: bool = True
    activation: Activation = "silu"
    expert_bias: bool = False
    """Whether the routed experts' projections have biases, as in GPT-OSS."""
    router_bias: bool = False
    router_scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize_weights: bool = True
    """Whether the chosen experts' weights are made to sum to one; of softmax scores, a softmax over the chosen."""
    weights_on_input: bool = False
    """Whether an expert's weight multiplies its input (Llama 4), not its output."""
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    num_expert_groups: int = Field(default=1, gt=0)
    """Experts are first chosen by group (DeepSeek-V2, arXiv:2405.04434); 1: no groups."""
    groups_per_tok: int = Field(default=1, gt=0)
    group_score: Literal["sum_of_two", "max"] = "sum_of_two"
    """A group's score: the sum of its two best experts' (DeepSeek-V3), or its best one's (DeepSeek-V2)."""
    score_correction_bias: bool = False
    """A vector that steers the choice of experts: a persistent buffer, or a parameter that no gradient reaches."""
    score_correction_is_parameter: bool = False
    """Whether the correction counts among the parameters (ERNIE 4.5, Trinity)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.score_correction_is_parameter and not self.score_correction_bias:
            refuse(
                "score_correction_is_parameter",
                "There is no correction of the scores.",
                "Set score_correction_bias to true, or this to false.",
                "no_correction",
            )
        if self.num_experts_per_tok > self.num_experts:
            refuse(
                "num_experts_per_tok",
                f"A token cannot go to {self.num_experts_per_tok} of {self.num_experts} experts.",
                f"Choose at most {self.num_experts}.",
                "too_many_experts_per_token",
            )
        if self.num_experts % self.num_expert_groups:
            refuse(
                "num_expert_groups",
                f"{self.num_experts} experts cannot be split into {self.num_expert_groups} groups evenly.",
                f"Choose a divisor of {self.num_experts}.",
                "groups_not_divisible",
            )
        if self.groups_per_tok > self.num_expert_groups:
            refuse(
                "groups_per_tok",
                f"A token cannot choose {self.groups_per_tok} of {self.num_expert_groups} groups.",
                f"Choose at most {self.num_expert_groups}.",
                "too_many_groups_per_token",
            )
        choosable = self.groups_per_tok * (self.num_experts // self.num_expert_groups)
        if self.num_experts_per_tok > choosable:
            refuse(
                "num_experts_per_tok",
                f"The chosen groups hold only {choosable} experts, fewer than {self.num_experts_per_tok}.",
                f"Choose at most {choosable}, or raise groups_per_tok.",
                "too_many_experts_per_token",
            )
        if self.shared_expert_gate and self.shared_intermediate_size is None:
            refuse(
                "shared_expert_gate",
                "There is no shared expert to gate.",
                "Set shared_intermediate_size, or turn the gate off.",
                "no_shared_expert",
            )
        if self.shared_expert_bias and self.shared_intermediate_size is None:
            refuse(
                "shared_expert_bias",
                "There is no shared expert to have biases.",
                "Set shared_intermediate_size, or turn the biases off.",
                "no_shared_expert",
            )
        if self.shared_scaling_factor != 1 and self.shared_intermediate_size is None:
            refuse(
                "shared_scaling_factor",
                "There is no shared expert to scale.",
                "Set shared_intermediate_size, or remove the factor.",
                "no_shared_expert",
            )
        if self.latent_bias and self.latent_size is None:
            refuse(
                "latent_bias",
                "There is no latent space whose projections could have biases.",
                "Set latent_size, or turn the biases off.",
                "no_latent_space",
            )
        check_gate(self.activation, self.gated)
        return self

    def _expert_inputs(self, hidden_size: Quantity) -> Quantity:
        """Channels that enter and leave a routed expert."""
        return hidden_size if self.latent_size is None else self.latent_size

    def variety(self) -> str:
        return activation_words(self.activation, self.gated)

    def describe(self) -> str:
        return f"{self.num_experts_per_tok:,} of {self.num_experts:,} experts, {self.intermediate_size:,} each"

    @property
    def fewest_experts(self) -> int:
        """Experts that leave the choice a choice: twice those of a token, in whole groups."""
        per_group = math.ceil(self.num_experts_per_tok / self.groups_per_tok)
        wanted = max(2 * self.num_experts_per_tok, self.num_expert_groups * per_group)
        in_groups = math.ceil(wanted / self.num_expert_groups) * self.num_expert_groups
        return min(self.num_experts, in_groups)

    @property
    def expert_span(self) -> float:
        return self.num_experts / self.fewest_experts

    def scaled(self, scale: Scale) -> Self:
        made = super().scaled(scale)
        if scale.expert_divisor == 1:
            return made
        fewer = self.num_experts // scale.expert_divisor
        in_groups = fewer // self.num_expert_groups * self.num_expert_groups
        return made.model_copy(update={"num_experts": max(self.fewest_experts, in_groups)})

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        experts, width, inputs = self.num_experts, self.intermediate_size, self._expert_inputs(hidden_size)
        share = (self.num_experts_per_tok, experts)
        yield from linear("router", self.component, experts, hidden_size, self.router_bias)
        if self.latent_size is not None:
            yield from linear("latent_in", self.component, self.latent_size, hidden_size, self.latent_bias)
        name, rows = ("experts.gate_up_proj", 2 * width) if self.gated else ("experts.up_proj", width)
        yield Tensor(name, (experts, rows, inputs), self.component, share, split="experts")
        if self.expert_bias:
            yield Tensor(f"{name}_bias", (experts, rows), self.component, share, is_matrix=False, split="experts")
        yield Tensor("experts.down_proj", (experts, inputs, width), self.component, share, split="experts")
        if self.expert_bias:
            yield Tensor(
                "experts.down_proj_bias", (experts, inputs), self.component, share, is_matrix=False, split="experts"
            )
        if self.latent_size is not None:
            yield from linear("latent_out", self.component, hidden_size, self.latent_size, self.latent_bias)
        if self.shared_intermediate_size is not None:
            shared, bias = self.shared_intermediate_size, self.shared_expert_bias
            if self.gated:
                yield from linear("shared_expert.gate_proj", self.component, shared, hidden_size, bias, "columns")
            yield from linear("shared_expert.up_proj", self.component, shared, hidden_size, bias, "columns")
            yield from linear("shared_expert.down_proj", self.component, hidden_size, shared, bias, "rows")
        if self.shared_expert_gate:
            yield from linear("shared_expert_gate", self.component, 1, hidden_size)

        if self.score_correction_bias and self.score_correction_is_parameter:
            yield self._score_correction()

    def buffers(self, hidden_size: Quantity) -> Iterator[Tensor]:
        if self.score_correction_bias and not self.score_correction_is_parameter:
            yield self._score_correction()

    def _score_correction(self) -> Tensor:
        return Tensor("router.score_correction_bias", (self.num_experts,), self.component, dtype_class="float32")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        yield projection("router", self.component, tokens, hidden_size, self.num_experts)
        rows, inputs = tokens * self.num_experts_per_tok, self._expert_inputs(hidden_size)
        widen = 2 * self.intermediate_size if self.gated else self.intermediate_size
        if self.latent_size is not None:
            yield projection("into the latent space", self.component, tokens, hidden_size, self.latent_size)
        yield projection("experts up", self.component, rows, inputs, widen)
        yield projection("experts down", self.component, rows, self.intermediate_size, inputs)
        if self.latent_size is not None:
            yield projection("out of the latent space", self.component, tokens, self.latent_size, hidden_size)
        if self.shared_intermediate_size is not None:
            shared = self.shared_intermediate_size
            widen = 2 * shared if self.gated else shared
            yield projection("shared expert up", self.component, tokens, hidden_size, widen)
            yield projection("shared expert down", self.component, tokens, shared, hidden_size)
        if self.shared_expert_gate:
            yield projection("shared expert gate", self.component, tokens, hidden_size, 1)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        return self.kept(hidden_size, sequence_length, batch_size, FUSED)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        rows, inputs = tokens * self.num_experts_per_tok, self._expert_inputs(hidden_size)
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("router scores", tokens * self.num_experts, "float32")
        yield SavedTensor("chosen experts, and rows there and back", 3 * rows, "int64")
        if self.expert_bias:
            yield SavedTensor("experts of the sorted rows", rows, "int64", "rows")
        if self.normalize_weights:
            yield SavedTensor("weights and their sum", rows + tokens, "float32")
        if how.weighs_inside:
            yield SavedTensor("weights of the sorted rows", rows, "float32", "rows")
        else:
            yield SavedTensor("weights of the chosen experts", rows)
        yield SavedTensor("ends of the experts' rows", self.num_experts, "int32", "whole")
        yield SavedTensor("rows sorted by expert", rows * inputs, split="rows")
        yield from saved_inside(self.activation, self.gated, rows, self.intermediate_size, "expert")
        if not how.weighs_inside:
            name = "weighted expert inputs" if self.weights_on_input else "expert outputs"
            yield SavedTensor(name, rows * inputs, split="rows")
        if self.latent_size is not None:
            yield SavedTensor("mixed latents", tokens * self.latent_size)
        if self.shared_intermediate_size is not None:
            width = self.shared_intermediate_size
            yield from saved_inside(self.activation, self.gated, tokens, width, of=" of the shared expert")
        if self.shared_expert_gate:
            yield SavedTensor("shared expert's output and gate", tokens * (hidden_size + 1))

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """The shared expert comes first; then the routed ones, from their weights to what they read."""
        rows, width = batch_size * sequence_length * self.num_experts_per_tok, self.intermediate_size
        inputs = rows * self._expert_inputs(hidden_size)
        outer = SavedTensor("gradient of the experts' rows", inputs, split="rows")
        inner = SavedTensor("gradient of what was activated", rows * width, split="expert")
        of_shared = " of the shared expert"
        before = tuple(f"{name}{of_shared}" for name in ("activated", "gate and up projections", "up projection"))
        outputs = (*before, "expert outputs", "shared expert's output and gate")
        first, last = ("experts.gate_up_proj", "experts.up_proj"), ("experts.down_proj",)
        ready: tuple[str, ...] = ("shared_expert", "latent_out")
        yield BackwardMoment((outer, outer), before, ready)
        yield BackwardMoment((outer, inner), outputs, ready, fresh=last)
        freed: tuple[str, ...] = (*outputs, "activated")
        yield BackwardMoment((inner,), freed, ready, cast=last)
        ready = (*ready, *last)
        yield BackwardMoment((made_inside(self.gated, rows, width, "expert"),), freed, ready)
        both = SavedTensor("gradients of the projections", (2 if self.gated else 1) * rows * width, split="expert")
        freed = (*freed, "gate and up projections", "up projection")
        yield BackwardMoment((both, outer), freed, ready, fresh=first)
        freed = (*freed, "rows sorted by expert", "ends of the experts' rows")
        yield BackwardMoment((outer,), freed, ready, copied=first)
        scores = SavedTensor("gradients of all scores", 2 * batch_size * sequence_length * self.num_experts, "float32")
        freed = (*freed, "chosen experts, and rows there and back", "weights of the chosen experts")
        yield BackwardMoment((scores,), freed, (*ready, *first))
