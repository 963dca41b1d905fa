"""The design that a page reads: a preset, a stored revision, or the Studio's draft, as the address says.

::

    draft = design_source.from_address("sizing")
    view = View("sizing", defaults, kept=design_source.PARAMETERS)
    design_source.choice(view, draft)                                  # the box in which another is chosen
"""

from __future__ import annotations

import streamlit as st

from pages.widgets import address, chrome
from pages.widgets import draft as drafts
from pages.widgets.address import View
from pages.widgets.draft import Draft
from pages.widgets.labels import distinct
from pages.widgets.starting import starting_spec
from planner import PlannerError
from planner.presets import preset, preset_ids

PARAMETERS = ("preset", "design", "revision", "draft")
"""Query parameters that say which design it is."""


def from_address(page: str) -> Draft:
    """What the address asks for; without a wish, what the Studio has open in this session."""
    asked = {name: value for name, value in address.asked(page).items() if name in PARAMETERS}
    if "preset" in asked:
        try:
            return drafts.opened(preset(asked["preset"]).spec)
        except PlannerError as error:
            draft = drafts.opened(starting_spec())
            draft.notice = str(error)
            return draft
    if asked:
        return drafts.from_address(asked, starting_spec())
    open_in_studio: Draft | None = st.session_state.get("draft")
    if open_in_studio is None:
        return drafts.opened(starting_spec())
    draft = drafts.opened(open_in_studio.spec, open_in_studio.origin)
    draft.settings = open_in_studio.settings
    return draft


def studio_query(draft: Draft) -> dict[str, str]:
    """The address under which the Studio opens what is sized."""
    return {"draft": drafts.pack(draft.spec, draft.settings)}


def choice(view: View, draft: Draft) -> None:
    """A choice of presets, saved designs and what is open."""
    labels: dict[str, str] = {}
    asked = address.asked(view.page)
    now = "here"
    if "preset" in asked and asked["preset"] in preset_ids():
        now = f"preset:{asked['preset']}"
    elif "draft" not in asked and draft.origin is not None:
        now = f"design:{draft.origin.design_id}:{draft.origin.number}"
    if now == "here":
        labels["here"] = f"Studio: {draft.spec.name}"
    designs: dict[str, str] = {}
    with chrome.guard():
        for design in chrome.get_store().designs.list():
            designs[f"design:{design.id}:{design.latest.number}"] = f"{design.name}, revision {design.latest.number}"
    if now.startswith("design:"):  # an older revision, or an archived design, may still be looked at
        designs.setdefault(now, f"{draft.spec.name}, revision {now.rsplit(':', 1)[-1]}")
    labels |= designs
    labels |= {f"preset:{name}": preset(name).title for name in preset_ids()}
    labels = distinct(labels)
    # The browser answers with a label: under another one, a widget of the same key would take it for a choice.
    key = f"{view.page}-source-{now}-{labels[now]}"

    def choose() -> None:
        kind, _, rest = str(st.session_state[key]).partition(":")
        cleared: dict[str, str | None] = dict.fromkeys(PARAMETERS)
        if kind == "preset":
            cleared["preset"] = rest
        elif kind == "design":
            cleared["design"], cleared["revision"] = rest.split(":")
        view.go(**cleared)

    options = list(labels)
    st.selectbox("Design", options, index=options.index(now), key=key, format_func=labels.__getitem__, on_change=choose)
