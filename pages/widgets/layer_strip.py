"""The strip of layers: the sequence mixer above, the channel mixer below, depth from left to right.

The live strip selects by drag (or arrow keys, with shift to extend) and paints what is selected::

    layer_strip.show(spec, selected=range(28, 32), paints=[Paint("window", "window", "window")], key="strip",
                     painted=number_of_the_last_click_taken, on_select=lambda span: ..., on_paint=lambda clicks: ...)

The static one is an image for lists and comparisons: ``chrome.html(layer_strip.static(spec))``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pages.widgets import chrome, theme, words
from pages.widgets.component import BrowserComponent
from planner import ArchitectureSpec, Layer


@dataclass(frozen=True, slots=True)
class Paint:
    """A kind of mixer that a selection can be painted with."""

    name: str
    """What ``on_paint`` gets."""
    label: str
    token: str


_component = BrowserComponent("layer_strip")
_TOLD_APART = 128


def cells(spec: ArchitectureSpec) -> list[dict[str, str | None]]:
    """The colour tokens and the words of every layer."""
    known: dict[int, dict[str, str | None]] = {}
    drawn = []
    for _, layer in spec.iterate_layers():
        if id(layer) not in known:
            known[id(layer)] = _cell(layer)
        drawn.append(known[id(layer)])
    return drawn


def _cell(layer: Layer) -> dict[str, str | None]:
    upper, lower = layer.sequence_mixer, layer.channel_mixer
    return {
        "upper": theme.mixer_token(upper) if upper is not None else None,
        "lower": theme.mixer_token(lower) if lower is not None else None,
        "words": " and ".join(words.described(mixer) for mixer in (upper, lower) if mixer is not None),
    }


def show(
    spec: ArchitectureSpec,
    *,
    selected: Collection[int],
    paints: Sequence[Paint],
    key: str,
    on_select: Callable[[list[int]], None],
    painted: int = 0,
    on_paint: Callable[[list[dict[str, Any]]], None],
) -> None:
    """The live strip; ``on_select`` gets ``[first, last]``, ``on_paint`` the clicks that were not answered yet.

    A click is a ``number`` that grows, the ``name`` of a paint and the ``layers`` for it. The browser repeats those
    beyond ``painted``, the number of the last one that was taken.
    """
    data = {
        "cells": cells(spec),
        "selected": sorted(selected),
        "paints": [asdict(paint) for paint in paints],
        "painted": painted,
    }
    _component.mount(data, key, {"select": on_select, "paint": on_paint})


def static(spec: ArchitectureSpec, height: int = 42, label: str = "") -> str:
    """HTML of the strip as a picture, drawn to scale; equal neighbours in a deep stack share one box."""
    drawn = cells(spec)
    runs: list[tuple[dict[str, str | None], int]] = []
    for cell in drawn:
        if runs and len(drawn) > _TOLD_APART and runs[-1][0] == cell:
            runs[-1] = (cell, runs[-1][1] + 1)
        else:
            runs.append((cell, 1))
    said = chrome.escape(label or f"{spec.name}: {len(drawn)} layers")
    boxes = "".join(
        f'<span style="flex:{times} 1 0">{_lane(cell["upper"])}{_lane(cell["lower"])}</span>' for cell, times in runs
    )
    gap = 2 if len(runs) <= 48 else 1
    return f'<div class="pl-strip" role="img" aria-label="{said}" style="height:{height}px;gap:{gap}px">{boxes}</div>'


def _lane(token: str | None) -> str:
    return f'<i style="background:{f"var(--{token})" if token is not None else "transparent"}"></i>'
