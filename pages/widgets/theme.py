"""Colours, letters and line styles: the same meaning on every page and plot.

In HTML and in components write ``var(--attention)``: :func:`stylesheet` defines every token for the light and the dark
theme at once. Plotly knows no CSS, so a figure takes ``theme.palette()["attention"]``.

>>> component_token("mamba2")
'state-space'
>>> VARIANTS[1].letter, VARIANTS[1].dash
('B', 'dash')
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import streamlit as st
import yaml

from planner.components import ChannelMixer, SequenceMixer, kinds_of

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "assets"
Mode = Literal["light", "dark"]
Palette = dict[str, str]


@cache
def tokens() -> dict[str, dict[str, tuple[str, str]]]:
    """Every token of ``assets/theme.yaml`` by section: name → (light, dark)."""
    data = yaml.safe_load((ASSETS / "theme.yaml").read_text())
    return {section: {name: tuple(pair) for name, pair in names.items()} for section, names in data.items()}


@cache
def palette_of(mode: Mode) -> Palette:
    """Token → colour in one theme."""
    place = 1 if mode == "dark" else 0
    return {name: pair[place] for names in tokens().values() for name, pair in names.items()}


def mode() -> Mode:
    """The theme that the reader's browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"


def palette() -> Palette:
    """Token → colour in the reader's theme: for Plotly, which cannot read CSS variables."""
    return palette_of(mode())


@cache
def stylesheet_of(mode: Mode) -> str:
    """All tokens as CSS variables, and the rules of ``assets/theme.css``.

    Inside the app the variables follow the theme by themselves. Dialogs and menus hang beside the app in the document,
    where Streamlit declares no colour scheme: for them ``mode`` decides.
    """
    both = "".join(
        f"--{name}:light-dark({light},{dark});" for names in tokens().values() for name, (light, dark) in names.items()
    )
    one = "".join(f"--{name}:{colour};" for name, colour in palette_of(mode).items())
    return f":root{{{one}}}\n.stApp{{{both}}}\n{(ASSETS / 'theme.css').read_text()}"


def stylesheet() -> str:
    """The stylesheet for the reader's theme."""
    return stylesheet_of(mode())


_COMPONENT_TOKENS = {
    "token_embedding": "embedding",
    "position_embedding": "embedding",
    "lm_head": "embedding",
    "norm": "norm",
    **{part.component: part.family for union in (SequenceMixer, ChannelMixer) for part in kinds_of(union).values()},
}
"""A mixer's token is the family that it says it belongs to."""


def component_token(component: str) -> str:
    """The token of a component's name, as ``size(spec).parameters.by_component`` spells it."""
    return _COMPONENT_TOKENS.get(component, "other")


def mixer_token(mixer: Any) -> str:
    """The token of a mixer: attention that hides earlier keys has a colour of its own."""
    if getattr(mixer, "sees_a_part", False):
        return "window"
    return component_token(type(mixer).component)


@dataclass(frozen=True, slots=True)
class Variant:
    """How a design under comparison is known: by its letter, its colour and its line."""

    letter: str
    token: str
    dash: str
    """Plotly's name of the line style."""


VARIANTS = tuple(
    Variant(letter, f"variant-{letter.lower()}", dash)
    for letter, dash in zip(
        "ABCDEFGH",
        ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "6px 2px 2px 2px", "2px 4px"),
        strict=True,
    )
)

MEMORY_TOKENS = {
    "weights": "weights",
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "cache": "cache",
    "communication": "communication",
    "overhead": "overhead",
}
"""Part of a memory estimate, without its ``_bytes``, to token."""

STATUS_WORDS = {
    "exact": "exact: counted",
    "measured": "measured",
    "modelled": "modelled",
    "approximated": "approximated: a rule of thumb",
    "unsupported": "not modelled",
}
