"""Home: what Plumbline is, whether a design will run here, the first steps, and what was worked on last."""

from __future__ import annotations

from typing import Any

import streamlit as st

from db import example
from pages.widgets import chrome, figures, layer_strip, studio_numbers
from planner import PlannerError, parse_spec

SHOWN = 6
STEPS = (
    ("studio", "1", "Design", "Start from a preset or a config.json, paint layers, and see what each change costs."),
    (
        "jobs",
        "2",
        "Prove",
        "Verify counts what can be counted; a prototype trains a small model of the same structure.",
    ),
    ("decisions", "3", "Decide", "Hold variants side by side, and write down which was chosen and on what evidence."),
)
LABELS = {"studio": "Open the Studio", "jobs": "See the jobs", "decisions": "See the decisions"}


def main() -> None:
    """Draw the page."""
    with chrome.header("Plumbline", "design language-model architectures, and measure whether the numbers are true"):
        if chrome.page_exists("studio") and st.button("New design", type="primary"):
            st.session_state.pop("draft", None)
            st.switch_page("pages/studio.py")
    chrome.note(
        "A plumb line shows whether what stands is true to the plan. Every number here opens into its terms, and what "
        "can be measured is measured by a job and stands beside its prediction."
    )
    store = chrome.get_store()
    answer = st.container(key="home-answer")  # filled at the end, so that the rest of the page does not wait for it
    first_steps()
    left, right = st.columns([1.25, 1], gap="small")
    with left, chrome.panel("Designs", "the last changed first", key="designs", height="stretch"):
        designs(store)
    with right:
        with chrome.panel("Jobs", "the newest first", key="jobs"):
            jobs(store)
        with chrome.panel("Decisions", key="decisions"):
            decisions(store)
    with answer:
        from pages.widgets import will_it_run

        will_it_run.show(store)


def first_steps() -> None:
    """The way through the rooms; rooms that are not there yet have no link."""
    for column, (page, number, title, text) in zip(st.columns(3, gap="small"), STEPS, strict=True):
        with column, st.container(border=True, key=f"panel-step-{page}", height="stretch", gap="small"):
            chrome.html(f'<div class="pl-step"><i>{number}</i><b>{title}</b><p>{text}</p></div>')
            chrome.link(page, LABELS[page])


def designs(store: Any) -> None:
    """The last designs as strips, each a link into the Studio."""
    with chrome.guard():
        known = store.designs.list()
        if not known:
            chrome.empty_state(
                "No designs yet", "Begin with a preset, or paste a config.json from a model you know.", key="designs"
            )
            load_example(store)
            return
        for design in known[:SHOWN]:
            design_row(design)
        if len(known) > SHOWN:
            chrome.note(f"and {len(known) - SHOWN:,} more")


def design_row(design: Any) -> None:
    """One design: its strip, its name, its size and its age."""
    with st.container(key=f"design-{design.id}", gap=None):
        try:
            spec = parse_spec(dict(design.latest.spec))
        except PlannerError as reason:
            chrome.html(f"<b>{chrome.escape(design.name)}</b>")
            chrome.error(reason)
            return
        total = figures.count(studio_numbers.size_of(spec).total)
        name, picture = st.columns([1, 1.3], gap="small", vertical_alignment="center")
        with name:
            chrome.link("studio", design.name, design=str(design.id))
            chrome.html(
                f'<p class="pl-note" title="{total.exact} parameters">revision {design.latest.number} · {total} · '
                f"{spec.num_layers:,} layers · {figures.ago(design.updated_at)}</p>"
            )
        with picture:
            chrome.html(layer_strip.static(spec, height=34, label=design.name))


def load_example(store: Any) -> None:
    """Offer the worked example where it is installed."""
    if not example.available():
        return
    if st.button(
        "Load the ready example",
        help="Four designs of one budget with prototypes and benchmarks, and a result of every kind of job",
    ):
        with chrome.guard():
            revisions = example.import_example(store)
            st.switch_page("pages/compare.py", query_params={"revisions": ",".join(map(str, revisions))})


def jobs(store: Any) -> None:
    """The last jobs and where they stand."""
    with chrome.guard():
        known = store.jobs.list()[:SHOWN]
        if not known:
            chrome.empty_state("No jobs yet", "Verify or prototype a design in the Studio.", key="jobs")
            return
        rows = "".join(
            f"<tr><td>{chrome.escape(job.name)}</td><td>{chrome.state_tag(job.state)}</td>"
            f'<td class="pl-once">{figures.ago(job.created_at)}</td></tr>'
            for job in known
        )
        chrome.html(f'<table class="pl-table">{rows}</table>')
        chrome.link("jobs", "All jobs")


def decisions(store: Any) -> None:
    """The last decisions."""
    with chrome.guard():
        known = store.decisions.list()[:SHOWN]
        if not known:
            chrome.empty_state("No decisions yet", "Compare designs, then draft a decision.", key="decisions")
            return
        rows = "".join(
            f"<tr><td>{decision.number}. {chrome.escape(decision.title)}</td>"
            f"<td>{chrome.escape(decision.status)}</td></tr>"
            for decision in known
        )
        chrome.html(f'<table class="pl-table">{rows}</table>')
        chrome.link("decisions", "All decisions")


main()
