"""A job that may be sent: its settings, what it will take, and the button."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.widgets import chrome, figures
from pages.widgets.plan_form import label_of, plan_fields
from planner import PlannerError, parse_spec
from runners.engines import client

if TYPE_CHECKING:
    from db.engine import Store
    from db.records import Job, Revision


def job_form(
    store: Store,
    revision: Revision,
    kind: str,
    *,
    plan_key: str,
    button_key: str = "send-job",
    label: str = "Send",
    given: Mapping[str, Any] | None = None,
) -> Job | None:
    """Settings behind a fold, the estimate beside the button; the job, in the run in which it was sent.

    ``given`` are values that the settings begin with, where they are not the plan's own defaults.
    """
    with st.expander("Settings", expanded=False):
        plan = plan_fields(client.PLANS[kind], key=plan_key, given=dict(given) if given else None)
    if plan is None:
        chrome.note("A setting above is not valid yet.")
        return None
    try:
        from planner.dispatch import estimate_job
        from planner.hardware import machine_profile

        estimate = estimate_job(kind, parse_spec(dict(revision.spec)), plan, machine_profile())
    except PlannerError as refused:
        chrome.error(refused)
        return None
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        sent = st.button(label, type="primary", key=button_key)
        with st.container(width="stretch"):
            disk = f" and {figures.disk(estimate.disk_bytes)} of disk" if estimate.disk_bytes else ""
            said = f"About {figures.duration(estimate.seconds)}{disk} · {estimate.basis}"
            chrome.note(f"{said} · how long jobs take has not been held against this estimate")
    if sent:
        with chrome.guard():
            return client.submit(store, kind, revision.id, plan, f"{label_of(kind)} · {revision.name}")
    return None
