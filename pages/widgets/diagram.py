"""The block diagram on the plumb line: the stack from the embedding to the head, groups folded, one open.

::

    diagram.show(spec, costs, "parameters", selected=(28, 29, 30, 31), part="sequence_mixer", key="diagram",
                 on_select=lambda target: ...)

``costs`` is ``planner.blocks.blocks(spec, …)``. ``on_select`` gets ``{"part": …, "layers": [first, last, step]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pages.widgets import edits, figures, theme, words
from pages.widgets.component import BrowserComponent
from planner import ArchitectureSpec, Layer
from planner.blocks import Block, layer_parts
from planner.sizing import embedding_width

_component = BrowserComponent("diagram")
_WITH_NORMS = 2
_FIGURES = {"parameters": figures.count, "flops": figures.flops, "cache_bytes": figures.memory}


def show(
    spec: ArchitectureSpec,
    costs: Mapping[str, Block],
    measure: str,
    *,
    selected: tuple[int, ...],
    part: str,
    key: str,
    on_select: Callable[[dict[str, Any]], None],
) -> None:
    """Draw the diagram; ``measure`` is the attribute of a block whose share the bars show."""
    data = {"rows": rows(spec, costs, measure, selected, part)}
    _component.mount(data, key, {"select": on_select})


def rows(
    spec: ArchitectureSpec, costs: Mapping[str, Block], measure: str, selected: tuple[int, ...], part: str
) -> list[dict[str, Any]]:
    """The diagram as data: blocks from the embedding to the head, an open group as a frame with blocks inside."""
    norm = words.kind_label(spec.norm.kind)
    width = f"{embedding_width(spec):,}" + (f" → {spec.hidden_size:,}" if spec.embedding_size is not None else "")
    drawn = [_outer("token_embedding", "Token embedding", f"{spec.vocab_size:,} × {width}")]
    if "embedding_norm" in costs:
        drawn.append(_outer("embedding_norm", f"Embedding norm · {norm}", f"{spec.hidden_size:,}", thin=True))
    if "position_embedding" in costs:
        positions = getattr(spec.positions, "num_positions", 0)
        drawn.append(_outer("position_embedding", "Position embedding", f"{positions:,} × {spec.hidden_size:,}"))
    for index in range(len(spec.layer_groups)):
        drawn.append(_group(spec, index, selected, part))
    if spec.final_norm:
        drawn.append(_outer("final_norm", f"Final norm · {norm}", f"{spec.hidden_size:,}", thin=True))
    tied = "tied: the embedding's matrix" if spec.tie_word_embeddings else "untied"
    drawn.append(_outer("lm_head", "LM head", tied))
    leaves = [row for entry in drawn for row in (entry.get("rows") or [entry])]
    largest = max((_value(costs, row, measure) for row in leaves), default=0)
    for row in leaves:
        value = _value(costs, row, measure)
        share = getattr(costs[row["path"]], f"{measure.removesuffix('_bytes')}_share")
        figure = _FIGURES[measure](value)
        row["length"] = round(100 * value / largest, 2) if largest else 0
        row["value"] = str(figure) if value else ""
        row["hover"] = f"{figure.exact} · {figures.percent(share)} of the model" if value else ""
    if part == "model":
        for row in leaves:
            row["selected"] = False
    return drawn


def _note(layer: Layer, part: str) -> str:
    """A mixer's sizes, and whether it reads the same stream as the one before it."""
    beside = part == "channel_mixer" and layer.residual != "sequential"
    return words.note(getattr(layer, part)) + (" · in parallel" if beside else "")


def _value(costs: Mapping[str, Block], row: Mapping[str, Any], measure: str) -> int:
    return int(getattr(costs[row["path"]], measure))


def _outer(path: str, title: str, note: str, thin: bool = False) -> dict[str, Any]:
    return {
        "path": path,
        "title": title,
        "note": note,
        "token": "norm" if path.endswith("_norm") else "embedding",
        "thin": thin,
        "target": {"part": "model"},
    }


def _group(spec: ArchitectureSpec, index: int, selected: tuple[int, ...], part: str) -> dict[str, Any]:
    group = spec.layer_groups[index]
    layers = edits.group_ranges(spec)[index]
    first, last = layers[0], layers[-1]
    name = f"Layer {first}" if first == last else f"Layers {first}–{last}"
    chosen = set(selected)
    whole = {"part": "layer", "layers": [first, last, 1]}
    lead = next((each.sequence_mixer or each.channel_mixer for each in group.layers), None)
    entry: dict[str, Any] = {
        "path": f"layer_groups[{index}]",
        "title": name,
        "times": f"×{group.repeats:,}" if group.repeats > 1 else "",
        "note": words.pattern(group.layers),
        "token": theme.mixer_token(lead),
        "target": whole,
        "folded": True,
        "selected": False,
    }
    if not chosen & set(layers):
        return entry
    inside = []
    # A long pattern is read by its mixers; its norms would double it.
    short = len(group.layers) > _WITH_NORMS
    if short:
        entry["note"] += " · norms not drawn"
    for place, layer in enumerate(group.layers):
        own = edits.pattern_indices(spec, index, place)
        target = [own[0], own[-1], len(group.layers)]
        if len(group.layers) > 1:
            inside.append(_caption(index, place, own, part, chosen))
        for name_of_part in layer_parts(layer):
            mixer: Any = getattr(layer, name_of_part, None)
            if mixer is None and short:
                continue
            is_norm = mixer is None
            picked = bool(chosen & set(own)) and part == name_of_part
            inside.append(
                {
                    "path": f"layer_groups[{index}].layers[{place}].{name_of_part}",
                    "title": words.kind_label(spec.norm.kind) if is_norm else words.title(mixer),
                    "note": f"{spec.hidden_size:,}" if is_norm else _note(layer, name_of_part),
                    "token": "norm" if is_norm else theme.mixer_token(mixer),
                    "thin": is_norm,
                    "target": {"part": "layer" if is_norm else name_of_part, "layers": target},
                    "selected": picked and not is_norm,
                }
            )
    return {**entry, "folded": False, "selected": part == "layer" and set(layers) <= chosen, "rows": inside}


def _caption(index: int, place: int, own: tuple[int, ...], part: str, chosen: set[int]) -> dict[str, Any]:
    shown = ", ".join(str(each) for each in own[:4]) + (", …" if len(own) > 4 else "")
    return {
        "path": f"layer_groups[{index}].layers[{place}]",
        "title": f"{'Layer' if len(own) == 1 else 'Layers'} {shown}",
        "note": "",
        "caption": True,
        "token": "norm",
        "target": {"part": "layer", "layers": [own[0], own[-1], max(1, (own[1] - own[0]) if len(own) > 1 else 1)]},
        "selected": part == "layer" and set(own) == chosen,
    }
