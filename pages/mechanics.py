"""Mechanics: what single mechanisms of a design do, measured by probes and drawn beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from db.engine import Store
from db.records import Design, Job, JobState, Result
from pages.widgets import chrome, job_view, probe_view
from pages.widgets.address import View
from pages.widgets.job_form import job_form
from pages.widgets.labels import distinct


@dataclass(frozen=True, slots=True)
class Probe:
    """One mechanism: its title, the question that its probe answers, and what the button says."""

    title: str
    question: str
    action: str


PROBES = {
    "reach": Probe(
        "Reach",
        "From how far back does anything arrive? Gradients of one position are followed to the input, layer by layer, "
        "beside the positions that the planner composes.",
        "Measure the reach",
    ),
    "attention_cost": Probe(
        "Attention's cost",
        "What does one attention layer take as the context grows, and from where on does another way of computing it "
        "pay? Time and peak memory are measured at doubling contexts.",
        "Measure the cost",
    ),
    "gradient_norms": Probe(
        "Gradients by depth",
        "How evenly do gradients reach the layers with the norms before, after or around the mixers? The same model is "
        "measured in each way, before and after a few steps.",
        "Measure the gradients",
    ),
    "router_load": Probe(
        "Router load",
        "How many tokens does each expert take? A small mixture is trained for a few steps, and its routers' choices "
        "are counted over held-out text.",
        "Count the load",
    ),
}


def main() -> None:
    store = chrome.get_store()
    designs = store.designs.list()
    chrome.header("Mechanics", "what single mechanisms do, measured beside what was predicted")
    if not designs:
        chrome.empty_state(
            "No saved design yet", "A probe measures a saved design: save one in the studio first.",
            page="pages/studio.py", action="Open the studio",
        )  # fmt: skip
        return
    chrome.worker_banner(store)
    view = View("mechanics", {"design": str(designs[0].id), "measure": "reach", "result": ""})
    by_id = {str(design.id): design for design in designs}
    view.choice("design", by_id)
    view.choice("measure", PROBES)
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    names = distinct({key: design.name for key, design in by_id.items()})
    left.selectbox("Design", list(names), format_func=names.__getitem__, key=view.key("design"))
    right.segmented_control(
        "Mechanism", list(PROBES), format_func=lambda name: PROBES[name].title, key=view.key("measure")
    )
    design, kind = by_id[view["design"]], view["measure"] or "reach"
    shown(store, view, design, kind)
    view.write()


def shown(store: Store, view: View, design: Design, kind: str) -> None:
    """The chosen mechanism of the chosen design: its newest result, or how to get one."""
    revisions = {revision.id: revision for revision in store.designs.revisions(design.id)}
    results = [result for result in store.results.list(kind=kind) if result.revision_id in revisions]
    waiting(store, kind, set(revisions))
    if not results:
        with chrome.panel(PROBES[kind].title, f"of {design.name}, not measured yet", key="first"):
            chrome.empty_state("Nothing is measured yet", PROBES[kind].question, key="no-result")
            form(store, design, kind)
        return
    result = pick(view, results, {revision.id: revision.number for revision in revisions.values()})
    probe_view.draw(kind, result.values, f"{kind}-{result.id}")
    with chrome.panel("How it was measured", key="how"):
        chrome.note(job_view.environment_line(result.environment))
        chrome.link("jobs", "The job with its log and its plan", job=result.job_id)
        if result.values.get("rows"):
            with st.expander("Predicted and measured, line by line"):
                job_view.predictions(result.values["rows"])
        if result.values.get("rules"):
            with st.expander("How the design was scaled down"):
                lines = "".join(f"<li>{chrome.escape(rule)}</li>" for rule in result.values["rules"])
                chrome.html(f'<ul class="pl-list">{lines}</ul>')
    with chrome.panel("Measure again", PROBES[kind].question, key="again"):
        form(store, design, kind)


def pick(view: View, results: Sequence[Result], revisions: dict[int, int]) -> Result:
    """The result that is shown: the newest, or another that is chosen."""
    by_id = {"" if place == 0 else str(result.id): result for place, result in enumerate(results)}
    labels = distinct(
        {
            key: f"{job_view.moment(result.created_at)} · revision {revisions[result.revision_id]}"
            for key, result in by_id.items()
        }
    )
    view.choice("result", by_id)
    if len(results) > 1:
        st.selectbox("Measured", list(by_id), format_func=labels.__getitem__, key=view.key("result"), width=320)
    return by_id[view["result"]]


def form(store: Store, design: Design, kind: str) -> None:
    """Settings, estimate and the button; a prototype of the design may lend its weights."""
    given = lent_weights(store, design) if kind == "router_load" else {}
    lender = given.get("prototype", "")
    job = job_form(
        store, design.latest, kind, plan_key=f"probe-{kind}{lender}", button_key=f"send-{kind}",
        label=PROBES[kind].action, given=given,
    )  # fmt: skip
    if job is not None:
        st.session_state["mechanics-sent"] = job.id
        st.rerun()


LENT = ("parameter_budget", "sequence_length", "data")
"""What must be as in the prototype that lends its weights."""


def lent_weights(store: Store, design: Design) -> dict[str, Any]:
    """Settings with which the weights of a prototype of the newest revision are read; none for training anew."""
    prototypes = {
        job.id: job
        for job in store.jobs.list([JobState.SUCCEEDED])
        if job.kind == "prototype" and job.revision_id == design.latest.id and job.plan.get("task") is None
    }
    if not prototypes:
        return {}
    labels = {"": "Train anew"} | distinct(
        {key: f"{job.name}, {job_view.moment(job.finished_at)}" for key, job in prototypes.items()}
    )
    chosen = st.selectbox("Weights", list(labels), format_func=labels.__getitem__, key="mechanics-lender", width=420)
    if not chosen:
        return {}
    return {"prototype": chosen, **{name: prototypes[chosen].plan[name] for name in LENT}}


@st.fragment(run_every=2.0)
def followed(job_id: str) -> None:
    """A job of this mechanism that has not ended; the page is drawn anew when it has."""
    job = chrome.get_store().jobs.get(job_id)
    if job.state.ended:
        st.rerun()
    job_view.progress(job)
    chrome.link("jobs", "Follow it under Jobs", job=job.id)


def waiting(store: Store, kind: str, revisions: set[int]) -> None:
    """Jobs on the way, and the one that was sent here and failed."""
    jobs = [job for job in store.jobs.list([JobState.QUEUED, JobState.RUNNING]) if _is_of(job, kind, revisions)]
    for job in jobs[:2]:
        with chrome.panel("On the way", job.name, key=f"waiting-{job.id}"):
            followed(job.id)
    sent = st.session_state.get("mechanics-sent")
    if sent is not None:
        job = store.jobs.get(sent)
        if job.error and _is_of(job, kind, revisions):
            chrome.error(job.error)


def _is_of(job: Job, kind: str, revisions: set[int]) -> bool:
    return job.kind == kind and job.revision_id in revisions


main()
