"""Where a model's parameters, FLOPs and cache lie: by tensor over all layers, and layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from planner.blocks import blocks
from planner.components.base import Tensor
from planner.plans import ServingPlan, TrainingPlan
from planner.quantities import Quantity
from planner.sizing import active_count, layer_tensors, outer_tensors
from planner.spec import ArchitectureSpec


@dataclass(frozen=True, slots=True)
class TensorShare:
    """Tensors of one name in one kind of component, over all layers."""

    component: str
    name: str
    count: Quantity
    """Elements of all of them."""
    active: Quantity
    """Of these, what one token touches."""


def by_tensor(spec: ArchitectureSpec) -> list[TensorShare]:
    """Every kind of tensor in the order in which the model applies them; the counts sum to the parameters."""
    found: dict[tuple[str, str], TensorShare] = {}

    def add(tensor: Tensor, name: str, times: Quantity) -> None:
        key = (tensor.component, name)
        before = found.get(key, TensorShare(*key, 0, 0))
        found[key] = TensorShare(
            *key, before.count + tensor.count * times, before.active + active_count(tensor) * times
        )

    outer = list(outer_tensors(spec))
    for tensor in outer:
        if tensor.name.startswith("embed"):
            add(tensor, tensor.name, 1)
    for group in spec.layer_groups:
        for layer in group.layers:
            for part, tensor in layer_tensors(spec, layer):
                name = tensor.name if part.endswith("_mixer") else f"{part}.{tensor.name}"
                add(tensor, name, group.repeats)
    for tensor in outer:
        if not tensor.name.startswith("embed"):
            add(tensor, tensor.name, 1)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class ComponentShare:
    """One kind of component."""

    component: str
    count: int
    share: float
    active: int
    active_share: float


def by_component(spec: ArchitectureSpec) -> list[ComponentShare]:
    """Parameters and active parameters of each kind of component, the largest first."""
    counts: dict[str, int] = {}
    active: dict[str, int] = {}
    for tensor in by_tensor(spec):
        counts[tensor.component] = counts.get(tensor.component, 0) + tensor.count
        active[tensor.component] = active.get(tensor.component, 0) + tensor.active
    total, touched = sum(counts.values()), sum(active.values())
    return [
        ComponentShare(name, counts[name], counts[name] / total, active[name], active[name] / touched)
        for name in sorted(counts, key=lambda name: -counts[name])
    ]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer: what its sequence mixer, its channel mixer and its norms have."""

    index: int
    sequence_mixer: int
    channel_mixer: int
    norms: int


MEASURES = ("parameters", "flops", "cache_bytes")


def by_layer(spec: ArchitectureSpec, measure: str, serving: ServingPlan, training: TrainingPlan) -> list[LayerCost]:
    """One of :data:`MEASURES` in every layer; FLOPs are those of a forward pass over ``batch_size`` sequences."""
    found = blocks(
        spec,
        sequence_length=training.sequence_length,
        context_length=serving.context_length,
        batch_size=serving.batch_size,
        cache_dtype=serving.cache_dtype,
    )
    costs: list[LayerCost] = []
    for group_index, group in enumerate(spec.layer_groups):
        pattern: list[tuple[int, int, int]] = []
        for layer_index in range(len(group.layers)):
            own = f"layer_groups[{group_index}].layers[{layer_index}]."
            each = {"sequence_mixer": 0, "channel_mixer": 0, "norms": 0}
            for path, block in found.items():
                if path.startswith(own):
                    part = path.removeprefix(own)
                    part = part if part in each else "norms"
                    each[part] += getattr(block, measure) // group.repeats
            pattern.append((each["sequence_mixer"], each["channel_mixer"], each["norms"]))
        for _ in range(group.repeats):
            for parts in pattern:
                costs.append(LayerCost(len(costs), *parts))
    return costs
