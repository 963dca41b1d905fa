"""What can be done with the draft: undo, open, save, settings, and the jobs that put its numbers to the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import streamlit as st

from pages.widgets import chrome, edits, figures, layer_strip, spec_fields, studio_numbers, transfer
from pages.widgets.draft import Draft, Origin
from planner import ArchitectureSpec, BenchmarkPlan, PlannerError, PrototypePlan, VerifyPlan
from planner.dispatch import JobEstimate, estimate_job
from planner.hardware import machine_profile
from planner.plans import Plan
from planner.prototype import ScaledSpec, scale_down

_JOB_FIELDS = {
    "verify": ("batch_size", "sequence_length", "context_length", "precision"),
    "prototype": ("parameter_budget", "steps", "batch_size", "sequence_length", "learning_rate", "seed"),
    "benchmark": ("parameter_budget", "batch_size", "sequence_length", "decode_tokens", "precision"),
}
_JOB_WORDS = {
    "verify": "Build the real model and hold the counted numbers against it.",
    "prototype": "Train a small model of the same structure on real text.",
    "benchmark": "Time prefill, decoding and a training step on the worker's device.",
}
_STANDARD: dict[str, Plan] = {
    "verify": VerifyPlan(),
    "prototype": PrototypePlan(),
    "benchmark": BenchmarkPlan(parameter_budget=2_000_000),
}


def show(draft: Draft, settings_form: Callable[[Draft], None]) -> None:
    """The row of actions at the right of the header."""
    st.button("↶", key="undo", help="Undo (Ctrl+Z)", shortcut="Ctrl+Z", disabled=not draft.past, on_click=draft.undo)
    st.button(
        "↷",
        key="redo",
        help="Redo (Ctrl+Shift+Z)",
        shortcut="Ctrl+Shift+Z",
        disabled=not draft.future,
        on_click=draft.redo,
    )
    _lazily("Design", "open", lambda: _design_menu(draft))
    _lazily("Settings", "settings", lambda: settings_form(draft))
    _lazily("Save revision", "save", lambda: _save_menu(draft))
    _lazily("Verify", "verify", lambda: _job_menu(draft, "verify"))
    _lazily("Benchmark", "benchmark", lambda: _job_menu(draft, "benchmark"))
    _lazily("Prototype", "prototype", lambda: _job_menu(draft, "prototype"), primary=True)


def _lazily(label: str, key: str, fill: Callable[[], None], primary: bool = False) -> None:
    """A popover whose contents are made only while it is open."""
    menu = st.popover(label, key=f"menu-{key}", type="primary" if primary else "secondary", on_change="rerun")
    if menu.open:
        with menu, st.container(key=f"menu-{key}-body", gap="small"):
            fill()


def _design_menu(draft: Draft) -> None:
    st.button("Open a preset or a file …", width="stretch", on_click=_close_and_open)
    chrome.heading("Take away")
    transfer.export_menu(draft)
    chrome.heading("Baseline", draft.baseline_label)
    st.button(
        "This design as it is now", width="stretch", on_click=_set_baseline, args=(draft, draft.spec, "as it was")
    )
    reference = studio_numbers.reference_of(draft.spec)
    if reference is not None:
        st.button(
            "Multi-head, all full", width="stretch", on_click=_set_baseline, args=(draft, reference, reference.name)
        )
    if draft.origin is not None:
        label = f"revision {draft.origin.number}"
        st.button(label.capitalize(), width="stretch", on_click=_set_baseline, args=(draft, draft.origin.spec, label))


_OPENING = "studio-opening"


def _close_and_open() -> None:
    st.session_state["menu-open"] = False
    st.session_state[_OPENING] = True


def show_if_opening(draft: Draft) -> None:
    """Show the dialog that opens another design, if it was asked for; at the end of the page."""
    if st.session_state.pop(_OPENING, False):
        transfer.open_dialog(draft)


def _set_baseline(draft: Draft, spec: ArchitectureSpec, label: str) -> None:
    draft.baseline, draft.baseline_label = spec, label


# ---------------------------------------------------------------- saving


def _save_menu(draft: Draft) -> None:
    store = chrome.get_store()
    note = st.text_input("Note", placeholder="why this revision, in a line", key="save-note")
    if draft.origin is not None:
        if st.button("Save revision", type="primary", width="stretch", disabled=not draft.unsaved_changes):
            _save(draft, store, note)
        if not draft.unsaved_changes:
            chrome.note("Nothing has changed since it was saved.")
    if st.button("Save as a new design", type="secondary" if draft.origin else "primary", width="stretch"):
        _save(draft, store, note, anew=True)


def _save(draft: Draft, store: Any, note: str, anew: bool = False) -> None:
    with chrome.guard():
        save(draft, store, note, anew=anew)
        st.rerun()


def save(draft: Draft, store: Any, note: str = "", *, anew: bool = False) -> Origin:
    """Keep the draft as a revision of its design, or as the first of a new one; raises ``StoreError``."""
    data = draft.spec.to_dict()
    if draft.origin is None or anew:
        design = store.designs.create(draft.spec.name, data, note)
        revision = design.latest
    else:
        revision = store.designs.save_revision(draft.origin.design_id, data, note, expected_number=draft.origin.number)
        if draft.spec.name != draft.origin.spec.name:
            store.designs.rename(draft.origin.design_id, draft.spec.name)
    draft.origin = Origin(revision.design_id, revision.id, revision.number, draft.spec)
    draft.saved = draft.spec
    return draft.origin


# ---------------------------------------------------------------- jobs


@lru_cache(maxsize=32)
def _scaled(spec: ArchitectureSpec, budget: int, length: int) -> ScaledSpec:
    return scale_down(spec, budget, sequence_length=length)


@lru_cache(maxsize=32)
def _estimate(kind: str, spec: ArchitectureSpec, plan: Plan, minute: int) -> JobEstimate:
    del minute  # the machine's profile is read again once a minute
    return estimate_job(kind, spec, plan, machine_profile())


def _job_menu(draft: Draft, kind: str) -> None:
    store = chrome.get_store()
    chrome.heading(kind.capitalize(), _JOB_WORDS[kind])
    plan: Plan = st.session_state.setdefault(f"plan-{kind}", _STANDARD[kind])

    def apply(changes: Mapping[str, Any]) -> None:
        st.session_state[f"plan-{kind}"] = edits.revalued(plan, dict(changes))

    problems = st.session_state.setdefault(f"plan-problems-{kind}", {})
    typed = st.session_state.setdefault(f"plan-typed-{kind}", {})
    spec_fields.show(plan, spec_fields.Form(f"plan-{kind}", apply, problems, typed), _JOB_FIELDS[kind])
    try:
        budget = getattr(plan, "parameter_budget", None)
        if budget is not None:
            _show_scaled(_scaled(draft.spec, budget, plan.sequence_length))  # type: ignore[attr-defined]
        estimate = _estimate(kind, draft.spec, plan, int(time.time() // 60))
    except PlannerError as error:
        chrome.error(error)
        return
    size = figures.disk(estimate.disk_bytes)
    disk = f'<tr><td>Disk</td><td class="fig">{size}</td></tr>' if estimate.disk_bytes else ""
    chrome.html(
        '<table class="pl-table">'
        f'<tr><td>Takes about</td><td class="fig">{figures.duration(estimate.seconds)}</td></tr>'
        f"{disk}"
        f'<tr><td>Memory</td><td class="fig">{figures.memory(estimate.memory_bytes)}</td></tr></table>'
    )
    chrome.note(f"Approximated: {estimate.basis}.")
    chrome.worker_banner(store)
    label = "Start" if draft.origin is not None and not draft.unsaved_changes else "Save and start"
    if st.button(label, type="primary", width="stretch", key=f"start-{kind}", disabled=bool(problems)):
        with chrome.guard():
            _start(draft, store, kind, plan)
    _link_to_job(kind)


def _show_scaled(scaled: ScaledSpec) -> None:
    chrome.html(layer_strip.static(scaled.spec, height=30, label="The scaled-down stack"))
    spec = scaled.spec
    chrome.note(
        f"{figures.count(scaled.parameters).exact} parameters: {spec.num_layers:,} layers, hidden size "
        f"{spec.hidden_size:,}, vocabulary {spec.vocab_size:,}."
    )
    with st.expander("What scaling changes"):
        chrome.html(
            '<ul class="pl-list">' + "".join(f"<li>{chrome.escape(line)}</li>" for line in scaled.rules) + "</ul>"
        )


def _start(draft: Draft, store: Any, kind: str, plan: Plan) -> None:
    from runners.engines.client import submit

    origin = draft.origin
    if origin is None or draft.unsaved_changes:
        origin = save(draft, store, f"Saved to {kind} it")
    job = submit(store, kind, origin.revision_id, plan, f"{kind.capitalize()} · {draft.spec.name}")
    st.session_state[f"started-{kind}"] = job.id


def _link_to_job(kind: str) -> None:
    job_id = st.session_state.get(f"started-{kind}")
    if job_id is None:
        return
    chrome.html('<p class="pl-note pl-good">It is in the queue.</p>')
    chrome.link("jobs", "Follow it under Jobs", job=job_id)
