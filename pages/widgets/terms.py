"""A number opened into the terms it is the sum of: name, formula, value, status and source.

:func:`ask` is called from a handler; :func:`show_if_asked`, at the end of the page, shows the dialog. SymPy is loaded
there and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import streamlit as st

from pages.widgets import checks, chrome, figures, nearest, theme
from pages.widgets.checks import Check
from pages.widgets.draft import Draft
from pages.widgets.edits import layers_in_words, pattern_indices
from planner import ArchitectureSpec, PlannerError, hardware
from planner.explain import PLAN_OF
from planner.plans import Plan, ServingPlan

_ASKED = "terms-asked"
_FIGURES = {
    "bytes": figures.memory, "FLOPs": figures.flops, "FLOPs a token": figures.flops, "seconds": figures.duration,
}  # fmt: skip
_ALSO = {"flops_forward": ("flops_forward", "flops_training")}
_TITLES = {"flops_forward": "Forward", "flops_training": "Training"}
DEEPEST = 2
LONGEST_FORMULA = 78
"""Characters of a formula as it is read, beyond which it would not stand on one line."""
LONGEST_CELL = 150
_PATH = re.compile(r"layer_groups\[(\d+)\]\.layers\[(\d+)\](.*)")
_LONG_DECIMAL = re.compile(r"\d+\.\d{5,}(?:e[-+]?\d+)?")
"""A rate of a device or an engine inside a formula: four of its digits are read, all are on hover."""


def ask(quantity: str) -> None:
    """Open a quantity's terms in the next run."""
    st.session_state[_ASKED] = quantity


def open_button(quantity: str, key: str) -> None:
    """A way into a quantity's terms beside what is drawn of it."""
    st.button("Where it comes from", key=key, type="tertiary", on_click=ask, args=(quantity,))


def show_if_asked(draft: Draft, plan: Plan | None = None) -> None:
    """Show the dialog that was asked for, once; the numbers are of ``plan``, else of what the draft is looked at with.

    A page that has a plan of its own asks for that plan's quantities alone.
    """
    quantity = st.session_state.pop(_ASKED, None)
    if quantity is not None:
        _dialog(draft, quantity, plan)


@lru_cache(maxsize=64)
def _explained(spec: ArchitectureSpec, quantity: str, plan: Plan) -> Any:
    from planner.explain import explain

    return explain(spec, quantity, plan)


@st.dialog("What it is the sum of", width="large")
def _dialog(draft: Draft, quantity: str, given: Plan | None) -> None:
    several = _ALSO.get(quantity, (quantity,))
    measured = checks.of_design(draft.spec)
    places = st.tabs([_TITLES[name] for name in several]) if len(several) > 1 else [st.container()]
    for name, place in zip(several, places, strict=True):
        with place, st.container(key=f"terms-{name}", gap="small"):
            try:
                settings = draft.settings
                plan = given or (settings.serving if PLAN_OF[name] is ServingPlan else settings.training)
                show(_explained(draft.spec, name, plan), draft.spec, measured.get(name, ()))
            except PlannerError as reason:
                chrome.error(reason)
    device = getattr(given, "hardware", None)
    nearest.line(draft.spec, several, hardware(device).name if device else None, key="terms")


def show(term: Any, spec: ArchitectureSpec, measured: Sequence[Check] = ()) -> None:
    """A term from :func:`planner.explain`: its value, what was measured of it, its formula, its parts, its sources."""
    figure = _FIGURES.get(term.unit, figures.count)(term.value)
    unit = f"{figure.unit} a token" if term.unit == "FLOPs a token" else figure.unit
    whole = f"{term.value:,.0f}" if float(term.value).is_integer() else f"{term.value:,.2f}"
    if term.unit == "seconds":
        whole = f"{term.value:.6g}"
    chrome.html(
        f'<div class="pl-term"><span>{chrome.status_glyph(term.status)} {chrome.escape(term.name)}, '
        f"{chrome.escape(theme.STATUS_WORDS.get(term.status, term.status))}</span>"
        f"<b>{chrome.escape(figure.value)}</b> <small>{chrome.escape(unit)}</small>"
        f'<em class="pl-figures">{whole} {chrome.escape(term.unit)}</em></div>'
    )
    if term.uncertainty is not None:
        chrome.note(_uncertainty(term))
    checks.show(measured)
    latex = term.latex
    if _read(latex) <= LONGEST_FORMULA:
        with st.container(key=f"formula-{term.name.replace(' ', '-')}"):
            st.latex(latex)
    else:
        chrome.note("The sum of the terms below, too long for one line.")
    rows = "".join(_rows(term, spec, term.value, 0))
    chrome.html(
        '<table class="pl-table pl-terms"><tr><th>Term</th><th>Formula</th><th>Value</th><th>Share</th></tr>'
        f"{rows}</table>"
    )
    if term.symbols:
        symbols = "".join(
            f'<span title="{chrome.escape(entry.field)}"><b>{chrome.escape(entry.symbol)}</b> = {entry.value:,} '
            f"<i>{chrome.escape(entry.field.rsplit('.', 1)[-1])}</i></span>"
            for entry in term.symbols
        )
        chrome.html(f'<div class="pl-symbols pl-figures">{symbols}</div>')
    sources = dict.fromkeys(each.source for each in term.walk() if each.source)
    if sources:
        lines = "".join(f"<li>{chrome.escape(source)}</li>" for source in sources)
        chrome.html(f'<ul class="pl-list">{lines}</ul>')


def _uncertainty(term: Any) -> str:
    """Between which values a number lies, in its own unit, and how that is known."""
    own = term.uncertainty
    if not own.bounded:
        return f"Without bounds: {own.ground}."
    low, high = (_FIGURES.get(term.unit, figures.count)(bound) for bound in (own.low, own.high))
    return f"Between {low} and {high}. {own.ground[:1].upper()}{own.ground[1:]}."


def _rows(term: Any, spec: ArchitectureSpec, total: float, depth: int) -> list[str]:
    made = []
    for child in term.children:
        figure = _FIGURES.get(child.unit, figures.count)(child.value)
        share = figures.percent(child.value / total) if total else ""
        made.append(
            f'<tr class="depth-{depth}"><td style="padding-left:{8 + 16 * depth}px">'
            f"{_mark(child)}{_name(child.name, spec)}</td>"
            f'<td class="pl-formula" title="{chrome.escape(child.substitution)}">{_formula(child)}</td>'
            f'<td class="fig" title="{chrome.escape(figure.exact)}">{chrome.escape(figure)}</td>'
            f'<td class="fig">{share}</td></tr>'
        )
        if depth < DEEPEST:
            made += _rows(child, spec, total, depth + 1)
    return made


def _name(name: str, spec: ArchitectureSpec) -> str:
    """A term's name; a path in the specification is said by its layers, with the path on hover."""
    found = _PATH.fullmatch(name)
    if found is None:
        return chrome.escape(name)
    group, layer, part = int(found[1]), int(found[2]), found[3].lstrip(".").replace("_", " ")
    words = layers_in_words(pattern_indices(spec, group, layer))
    return f'<span title="{chrome.escape(name)}">{chrome.escape(f"{part}, {words}" if part else words)}</span>'


def _mark(term: Any) -> str:
    """How a term came about, where it is not counted."""
    if term.status == "exact":
        return ""
    hover = chrome.escape("" if term.uncertainty is None else _uncertainty(term))
    return f'<span title="{hover}">{chrome.status_glyph(term.status)}</span> '


def _read(latex: str) -> int:
    """How many characters of a formula are seen: commands are one, braces and scripts' signs none."""
    seen = re.sub(r"\\(left|right|,|;|operatorname)", "", latex)
    seen = re.sub(r"\\[a-zA-Z]+", "x", seen)
    return len(re.sub(r"[{}^_\\\s]", "", seen))


def _formula(term: Any) -> str:
    """A term's formula for a cell; a long one of several children is said to be their sum."""
    text = _LONG_DECIMAL.sub(lambda found: f"{float(found.group()):.4g}", term.text)
    if len(text) > LONGEST_CELL and len(term.children) > 1:
        return f'<span class="pl-soft">the sum of {len(term.children)} terms</span>'
    return f'<div class="pl-long">{chrome.escape(text)}</div>' if len(text) > LONGEST_CELL else chrome.escape(text)
