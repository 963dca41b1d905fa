"""Edits of a specification's structure: each takes one and gives another, so that undo is a stack of specifications.

Layers are named by their index in the unfolded stack. A group keeps its pattern where an edit leaves it periodic, and
is split into as few groups as needed where it does not. Nothing is validated twice: parts that an edit does not touch
are shared with the specification it came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from planner import ArchitectureSpec, InvalidSpec, Layer, LayerGroup
from planner.components import ChannelMixer, Component, SequenceMixer
from planner.components import kinds_of as kinds_of
from planner.spec import problems_of

MIXER_UNIONS: dict[str, Any] = {"sequence_mixer": SequenceMixer, "channel_mixer": ChannelMixer}
BESIDE_EACH_OTHER = {"first": "mamba2", "second": "attention"}
"""What two mixers in parallel begin with: Falcon-H1's."""
_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Fields that mean the same in every component that has them; a ``head_dim`` of attention is none of Mamba's."""
LARGEST_STACK = 2048
"""Layers that the editor takes: more is a slip of the keyboard, and the strip could not show them."""


def unfolded(spec: ArchitectureSpec) -> list[Layer]:
    """Every layer of the stack."""
    return [layer for _, layer in spec.iterate_layers()]


def rebuilt(spec: ArchitectureSpec, **changes: Any) -> ArchitectureSpec:
    """The specification with other fields, validated as a whole; raises ``InvalidSpec``."""
    values = {name: getattr(spec, name) for name in type(spec).model_fields} | changes
    try:
        return ArchitectureSpec(**values)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from error


def revalued(part: BaseModel, changes: dict[str, Any]) -> Any:
    """A component with other values in some fields; raises ``InvalidSpec`` with paths relative to the component."""
    values = {name: getattr(part, name) for name in type(part).model_fields} | changes
    try:
        return type(part).model_validate(values)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from error


def group_ranges(spec: ArchitectureSpec) -> list[range]:
    """The layers of each group."""
    ends = itertools.accumulate(group.num_layers for group in spec.layer_groups)
    return [range(end - group.num_layers, end) for end, group in zip(ends, spec.layer_groups, strict=True)]


def pattern_indices(spec: ArchitectureSpec, group: int, layer: int) -> tuple[int, ...]:
    """All repeats of one layer of a group's pattern."""
    layers = group_ranges(spec)[group]
    return tuple(layers[layer :: len(spec.layer_groups[group].layers)])


def layers_in_words(layers: tuple[int, ...]) -> str:
    """How layers are called on a page: ``layer 3``, ``layers 0–31`` or ``layers 0, 3, 6, 9, …``."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers[-1] - layers[0] + 1 == len(layers):
        return f"layers {layers[0]}–{layers[-1]}"
    shown = ", ".join(str(layer) for layer in layers[:4])
    return f"layers {shown}{', …' if len(layers) > 4 else ''}"


def change_layers(
    spec: ArchitectureSpec, indices: Collection[int], change: Callable[[Layer], Layer]
) -> ArchitectureSpec:
    """The specification with ``change`` applied to the chosen layers."""
    chosen = set(indices)
    made: dict[int, Layer] = {}

    def changed(layer: Layer) -> Layer:
        if id(layer) not in made:
            made[id(layer)] = change(layer)
        return made[id(layer)]

    layers = [changed(layer) if index in chosen else layer for index, layer in spec.iterate_layers()]
    return _regrouped(spec, [[layers[index] for index in group] for group in group_ranges(spec)])


def remove_layers(spec: ArchitectureSpec, indices: Collection[int]) -> ArchitectureSpec:
    """The specification without the chosen layers; raises ``InvalidSpec`` if none would be left."""
    chosen = set(indices)
    layers = unfolded(spec)
    return _regrouped(spec, [[layers[i] for i in group if i not in chosen] for group in group_ranges(spec)])


def duplicate_layers(spec: ArchitectureSpec, indices: Collection[int]) -> ArchitectureSpec:
    """The specification with each run of chosen layers standing twice."""
    chosen = set(indices)
    layers = unfolded(spec)
    slices = []
    for group in group_ranges(spec):
        grown: list[Layer] = []
        run: list[Layer] = []
        for index in group:
            grown.append(layers[index])
            if index in chosen:
                run.append(layers[index])
            if run and (index + 1 not in chosen or index + 1 not in group):
                grown += run
                run = []
        slices.append(grown)
    return _regrouped(spec, slices)


def append_layer(spec: ArchitectureSpec, after: int | None = None) -> ArchitectureSpec:
    """The specification with a copy of layer ``after`` (default: the last) behind it."""
    return duplicate_layers(spec, [spec.num_layers - 1 if after is None else after])


def set_repeats(spec: ArchitectureSpec, group: int, repeats: Any) -> ArchitectureSpec:
    """The specification with a group repeated another number of times; raises ``InvalidSpec``."""
    groups = list(spec.layer_groups)
    try:
        groups[group] = LayerGroup(repeats=repeats, layers=groups[group].layers)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from error
    return _with_groups(spec, groups)


def move_group(spec: ArchitectureSpec, group: int, by: int) -> ArchitectureSpec:
    """The specification with a group ``by`` places further down the stack (negative: up)."""
    groups = list(spec.layer_groups)
    place = max(0, min(len(groups) - 1, group + by))
    groups.insert(place, groups.pop(group))
    return _with_groups(spec, groups)


def _regrouped(spec: ArchitectureSpec, slices: Sequence[Sequence[Layer]]) -> ArchitectureSpec:
    groups: list[LayerGroup] = []
    for group, layers in zip(spec.layer_groups, slices, strict=True):
        groups += _folded(layers, len(group.layers))
    return _with_groups(spec, groups)


def _folded(layers: Sequence[Layer], period: int) -> Iterable[LayerGroup]:
    """Groups that unfold to ``layers``: chunks of ``period``, equal neighbours taken together."""
    chunks = [tuple(layers[start : start + period]) for start in range(0, len(layers), period)]
    for chunk, equal in itertools.groupby(chunks):
        times = len(list(equal))
        if all(layer == chunk[0] for layer in chunk):
            yield LayerGroup(repeats=times * len(chunk), layers=chunk[:1])
        else:
            yield LayerGroup(repeats=times, layers=chunk)


def _with_groups(spec: ArchitectureSpec, groups: Sequence[LayerGroup]) -> ArchitectureSpec:
    merged: list[LayerGroup] = []
    for group in groups:
        if merged and merged[-1].layers == group.layers:
            group = LayerGroup(repeats=merged.pop().repeats + group.repeats, layers=group.layers)
        merged.append(group)
    total = sum(group.num_layers for group in merged)
    if total > LARGEST_STACK:
        raise InvalidSpec.of(
            f"{total:,} layers are more than the editor takes.",
            path="repeats",
            remedy=f"Stay at or below {LARGEST_STACK:,}.",
            code="too_many_layers",
        )
    return rebuilt(spec, layer_groups=tuple(merged))


def starting_part(component: type[Component], spec: ArchitectureSpec, like: Component | None = None) -> Component:
    """A component of another kind to begin with: the design's own where it has one, else usual proportions.

    Counts of heads and the inner width are taken over from ``like`` where it has them.
    """
    kind = component.model_fields["kind"].default
    for layer in unfolded(spec):
        for part in (layer.sequence_mixer, layer.channel_mixer):
            if part is not None and part.kind == kind:
                return part
    hidden = spec.hidden_size
    head_dim = 128 if hidden >= 2048 else 64 if hidden >= 256 else 16
    heads = max(1, hidden // head_dim)
    usual: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "kv_lora_rank": 4 * head_dim,
        "qk_nope_head_dim": head_dim,
        "qk_rope_head_dim": max(2, head_dim // 2),
        "v_head_dim": head_dim,
        "state_size": 128 if kind == "mamba2" else 16,
        "num_heads": max(1, 2 * hidden // 64),
        "time_step_rank": max(1, hidden // 16),
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_positions": 4096,
        "intermediate_size": 2 * hidden if kind.startswith("mamba") else 4 * hidden,
    }
    if kind == "parallel_mixers":
        beginnings = {slot: kinds_of(SequenceMixer)[name] for slot, name in BESIDE_EACH_OTHER.items()}
        usual |= {slot: starting_part(part, spec, like) for slot, part in beginnings.items()}
    if kind == "mamba2":
        usual["head_dim"] = 64 if hidden >= 64 else hidden
        usual["num_heads"] = max(1, 2 * hidden // usual["head_dim"])
    values: dict[str, Any] = {}
    for name, field in component.model_fields.items():
        kept = getattr(like, name, None) if name in _SHARED else None
        if field.is_required():
            values[name] = kept if kept is not None else usual.get(name, hidden)
    try:
        return component(**values)
    except ValidationError:  # what was kept from the other kind does not go together here
        return component(**{name: usual.get(name, hidden) for name in values})
