"""Known architectures as cards and as a table: the shape, the numbers, the change against a baseline, the source."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import streamlit as st

from pages.widgets import chrome, figures, layer_strip, transfer, words
from pages.widgets.draft import Settings, pack
from planner.overview import ListNumbers, list_numbers
from planner.presets import Preset, preset
from planner.units import three_digits

SEQUENCE_LENGTH = 4096
"""The length of the sequence whose FLOPs a token are listed."""
_STYLE = pathlib.Path(__file__).with_suffix(".css")


@dataclass(frozen=True, slots=True)
class Column:
    """A number by which the gallery is sorted."""

    name: str
    label: str
    hover: str


def columns(context: int) -> tuple[Column, ...]:
    """The numbers of a card, in their order."""
    return (
        Column("parameters", "Parameters", "all of them, counted"),
        Column("active_parameters", "Active", "what one token touches: of routed experts the chosen ones"),
        Column("flops_a_token", "FLOPs a token", f"forward, in a sequence of {SEQUENCE_LENGTH:,} tokens"),
        Column("cache_bytes_a_token", "KV a token", "what one more token adds to the cache, in bf16, no window full"),
        Column("cache_bytes", f"Cache at {figures.context(context)}", "one sequence in bf16"),
    )


@lru_cache(maxsize=512)
def numbers_of(name: str, context: int) -> ListNumbers:
    """A preset's numbers, computed once."""
    return list_numbers(preset(name).spec, sequence_length=SEQUENCE_LENGTH, context_length=context)


def text_of(name: str, numbers: ListNumbers) -> figures.Figure:
    """One number for people."""
    value = getattr(numbers, name)
    if name == "flops_a_token":
        return figures.flops(value)
    return figures.memory(value) if name.startswith("cache") else figures.count(value)


def draft_query(name: str) -> dict[str, str]:
    """The address under which the Studio opens a preset."""
    return {"draft": pack(preset(name).spec, Settings())}


def dress() -> None:
    """Give the page the cards' stylesheet."""
    st.html(f"<style>{_STYLE.read_text()}</style>")


def card(name: str, context: int, baseline: ListNumbers | None, is_baseline: bool) -> None:
    """One architecture: a link into the Studio, its strip, its numbers, its source."""
    known = preset(name)
    numbers = numbers_of(name, context)
    with st.container(border=True, key=f"panel-card-{name}", height="stretch", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"card-head-{name}"):
            chrome.link("studio", known.title, **draft_query(name))
            if is_baseline:
                chrome.html('<span class="pl-soft pl-baseline">baseline</span>')
        chrome.html(
            f"{layer_strip.static(known.spec, height=44, label=f'{known.title}: {shape_words(known)}')}"
            f'<p class="pl-note pl-shape">{chrome.escape(shape_words(known))}</p>'
        )
        cells = "".join(_cell(column, numbers, baseline) for column in columns(context))
        chrome.html(f'<div class="pl-card">{cells}</div>')
        with st.container(gap=None, key=f"card-foot-{name}"):
            chrome.html(source_html(known) + transfer.left_out_html(known.left_out))
            chrome.link("sizing", "Size it", preset=name)


def _cell(column: Column, numbers: ListNumbers, baseline: ListNumbers | None) -> str:
    figure = text_of(column.name, numbers)
    change = ""
    if baseline is not None:
        value, before = getattr(numbers, column.name), getattr(baseline, column.name)
        relative = change_text(value, before)
        tone = "pl-soft" if not relative else "pl-good" if value < before else "pl-bad"
        change = f'<em class="{tone}">{chrome.escape(relative or ("same" if value == before else "–"))}</em>'
    return (
        f'<div title="{chrome.escape(f"{figure.exact}: {column.hover}")}"><span>{chrome.escape(column.label)}</span>'
        f"<b>{chrome.escape(figure.value)}</b> <small>{chrome.escape(figure.unit)}</small>{change}</div>"
    )


def change_text(value: float, before: float) -> str:
    """A change as people say it: a share, a multiple, or a fraction where little is left."""
    if 0 < value * 10 < before:
        return f"1/{three_digits(before / value)}"
    return figures.relative(value, before)


def shape_words(known: Preset) -> str:
    """Layers, width and kinds of mixer in a few words."""
    spec = known.spec
    numbers = numbers_of(known.id, SEQUENCE_LENGTH)
    kinds = [words.kind_label(kind) for kind in (*numbers.sequence_kinds, *numbers.channel_kinds)]
    return f"{spec.num_layers:,} layers, {spec.hidden_size:,} wide: {', '.join(kinds)}"


def source_html(known: Preset) -> str:
    """Where the preset is from, and what is published."""
    stated = [known.published, f"{known.published_active} active" if known.published_active else None]
    said = ", ".join(text for text in stated if text)
    said = f"published as {said}" if said else ""
    note = f' title="{chrome.escape(known.note)}"' if known.note else ""
    source = chrome.escape(known.source)
    if known.source.startswith("https://"):
        source = f'<a href="{source}" target="_blank" rel="noopener">{chrome.escape(_short(known.source))}</a>'
    return f'<p class="pl-note pl-from"{note}>{source}{f" · {chrome.escape(said)}" if said else ""}</p>'


def _short(source: str) -> str:
    """An address without what every address has."""
    text = source.removeprefix("https://").removeprefix("www.").split("/blob/")[0].split("/raw/")[0]
    return text.removeprefix("huggingface.co/")


def table_html(names: Sequence[str], context: int, baseline: str) -> str:
    """The same as a table, a line each."""
    shown = columns(context)
    head = "".join(f'<th title="{chrome.escape(column.hover)}">{chrome.escape(column.label)}</th>' for column in shown)
    reference = numbers_of(baseline, context) if baseline else None
    body = []
    for name in names:
        known, numbers = preset(name), numbers_of(name, context)
        cells = []
        for column in shown:
            figure = text_of(column.name, numbers)
            change = ""
            if reference is not None:
                value, before = getattr(numbers, column.name), getattr(reference, column.name)
                said = "baseline" if name == baseline else change_text(value, before) or "same"
                change = f'<br><span class="pl-soft">{chrome.escape(said)}</span>'
            cells.append(f'<td class="fig" title="{chrome.escape(figure.exact)}">{chrome.escape(figure)}{change}</td>')
        strip = layer_strip.static(known.spec, height=24, label=known.title)
        body.append(
            f'<tr><td class="pl-name"><b>{chrome.escape(known.title)}</b>{source_html(known)}'
            f"{transfer.left_out_html(known.left_out)}</td>"
            f'<td class="pl-picture">{strip}</td>{"".join(cells)}</tr>'
        )
    return (
        f'<div class="pl-scroll"><table class="pl-table pl-gallery"><thead><tr><th>Architecture</th><th></th>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
