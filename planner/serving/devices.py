"""What of a model lies on one device when several serve it together.

``tensor_parallel × attention_data_parallel`` devices serve one copy of the routed experts; everything else is split
over the ``tensor_parallel`` devices of a group and repeated in each of the ``attention_data_parallel`` groups, which
have their own sequences (DeepSeek-V3, arXiv:2412.19437, section 3.4; SGLang's and vLLM's data parallel attention).

Matrices are split by columns, then by rows (Megatron-LM; arXiv:1909.08053, section 3): attention by its heads. Where
there are fewer KV heads than devices each device keeps whole ones, so that they are repeated. Latents belong to all
heads and are kept by every device. ``expert_parallel`` devices have different experts, and where that leaves devices
over, an expert's matrices are split over these. Norms, routers and the projections into latents are repeated.

Layers that are offloaded are the first ones: their weights and cache lie in the host's memory.

The layers that are left can lie on ``pipeline_parallel`` stages, one after another: of L layers in n stages the one of
index i on stage ⌊i·n/L⌋. llama.cpp counts the head as one more layer (``llm_load_tensors``). The embedding lies on the
first stage, what comes behind the layers on the last; :class:`StagePlan` is a plan as one stage has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.components import Attention, LatentAttention, MoE
from planner.components.base import CacheEntry, Component, Tensor
from planner.errors import Problem, UnsupportedPlan
from planner.plans import ServingPlan
from planner.quantities import Quantity, ceiling_divide, largest, smallest
from planner.serving.formats import engine_of
from planner.sizing import layer_components
from planner.spec import ArchitectureSpec

_WHOLE = (1, 1)
_LATENT_PROJECTIONS = ("q_a_proj", "q_a_norm", "kv_a_proj", "kv_a_norm")
_EVERYWHERE = ("router.", "shared_expert_gate.", "latent_in.", "latent_out.")


class StagePlan(ServingPlan):
    """A plan as one of its stages has it: its own layers, and at the ends what stands outside the layers."""

    stage: int

    @property
    def is_first(self) -> bool:
        """Whether it begins with the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether it ends with the head."""
        return self.stage == self.pipeline_parallel - 1


def stages_of(plan: ServingPlan) -> list[ServingPlan]:
    """The plan as each of its stages has it; itself where there is one stage, or where it is a stage's already."""
    if plan.pipeline_parallel == 1 or isinstance(plan, StagePlan):
        return [plan]
    fields = dict(plan)
    return [StagePlan.model_construct(**fields, stage=stage) for stage in range(plan.pipeline_parallel)]


def on_one_stage(plan: ServingPlan, **changes: Any) -> ServingPlan:
    """The same plan with all layers on one stage, and with other changes."""
    fields = {name: getattr(plan, name) for name in ServingPlan.model_fields}
    return ServingPlan.model_construct(**{**fields, "pipeline_parallel": 1, **changes})


def devices_of(plan: ServingPlan) -> int:
    """All devices of a plan."""
    return Split.of(plan).devices * plan.pipeline_parallel


@dataclass(frozen=True, slots=True)
class Split:
    """How many devices share what, by a plan."""

    tensor_parallel: int = 1
    attention_data_parallel: int = 1
    expert_parallel: int = 1

    @classmethod
    def of(cls, plan: ServingPlan) -> Split:
        """That of a plan."""
        return cls(plan.tensor_parallel, plan.attention_data_parallel, plan.expert_parallel)

    @property
    def devices(self) -> int:
        """All of them, of one stage."""
        return self.tensor_parallel * self.attention_data_parallel

    @property
    def expert_shards(self) -> int:
        """Devices that share one expert."""
        return self.devices // self.expert_parallel

    @property
    def alone(self) -> bool:
        """Whether there is but one device."""
        return self.devices == 1

    def sequences(self, batch_size: Quantity) -> Quantity:
        """Sequences of the fullest group."""
        return (
            batch_size
            if self.attention_data_parallel == 1
            else ceiling_divide(batch_size, self.attention_data_parallel)
        )

    def of_heads(self, heads: Quantity) -> tuple[Quantity, Quantity]:
        """The share of that many heads that a device has, as numerator and denominator."""
        return ceiling_divide(heads, self.tensor_parallel), heads

    def of_mixing(self, mixer: Component) -> tuple[Quantity, Quantity]:
        """The share of what a sequence mixer does between tokens that a device does."""
        if self.tensor_parallel == 1:
            return _WHOLE
        if isinstance(mixer, (Attention, LatentAttention)):
            return self.of_heads(mixer.num_attention_heads)
        return 1, self.tensor_parallel

    def of_tensor(self, mixer: Component, tensor: Tensor) -> tuple[Quantity, Quantity]:
        """The share of a layer's tensor that a device has."""
        if self.alone:
            return _WHOLE
        mixer, tensor = own_part(mixer, tensor)
        name, tensor_parallel = tensor.name, (1, self.tensor_parallel)
        if isinstance(mixer, MoE) and name.startswith("experts."):
            held, experts = ceiling_divide(mixer.num_experts, self.expert_parallel), mixer.num_experts
            return held, experts * self.expert_shards
        if name.startswith(_EVERYWHERE) or name.startswith(_LATENT_PROJECTIONS):
            return _WHOLE
        if isinstance(mixer, (Attention, LatentAttention)):
            if name.endswith("_norm.weight") or name.endswith("_norm.bias") or name == "o_proj.bias":
                return _WHOLE
            if isinstance(mixer, Attention) and name.startswith(("k_proj", "v_proj")):
                return self.of_heads(mixer.num_key_value_heads)
            return self.of_heads(mixer.num_attention_heads)
        return _WHOLE if name == "down_proj.bias" else tensor_parallel

    def of_outer(self, tensor: Tensor) -> tuple[Quantity, Quantity]:
        """The share of a tensor outside the layers: embedding and head are split by the vocabulary."""
        split = tensor.name.startswith(("embed_tokens.", "lm_head.", "embedding_in.", "embedding_out."))
        return (1, self.tensor_parallel) if split and not self.alone else _WHOLE

    def of_entry(self, entry: CacheEntry) -> CacheEntry:
        """What of a cached tensor a device keeps of its sequences."""
        if self.tensor_parallel == 1 or (entry.grows and len(entry.shape) < 3):
            return entry  # a latent is every head's
        if not entry.grows:
            return replace(entry, shape=(ceiling_divide(entry.elements, self.tensor_parallel),))
        heads, *others = entry.shape
        return replace(entry, shape=(ceiling_divide(heads, self.tensor_parallel), *others))


ALONE = Split()
"""A single device."""


def own_part(mixer: Component, tensor: Tensor) -> tuple[Component, Tensor]:
    """The block that a tensor belongs to, and the tensor under its name there: of mixers in parallel, one of them."""
    for end, part in mixer.parts():
        prefix = f"{end[1:]}."
        if end and tensor.name.startswith(prefix):
            return part, replace(tensor, name=tensor.name.removeprefix(prefix))
    return mixer, tensor


def part_of(quantity: Quantity, share: tuple[Quantity, Quantity]) -> Quantity:
    """A share of a quantity, rounded up: of the device that has most."""
    held, of = share
    if isinstance(held, int) and isinstance(of, int) and held == of:
        return quantity
    return ceiling_divide(quantity * held, of)


def kept_layers(spec: ArchitectureSpec, plan: ServingPlan, group_index: int, layer_index: int) -> Quantity:
    """Of the layers that stand at this place of their group, those that are not offloaded: of a stage its own."""
    repeats = spec.layer_groups[group_index].repeats
    if isinstance(plan, StagePlan):
        first, last = stage_layers(spec, plan)
        return _below(spec, last, group_index, layer_index) - _below(spec, first, group_index, layer_index)
    if plan.offload_layers == 0:
        return repeats
    return repeats - _below(spec, plan.offload_layers, group_index, layer_index)


def hosted_layers(spec: ArchitectureSpec, plan: ServingPlan, group_index: int, layer_index: int) -> Quantity:
    """Of the layers that stand at this place of their group, those that are offloaded."""
    return _below(spec, plan.offload_layers, group_index, layer_index) if plan.offload_layers else 0


def stage_layers(spec: ArchitectureSpec, plan: StagePlan) -> tuple[Quantity, Quantity]:
    """The index of a stage's first layer, and of the one behind its last."""
    layers: Quantity = 0
    for group in spec.layer_groups:
        layers = layers + len(group.layers) * group.repeats
    shared = layers - plan.offload_layers + (1 if engine_of(plan) == "llama.cpp" else 0)
    first, last = (
        plan.offload_layers + ceiling_divide(shared * stage, plan.pipeline_parallel)
        for stage in (plan.stage, plan.stage + 1)
    )
    return first, smallest(last, layers)


def _below(spec: ArchitectureSpec, bound: Quantity, group_index: int, layer_index: int) -> Quantity:
    """Of the layers that stand at this place of their group, those of an index below the bound."""
    start: Quantity = 0
    for group in spec.layer_groups[:group_index]:
        start = start + len(group.layers) * group.repeats
    group = spec.layer_groups[group_index]
    reached = ceiling_divide(bound - start - layer_index, len(group.layers))
    return smallest(group.repeats, largest(0, reached))


def device_entries(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity
) -> Iterator[tuple[Quantity, CacheEntry]]:
    """The cached tensors of one sequence that one device keeps, each with the layers that have it."""
    split = Split.of(plan)
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            kept = kept_layers(spec, plan, group_index, layer_index)
            for _, component in layer_components(spec, layer):
                for entry in component.cache(spec.hidden_size, context_length):
                    yield kept, split.of_entry(entry)


def check_devices(spec: ArchitectureSpec, plan: ServingPlan) -> None:
    """Refuse a specification in numbers that the plan's devices cannot share.

    Raises
    ------
    UnsupportedPlan
        naming every field that does not go with the specification.
    """
    problems: list[Problem] = []

    def refuse(path: str, message: str, remedy: str) -> None:
        problems.append(Problem(path, message, remedy, f"unsupported_{path}"))

    experts = sorted(set(_experts(spec)))
    uneven = next(_uneven(spec, plan.tensor_parallel), None)
    if uneven is not None:
        name, count, remedy = uneven
        refuse(
            "tensor_parallel",
            f"{name} {count:,} cannot be split over {plan.tensor_parallel:,} devices.",
            remedy,
        )
    if plan.expert_parallel > 1:
        devices = plan.tensor_parallel * plan.attention_data_parallel
        if not experts:
            refuse("expert_parallel", "There are no routed experts to share out.", "Set it to 1.")
        elif devices % plan.expert_parallel:
            refuse(
                "expert_parallel",
                f"{devices:,} devices (tensor_parallel × attention_data_parallel) cannot be split over "
                f"{plan.expert_parallel:,} groups of experts.",
                f"Choose a divisor of {devices:,}.",
            )
        elif any(count % plan.expert_parallel for count in experts):
            refuse(
                "expert_parallel",
                f"{experts[0]:,} experts cannot be shared out evenly to {plan.expert_parallel:,} devices.",
                f"Choose a divisor of {experts[0]:,}.",
            )
    if plan.offload_layers > spec.num_layers:
        refuse(
            "offload_layers",
            f"{plan.offload_layers:,} layers cannot be offloaded of {spec.num_layers:,}.",
            f"Choose at most {spec.num_layers:,}.",
        )
    elif plan.pipeline_parallel > max(1, spec.num_layers - plan.offload_layers):
        left = spec.num_layers - plan.offload_layers
        refuse(
            "pipeline_parallel",
            f"{left:,} layers cannot lie on {plan.pipeline_parallel:,} stages.",
            f"Choose at most {max(1, left):,}.",
        )
    if problems:
        raise UnsupportedPlan(problems)


def _mixers(spec: ArchitectureSpec) -> Iterator[Any]:
    for group in spec.layer_groups:
        for layer in group.layers:
            for mixer in (layer.sequence_mixer, layer.channel_mixer):
                if mixer is not None:
                    for _, part in mixer.parts():
                        yield part


_SPLIT_FIELDS = ("num_attention_heads", "num_heads", "num_key_heads", "num_value_heads", "attention_hidden_size")


def _uneven(spec: ArchitectureSpec, devices: int) -> Iterator[tuple[str, int, str]]:
    """Fields that engines split over the devices of a group and that do not come out even, with what to do."""
    for mixer in _mixers(spec):
        fields = _SPLIT_FIELDS if isinstance(mixer, MoE) else (*_SPLIT_FIELDS, "intermediate_size")
        for name in fields:
            count = getattr(mixer, name, None)
            if count is not None and count % devices:
                yield name, count, f"Choose a divisor of {count:,}."
        if isinstance(mixer, Attention) and mixer.num_key_value_heads % devices:
            count = mixer.num_key_value_heads
            # Fewer than devices they are repeated, but a device's queries must all have theirs there.
            if devices % count:
                yield "num_key_value_heads", count, f"Choose a divisor or a multiple of {count:,}."


def _experts(spec: ArchitectureSpec) -> Iterator[int]:
    for mixer in _mixers(spec):
        if isinstance(mixer, MoE):
            yield mixer.num_experts
