"""The inspector: the few fields of what is selected, what can be done with it, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from pages.widgets import chrome, edits, figures, mask_view, spec_fields, words
from pages.widgets.draft import Draft
from pages.widgets.spec_fields import Form
from planner import ArchitectureSpec, Layer, PlannerError, Problem
from planner.blocks import Block
from planner.components import Component, Norm
from planner.spec import Positions

NOTHING = "none"


def show(draft: Draft, costs: Mapping[str, Block]) -> None:
    """The fields of the selection, as the contents of a panel."""
    if draft.part == "model" or not draft.selected:
        _model(draft)
        return
    layers = [layer for index, layer in draft.spec.iterate_layers() if index in set(draft.selected)]
    lead = layers[0]
    where = edits.layers_in_words(draft.selected)
    if draft.part == "layer":
        chrome.heading("Layer" if len(draft.selected) == 1 else "Layers", where)
        _tools(draft)
        _layer(draft, lead)
    else:
        mixer = getattr(lead, draft.part)
        same = sum(_kind(getattr(layer, draft.part)) == _kind(mixer) for layer in layers)
        note = where if same == len(layers) else f"{where} · fields apply to {same} of {len(layers)}"
        chrome.heading(words.kind_label(mixer.kind) if mixer is not None else draft.part.replace("_", " "), note)
        _tools(draft)
        _mixer(draft, mixer)
    _cost(draft, costs)
    if draft.part == "sequence_mixer" and lead.sequence_mixer is not None:
        mask_view.show(draft.spec, lead.sequence_mixer, draft.settings)


def _kind(mixer: Any) -> str:
    return NOTHING if mixer is None else str(mixer.kind)


def _form(draft: Draft, name: str, apply: Any) -> Form:
    return Form(f"{name}:{draft.generation}", apply, draft.problems, draft.typed)


def try_edit(draft: Draft, edit: Any, *arguments: Any, field: str = "") -> bool:
    """Make an edit of the structure; where it cannot be made the message stands at ``field``."""
    try:
        spec = edit(draft.spec, *arguments)
    except PlannerError as error:
        draft.problems[field] = error.problems[0]
        return False
    draft.change(spec)
    return True


# ---------------------------------------------------------------- the model's own fields


def _model(draft: Draft) -> None:
    chrome.heading("Model", "vocabulary, width, positions, norms")
    key = f"model:{draft.generation}"
    label, box = st.columns([1.3, 2.1], gap="small", vertical_alignment="center")
    label.markdown("Name")
    name_key = f"{key}:name"
    box.text_input(
        "Name",
        value=draft.spec.name,
        key=name_key,
        label_visibility="collapsed",
        on_change=_rename,
        args=(draft, name_key, st.session_state.get(name_key, draft.spec.name)),
    )
    if "name" in draft.problems:
        chrome.field_error(draft.problems["name"])

    def apply(changes: Mapping[str, Any]) -> None:
        draft.change(edits.revalued(draft.spec, dict(changes)), refresh=False)

    names = tuple(view.name for view in spec_fields.fields_of(ArchitectureSpec))
    spec_fields.show(draft.spec, _form(draft, "model", apply), names)
    _part_of_model(draft, "positions", Positions)
    _part_of_model(draft, "norm", Norm)
    with st.container(horizontal=True, gap="small", key="stack-tools"):
        st.button("Add a layer", on_click=_append, args=(draft,), help="A copy of the last layer, behind it")
        st.button(
            "Fold the stack",
            on_click=_fold,
            args=(draft,),
            help="Write the stack as its shortest repeating pattern, else as runs of equal layers",
        )
    if "layers" in draft.problems:
        chrome.field_error(draft.problems["layers"])


def _append(draft: Draft) -> None:
    if try_edit(draft, edits.append_layer, field="layers"):
        draft.select("layer", (draft.spec.num_layers - 1,))


def _fold(draft: Draft) -> None:
    try_edit(draft, lambda spec: spec.with_layers(edits.unfolded(spec)), field="layers")


def _rename(draft: Draft, key: str, shown: str) -> None:
    if st.session_state[key] == shown:  # from a browser that has not taken the last answer yet
        return
    draft.problems.pop("name", None)
    try:
        draft.change(edits.revalued(draft.spec, {"name": st.session_state[key].strip()}), refresh=False)
    except PlannerError as error:
        draft.problems["name"] = error.problems[0]


def _part_of_model(draft: Draft, name: str, union: Any) -> None:
    """A part of the model that is one of several kinds: its kind and its fields."""
    part: Any = getattr(draft.spec, name)
    model: type[Component] = type(part)
    kinds = edits.kinds_of(union)
    key = f"kind:{name}:{draft.generation}"

    def switch() -> None:
        chosen = st.session_state[key]
        if chosen != part.kind:
            made = edits.starting_part(kinds[chosen], draft.spec)
            try_edit(draft, lambda spec: edits.rebuilt(spec, **{name: made}), field=f"{name}.kind")

    _choice(spec_fields.label_of(name), list(kinds), part.kind, key, switch, draft.problems.get(f"{name}.kind"))

    def apply(changes: Mapping[str, Any]) -> None:
        draft.change(edits.rebuilt(draft.spec, **{name: edits.revalued(part, dict(changes))}), refresh=False)

    if spec_fields.fields_of(model):
        spec_fields.show(part, _form(draft, name, apply))


# ---------------------------------------------------------------- layers and groups


def _tools(draft: Draft) -> None:
    groups = edits.group_ranges(draft.spec)
    own = [index for index, layers in enumerate(groups) if set(layers) == set(draft.selected)]
    with st.container(horizontal=True, gap="small", key="inspector-tools"):
        st.button("Duplicate", on_click=_duplicate, args=(draft,), help="Put a copy of these layers behind them")
        st.button("Remove", on_click=_remove, args=(draft,), help="Take these layers out")
        if own and len(groups) > 1:
            group = own[0]
            st.button("↑", key="group-up", on_click=_move, args=(draft, group, -1), disabled=group == 0, help="Move up")
            last = group == len(groups) - 1
            st.button("↓", key="group-down", on_click=_move, args=(draft, group, 1), disabled=last, help="Move down")
    if "layers" in draft.problems:
        chrome.field_error(draft.problems["layers"])


def _duplicate(draft: Draft) -> None:
    try_edit(draft, edits.duplicate_layers, draft.selected, field="layers")


def _remove(draft: Draft) -> None:
    if len(draft.selected) >= draft.spec.num_layers:
        draft.problems["layers"] = Problem(
            "layer_groups", "A model needs at least one layer.", "Keep one, and change its mixers.", "too_short"
        )
        return
    keep = draft.selected
    if try_edit(draft, edits.remove_layers, keep, field="layers"):
        draft.select("model")


def _move(draft: Draft, group: int, by: int) -> None:
    size = draft.spec.layer_groups[group].num_layers
    other = draft.spec.layer_groups[group + by].num_layers
    if try_edit(draft, edits.move_group, group, by, field="layers"):
        start = draft.selected[0] + (other if by > 0 else -other)
        draft.select(draft.part, tuple(range(start, start + size)))


def _layer(draft: Draft, lead: Layer) -> None:
    groups = edits.group_ranges(draft.spec)
    for index, layers in enumerate(groups):
        if set(layers) == set(draft.selected):
            _repeats(draft, index)
    for part in edits.MIXER_UNIONS:
        _kind_switch(draft, part, getattr(lead, part))

    def apply(changes: Mapping[str, Any]) -> None:
        changed = edits.change_layers(draft.spec, draft.selected, lambda layer: edits.revalued(layer, dict(changes)))
        draft.change(changed, refresh=False)

    spec_fields.show(lead, _form(draft, "layer", apply), ("norm_placement", "residual"))
    chrome.note("Click a block inside to edit its fields.")


def _repeats(draft: Draft, group: int) -> None:
    first = draft.selected[0]

    def apply(changes: Mapping[str, Any]) -> None:
        draft.change(edits.set_repeats(draft.spec, group, changes["repeats"]), refresh=False)
        for layers in edits.group_ranges(draft.spec):
            if first in layers:
                draft.selected = tuple(layers)

    spec_fields.show(draft.spec.layer_groups[group], _form(draft, f"group{group}", apply), ("repeats",))


def _kind_switch(draft: Draft, part: str, mixer: Any) -> None:
    kinds = edits.kinds_of(edits.MIXER_UNIONS[part])
    key = f"kind:{part}:{draft.generation}"

    def switch() -> None:
        set_mixer(draft, part, st.session_state[key])

    _choice(spec_fields.label_of(part), [*kinds, NOTHING], _kind(mixer), key, switch, draft.problems.get(part))


def set_mixer(draft: Draft, part: str, kind: str) -> None:
    """Give the selected layers another kind of mixer, or none."""
    kinds = edits.kinds_of(edits.MIXER_UNIONS[part])

    def change(layer: Layer) -> Layer:
        before = getattr(layer, part)
        if _kind(before) == kind:
            return layer
        made = None if kind == NOTHING else edits.starting_part(kinds[kind], draft.spec, before)
        return edits.revalued(layer, {part: made})

    try_edit(draft, edits.change_layers, draft.selected, change, field=part)


def _mixer(draft: Draft, mixer: Any) -> None:
    part = draft.part
    _kind_switch(draft, part, mixer)
    if mixer is None:
        return

    def apply(changes: Mapping[str, Any]) -> None:
        def change(layer: Layer) -> Layer:
            own = getattr(layer, part)
            if own is None or own.kind != mixer.kind:
                return layer
            return layer.model_copy(update={part: edits.revalued(own, dict(changes))})

        draft.change(edits.change_layers(draft.spec, draft.selected, change), refresh=False)

    spec_fields.show(mixer, _form(draft, part, apply))


def _choice(label: str, options: list[str], value: str, key: str, switch: Any, problem: Problem | None) -> None:
    shown = st.session_state.get(key, value)

    def changed() -> None:
        if st.session_state[key] != shown:  # else it comes from a browser that has not taken the last answer yet
            switch()

    left, right = st.columns([1.3, 2.1], gap="small", vertical_alignment="center")
    left.markdown(label)
    right.selectbox(
        label,
        options,
        index=options.index(value),
        format_func=words.kind_label,
        key=key,
        label_visibility="collapsed",
        on_change=changed,
    )
    if problem is not None:
        chrome.field_error(problem)


# ---------------------------------------------------------------- what it costs


def _cost(draft: Draft, costs: Mapping[str, Block]) -> None:
    path = path_of(draft.spec, draft.selected, draft.part)
    block = costs.get(path)
    if block is None:
        return
    times = f" × {block.repeats:,}" if block.repeats > 1 else ""
    context = figures.context(draft.settings.serving.context_length)
    length = figures.context(draft.settings.training.sequence_length)
    lines = [
        ("Parameters", f"{figures.count(block.parameters_each)}{times}", figures.count(block.parameters).exact),
        ("Share of the model", figures.percent(block.parameters_share), ""),
        (f"FLOPs, forward at {length}", figures.percent(block.flops_share), figures.flops(block.flops).exact),
        (
            f"Cache at {context}",
            f"{figures.memory(block.cache_bytes_each)}{times}" if block.cache_bytes else "none",
            figures.memory(block.cache_bytes).exact,
        ),
    ]
    body = "".join(
        f'<tr title="{chrome.escape(hover)}"><td>{chrome.escape(name)}</td>'
        f'<td class="fig">{chrome.escape(text)}</td></tr>'
        for name, text, hover in lines
    )
    chrome.html(
        f'<div class="pl-cost"><h2 class="pl-heading">What {_this(draft, path)} costs</h2>'
        f'<table class="pl-table">{body}</table></div>'
    )


def _this(draft: Draft, path: str) -> str:
    if draft.part != "layer":
        return "this block"
    return "this group" if path.count("[") == 1 else "this layer"


def path_of(spec: ArchitectureSpec, layers: tuple[int, ...], part: str) -> str:
    """The block that layers' part belongs to: of several different layers the first; all of a group are the group."""
    for index, inside in enumerate(edits.group_ranges(spec)):
        if layers[0] in inside:
            if part == "layer" and set(inside) <= set(layers):
                return f"layer_groups[{index}]"
            place = (layers[0] - inside[0]) % len(spec.layer_groups[index].layers)
            where = f"layer_groups[{index}].layers[{place}]"
            return where if part == "layer" else f"{where}.{part}"
    return ""
