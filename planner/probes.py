"""Plans of the probes: jobs that measure one mechanism of a design, each with a small model made for it.

``reach``: how far back gradients lead, layer by layer. ``attention_cost``: time and memory of one attention layer
against the context, for several ways of computing it. ``gradient_norms``: gradients by depth for each placement of the
norms. ``router_load``: how many tokens each expert takes.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from planner.components import Attention, Component, MoE
from planner.components.base import refuse
from planner.errors import UnsupportedPlan
from planner.plans import TEXT, Plan
from planner.prototype import REFERENCE_CONTEXT, ScaledSpec, narrowed
from planner.spec import ArchitectureSpec, LayerGroup, NormPlacement

PLACEMENTS: tuple[NormPlacement, ...] = ("pre", "post", "sandwich", "after_residual")


class ReachPlan(Plan):
    """The reach of one position, in all layers of the design in a narrow stream."""

    sequence_length: int = Field(default=256, gt=1, le=4096)
    position: int | None = Field(default=None, ge=0)
    """The position whose stream is followed back; absent: the last."""
    keep_windows: bool = False
    """Windows and chunks as designed, where they would otherwise shrink with the sequence."""
    hidden_size: int = Field(default=32, ge=16, le=1024)
    depths: int = Field(default=16, gt=0, le=512)
    """Numbers of layers that are measured, evenly spread; the first and all of them among these."""
    precision: Literal["fp64", "fp32"] = "fp64"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.position is not None and self.position >= self.sequence_length:
            refuse(
                "position",
                f"A sequence of {self.sequence_length:,} has no position {self.position:,}.",
                f"Choose from 0 to {self.sequence_length - 1:,}.",
                "no_such_position",
            )
        return self

    @property
    def element_bytes(self) -> int:
        """Bytes of a number."""
        return 8 if self.precision == "fp64" else 4

    def probed_depths(self, num_layers: int) -> list[int]:
        """The numbers of layers after which the stream is looked at."""
        if self.depths == 1:
            return [num_layers]
        step = (num_layers - 1) / (self.depths - 1)
        return sorted({1 + round(index * step) for index in range(self.depths)})


class AttentionCostPlan(Plan):
    """Forward and backward pass of one attention layer at growing contexts, computed in several ways."""

    layer: int | None = Field(default=None, ge=0)
    """Index of the layer; absent: the first whose mask leaves out more than the future, else the first attention."""
    hidden_size: int = Field(default=256, ge=16, le=65_536)
    """Width that the layer is narrowed to, its heads with it; its window or chunk stays as designed."""
    batch_size: int = Field(default=1, gt=0, le=256)
    first_context: int = Field(default=256, ge=32, le=1_048_576)
    last_context: int = Field(default=8192, ge=32, le=1_048_576)
    repetitions: int = Field(default=11, ge=10, le=1000)
    seconds_limit: float = Field(default=4.0, gt=0, le=600)
    """A way of computing is left out of longer contexts once one pass would take more than this."""
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.last_context < 2 * self.first_context:
            refuse(
                "last_context",
                f"Contexts double from {self.first_context:,} on, and {self.last_context:,} leaves no second one.",
                f"Choose at least {2 * self.first_context:,}.",
                "too_few_contexts",
            )
        return self

    @property
    def contexts(self) -> list[int]:
        """The contexts that are measured, each twice the one before."""
        found = [self.first_context]
        while 2 * found[-1] <= self.last_context:
            found.append(2 * found[-1])
        return found


class GradientNormsPlan(Plan):
    """Gradients of the loss by depth, for the same model with its norms in different places."""

    hidden_size: int = Field(default=64, ge=16, le=4096)
    """Width that the design is narrowed to; all its layers stay."""
    placements: tuple[NormPlacement, ...] = Field(default=PLACEMENTS, min_length=1)
    steps: int = Field(default=20, ge=0, le=10_000)
    """Optimizer steps before gradients are measured a second time; 0: only at the initialization."""
    seeds: int = Field(default=3, gt=0, le=64)
    batch_size: int = Field(default=4, gt=0, le=1024)
    sequence_length: int = Field(default=128, gt=7, le=8192)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak rate; absent: by the rule for the model's width."""
    data: str = TEXT


class RouterLoadPlan(Plan):
    """How a small mixture of experts spreads tokens, before and after it was trained."""

    parameter_budget: int = Field(default=2_000_000, ge=50_000, le=2_000_000_000)
    steps: int = Field(default=100, ge=0, le=1_000_000)
    """Optimizer steps before the load is counted; 0: only at the initialization."""
    batch_size: int = Field(default=8, gt=0, le=4096)
    sequence_length: int = Field(default=128, gt=7, le=131_072)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak rate; absent: by the rule for the model's width."""
    seed: int = Field(default=0, ge=0)
    prototype: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$", max_length=100)
    """Job whose trained weights are read in place of training: a prototype of this design that was sent with the same
    parameter budget and sequence length."""
    batches: int = Field(default=8, gt=0, le=1024)
    """Batches of held-out text over which the load is counted."""
    data: str = TEXT


def attention_layers(spec: ArchitectureSpec) -> dict[int, Attention]:
    """Layers by index whose sequence mixer is attention with keys and values of its own."""
    return {
        index: layer.sequence_mixer
        for index, layer in spec.iterate_layers()
        if isinstance(layer.sequence_mixer, Attention) and not layer.sequence_mixer.shares_key_values
    }


def attention_layer(spec: ArchitectureSpec, plan: AttentionCostPlan) -> tuple[int, Attention]:
    """The layer that a plan measures, with its index; ``UnsupportedPlan`` where there is no such attention layer."""
    layers = attention_layers(spec)
    if not layers:
        raise UnsupportedPlan.of(
            "No layer of this design has attention with keys and values of its own.",
            path="layer_groups",
            remedy="Give a layer an attention mixer, or choose another design.",
            code="no_attention",
        )
    if plan.layer is not None:
        if plan.layer not in layers:
            raise UnsupportedPlan.of(
                f"Layer {plan.layer:,} has no attention with keys and values of its own.",
                path="layer",
                remedy=f"Choose one of {_some(list(layers))}.",
                code="no_attention_there",
            )
        return plan.layer, layers[plan.layer]
    index = next((index for index, mixer in layers.items() if mixer.sees_a_part), next(iter(layers)))
    return index, layers[index]


def narrowed_layer(spec: ArchitectureSpec, index: int, plan: AttentionCostPlan) -> ScaledSpec:
    """A model of the one layer with this index, its sequence mixer alone, in the plan's narrow stream; its window or
    chunk stays as designed."""
    (layer,) = [layer for place, layer in spec.iterate_layers() if place == index]
    alone = layer.model_copy(update={"channel_mixer": None, "residual": "sequential", "channel_multipliers": None})
    group = LayerGroup.model_construct(repeats=1, layers=(alone,))
    return narrowed(spec.model_copy(update={"layer_groups": (group,)}), plan.hidden_size, plan.last_context, 1.0)


HELD_SCORES = 5
"""Tensors of the size of the scores that the plain way holds at its peak, at the most."""


def held_scores_bytes(small: ArchitectureSpec, plan: AttentionCostPlan, context: int) -> int:
    """What the plain way holds of the scores of a narrowed layer at its peak."""
    heads = int(getattr(small.layer_groups[0].layers[0].sequence_mixer, "num_attention_heads", 1))
    return HELD_SCORES * 4 * plan.batch_size * heads * context**2


def expert_layers(spec: ArchitectureSpec) -> dict[int, MoE]:
    """Layers by index with a mixture of experts; ``UnsupportedPlan`` where there is none."""
    layers = {
        index: layer.channel_mixer for index, layer in spec.iterate_layers() if isinstance(layer.channel_mixer, MoE)
    }
    if not layers:
        raise UnsupportedPlan.of(
            "No layer of this design has experts to route to.",
            path="layer_groups",
            remedy="Give a layer the channel mixer moe, or choose another design.",
            code="no_experts",
        )
    return layers


def with_norm_placement(spec: ArchitectureSpec, placement: NormPlacement) -> ArchitectureSpec:
    """The same model with the norms of every layer in this place; ``InvalidSpec`` where a layer cannot have them so."""
    layers = [layer.model_copy(update={"norm_placement": placement}) for _, layer in spec.iterate_layers()]
    return spec.with_layers(layers)


def narrowed_for_gradients(spec: ArchitectureSpec, plan: GradientNormsPlan) -> ScaledSpec:
    """All layers of a design in the plan's narrow stream, windows with their share of the context."""
    return narrowed(spec, plan.hidden_size, plan.sequence_length, min(1.0, plan.sequence_length / REFERENCE_CONTEXT))


def sequence_mixers(spec: ArchitectureSpec) -> list[tuple[Component, list[int]]]:
    """The distinct sequence mixers, each with the indices of its layers, in the order of their first layers."""
    found: list[tuple[Component, list[int]]] = []
    for index, layer in spec.iterate_layers():
        if layer.sequence_mixer is None:
            continue
        for mixer, indices in found:
            if mixer == layer.sequence_mixer:
                indices.append(index)
                break
        else:
            found.append((layer.sequence_mixer, [index]))
    return found


def _some(indices: list[int]) -> str:
    shown = ", ".join(str(index) for index in indices[:6])
    return shown if len(indices) <= 6 else f"{shown} … {indices[-1]}"
