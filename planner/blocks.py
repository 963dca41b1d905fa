"""What each block of a model costs, and the plain multi-head design that a model is held against.

The blocks are the ones that a diagram shows: what stands outside the layers, each part of each layer of a group's
pattern, and the layers and groups that hold them. The sums of the parts are the totals of :func:`planner.size`,
:func:`planner.flops` and :func:`planner.cache_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cache import entry_bytes, model_cache
from planner.components import Attention, Component, LatentAttention
from planner.components.patterns import MaskPattern
from planner.compute import model_operations
from planner.sizing import layer_tensors, outer_block, outer_tensors
from planner.spec import ArchitectureSpec, Layer, LayerGroup, LearnedPositions


@dataclass(frozen=True, slots=True)
class Block:
    """One block, over all repeats of its group."""

    path: str
    """``token_embedding``, ``embedding_norm``, ``final_norm``, ``lm_head``, a part as
    ``layer_groups[0].layers[1].sequence_mixer``, or what holds parts: ``layer_groups[0].layers[1]``,
    ``layer_groups[0]``."""
    repeats: int
    parameters: int
    parameters_share: float
    flops: int
    """Of a forward pass, as FlopCounterMode counts them."""
    flops_share: float
    cache_bytes: int
    cache_share: float

    @property
    def parameters_each(self) -> int:
        """Parameters of one repeat."""
        return self.parameters // self.repeats

    @property
    def cache_bytes_each(self) -> int:
        """Cache of one repeat."""
        return self.cache_bytes // self.repeats


def blocks(
    spec: ArchitectureSpec, *, sequence_length: int, context_length: int, batch_size: int = 1, cache_dtype: str = "bf16"
) -> dict[str, Block]:
    """Every block by its path: the parts in the order in which the model applies them, then what holds them."""
    repeats = dict(_paths(spec))
    parameters = dict.fromkeys(repeats, 0)
    operations = dict.fromkeys(repeats, 0)
    cached = dict.fromkeys(repeats, 0)
    for tensor in outer_tensors(spec):
        parameters[outer_block(tensor.name)] += tensor.count
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            for part, tensor in layer_tensors(spec, layer):
                parameters[f"layer_groups[{group_index}].layers[{layer_index}].{part}"] += tensor.count * group.repeats
    for path, times, operation in model_operations(spec, sequence_length, batch_size):
        operations[path] += operation.flops * times
    for path, times, entry in model_cache(spec, context_length):
        cached[path] += entry_bytes(entry, cache_dtype) * times * batch_size
    for group_index, group in enumerate(spec.layer_groups):
        whole = f"layer_groups[{group_index}]"
        repeats[whole] = group.repeats
        for layer_index in range(len(group.layers)):
            repeats[f"{whole}.layers[{layer_index}]"] = group.repeats
    return {
        path: Block(
            path,
            times,
            *_under(parameters, path),
            *_under(operations, path),
            *_under(cached, path),
        )
        for path, times in repeats.items()
    }


def _under(values: dict[str, int], path: str) -> tuple[int, float]:
    """What ``path`` and all that lies in it have, and their share of the whole."""
    own = sum(value for leaf, value in values.items() if leaf == path or leaf.startswith(f"{path}."))
    total = sum(values.values())
    return own, own / total if total else 0.0


def _paths(spec: ArchitectureSpec) -> Iterator[tuple[str, int]]:
    yield "token_embedding", 1
    if spec.embedding_norm:
        yield "embedding_norm", 1
    if isinstance(spec.positions, LearnedPositions):
        yield "position_embedding", 1
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            where = f"layer_groups[{group_index}].layers[{layer_index}]"
            for part in layer.parts:
                yield f"{where}.{part}", group.repeats
    if spec.final_norm:
        yield "final_norm", 1
    yield "lm_head", 1


def layer_parts(layer: Layer) -> tuple[str, ...]:
    """The parts of a layer in the order in which they act: norms and mixers."""
    return layer.parts


def multi_head_reference(spec: ArchitectureSpec) -> ArchitectureSpec | None:
    """The same model with a KV head for every query head and no windows; ``None`` where no layer attends.

    Latent attention is replaced by heads as wide as its values.
    """
    groups = tuple(
        LayerGroup(repeats=group.repeats, layers=tuple(_multi_head(layer) for layer in group.layers))
        for group in spec.layer_groups
    )
    sequence = [layer.sequence_mixer for group in groups for layer in group.layers]
    if not any(isinstance(part, Attention) for mixer in sequence if mixer is not None for _, part in mixer.parts()):
        return None
    return spec.model_copy(update={"layer_groups": groups, "name": "MHA, all full"})


def _multi_head(layer: Layer) -> Layer:
    mixer = layer.sequence_mixer
    return layer if mixer is None else layer.model_copy(update={"sequence_mixer": mixer.with_parts(_every_head)})


def _every_head(mixer: Component) -> Component:
    if isinstance(mixer, Attention):
        everything = dict.fromkeys(MaskPattern.__dataclass_fields__)
        return mixer.model_copy(update={"num_key_value_heads": mixer.num_attention_heads, **everything})
    if isinstance(mixer, LatentAttention):
        return Attention(
            num_attention_heads=mixer.num_attention_heads,
            num_key_value_heads=mixer.num_attention_heads,
            head_dim=mixer.v_head_dim,
        )
    return mixer
