"""Jobs: what waits, runs and has ended; one job with its curves, its log and what it found; a form to send another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from db.engine import Store
from db.errors import StoreError
from db.records import Job
from pages.widgets import chrome, figures, job_view, probe_view
from pages.widgets.job_form import job_form
from pages.widgets.labels import distinct
from pages.widgets.plan_form import label_of as plan_label
from runners.engines import client

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
SHOWN = 60


def main() -> None:
    store = chrome.get_store()
    job_id = st.query_params.get("job")
    if job_id is None:
        listing(store)
        return
    try:
        job = store.jobs.get(job_id)
    except StoreError as reason:
        chrome.header("Jobs")
        chrome.error(reason)
        if st.button("Show all jobs"):
            open_job(None)
        return
    detail(store, job)


def open_job(job_id: str | None) -> None:
    """Show one job, or the list: the address says which."""
    if job_id is None:
        st.query_params.pop("job", None)
    else:
        st.query_params["job"] = job_id
    st.rerun()


# --- all jobs ---


def listing(store: Store) -> None:
    counts = store.jobs.counts()
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    chrome.header("Jobs", words or "nothing has been run yet")
    chrome.worker_banner(store)
    with chrome.panel("Send a job", "of a saved revision", key="send"):
        dispatch(store)
    left, middle, right = st.columns([3, 3, 2], vertical_alignment="bottom")
    wanted_states = left.multiselect(
        "State", STATES, default=_chosen("state", STATES), key="jobs-state", placeholder="Any state"
    )
    wanted_kinds = middle.multiselect(
        "Kind",
        list(client.PLANS),
        default=_chosen("kind", client.PLANS),
        key="jobs-kind",
        placeholder="Any kind",
        format_func=plan_label,
    )
    with_archived = right.toggle("Archived too", value="archived" in st.query_params, key="jobs-archived")
    _keep("state", wanted_states)
    _keep("kind", wanted_kinds)
    _keep("archived", ["1"] if with_archived else [])
    table(wanted_states, wanted_kinds, with_archived)


def _chosen(name: str, allowed: Any) -> list[str]:
    return [value for value in st.query_params.get(name, "").split(",") if value in allowed]


def _keep(name: str, values: list[str]) -> None:
    if values:
        st.query_params[name] = ",".join(values)
    else:
        st.query_params.pop(name, None)


@st.fragment(run_every=2.0)
def table(states: list[str], kinds: list[str], archived: bool) -> None:
    """The list; it follows the queue by itself."""
    store = chrome.get_store()
    with chrome.guard():
        jobs = [
            job
            for job in store.jobs.list(states or None, include_archived=archived, limit=500)
            if not kinds or job.kind in kinds
        ]
        with chrome.panel("All jobs" if not (states or kinds) else "Chosen jobs", "the newest first", key="jobs"):
            if not jobs:
                chrome.empty_state(
                    "No jobs here", "Send one above, or from a design in the studio.", page="pages/studio.py",
                    action="Open the studio",
                )  # fmt: skip
            for job in jobs[:SHOWN]:
                line(job)
            if len(jobs) > SHOWN:
                chrome.note(f"{len(jobs) - SHOWN} older ones are not shown: choose a state or a kind.")


def line(job: Job) -> None:
    name, kind, state, when, took = st.columns([5, 2, 3, 2, 1.4], vertical_alignment="center")
    if name.button(job.name, key=f"open-{job.id}", type="tertiary"):
        open_job(job.id)
    with kind:
        chrome.html(f'<span class="pl-soft">{chrome.escape(plan_label(job.kind))}</span>')
    with state:
        if job.state == "running" and job.progress is not None:
            st.progress(job.progress.fraction)
        else:
            chrome.html(job_view.state_html(job.state))
    with when:
        chrome.html(f'<span class="pl-soft">{job_view.moment(job.created_at)}</span>')
    with took:
        chrome.html(f'<span class="pl-soft">{job_view.duration(job)}</span>')


def dispatch(store: Store) -> None:
    """Choose a revision, a kind and its plan; what it will take is said before it is sent."""
    designs = store.designs.list()
    if not designs:
        chrome.empty_state(
            "No saved design yet", "A job runs a saved revision: save one in the studio first.",
            page="pages/studio.py", action="Open the studio",
        )  # fmt: skip
        return
    left, right = st.columns([3, 2])
    names = distinct({design.id: f"{design.name} · revision {design.latest.number}" for design in designs})
    chosen = left.selectbox("Design", list(names), format_func=names.__getitem__)
    design = next(design for design in designs if design.id == chosen)
    kinds = [kind for kind in client.PLANS if kind != "generate"]  # that has a page of its own
    kind = right.selectbox("Kind of job", kinds, key="dispatch-kind", format_func=plan_label)
    job = job_form(store, design.latest, kind, plan_key=f"plan-{kind}")
    if job is not None:
        open_job(job.id)


# --- one job ---


def detail(store: Store, job: Job) -> None:
    began = "imported" if job.worker_id == job_view.RECORDED else "started"
    where = f"{plan_label(job.kind)} · {job.state}" + (
        f" · {began} {job_view.moment(job.started_at)}" if job.started_at else ""
    )
    if job.attempt > 1:
        where += f" · attempt {job.attempt}"
    with chrome.header(job.name, where):
        if st.button("All jobs"):
            open_job(None)
        if not job.state.ended:
            asked = job.cancel_requested
            if st.button("Cancelling…" if asked else "Cancel", disabled=asked, key="cancel"):
                with chrome.guard():
                    client.cancel(store, job.id)
                st.rerun()
        else:
            with st.popover("More"):
                manage(store, job)
        if job.kind == "generate" and st.button("Show the texts", type="primary"):
            st.switch_page("pages/generate.py", query_params={"job": job.id})
        if job.kind == "kernels" and st.button("Show the kernels", type="primary"):
            st.switch_page("pages/kernels.py")
        trained = job.kind == "prototype" and job.state == "succeeded" and job.worker_id != job_view.RECORDED
        if trained and st.button("Try a prompt"):
            st.switch_page("pages/generate.py", query_params={"prototypes": job.id})
        if job.kind not in ("generate", "kernels", "calibrate") and st.button("Open in compare", type="primary"):
            st.switch_page("pages/compare.py", query_params={"revisions": str(job.revision_id)})
    if not job.state.ended:
        chrome.worker_banner(store)
    if job.error:
        chrome.error(job.error)
    if job.state.ended:
        body(store, job)
    else:
        follow(job.id)


def manage(store: Store, job: Job) -> None:
    name = st.text_input("Name", value=job.name, key="job-name")
    if st.button("Rename", disabled=not name.strip() or name == job.name):
        with chrome.guard():
            store.jobs.rename(job.id, name)
            for result in store.results.list(job_id=job.id):
                store.results.rename(result.id, name)
            st.rerun()
    if st.button("Restore" if job.archived else "Archive"):
        with chrome.guard():
            (store.jobs.restore if job.archived else store.jobs.archive)(job.id)
            for result in store.results.list(job_id=job.id, include_archived=True):
                (store.results.restore if job.archived else store.results.archive)(result.id)
            st.rerun()
    if st.button("Send again"):
        with chrome.guard():
            open_job(client.submit(store, job.kind, job.revision_id, dict(job.plan), job.name).id)


@st.fragment(run_every=1.5)
def follow(job_id: str) -> None:
    """A running job; when it has ended the page is drawn once more, without a timer."""
    store = chrome.get_store()
    with chrome.guard():
        job = store.jobs.get(job_id)
        if job.state.ended:
            st.rerun()
        body(store, job)


def body(store: Store, job: Job) -> None:
    if not job.state.ended:
        with chrome.panel("Progress", key="progress"):
            job_view.progress(job)
    results = store.results.list(job_id=job.id, include_archived=True)
    values: Mapping[str, Any] = results[0].values if results else {}
    if results and job.kind in probe_view.DRAWINGS:
        probe_view.draw(job.kind, values, f"drawn-{job.id}")
    # Without curves, what was found has the wider place.
    series = job_view.series_of(store, job)
    left, right = st.columns([3, 2]) if series or not results else st.columns([3, 2])[::-1]
    with left:
        if series:
            with chrome.panel("Curves", "every step, as it was said", key="curves"):
                job_view.curves(series, job, f"curve-{job.id}")
        for sample in values.get("samples", ())[:3]:
            with chrome.panel("Generated text", sample.get("note", ""), key=f"sample-{sample.get('seed', 0)}"):
                st.code(f"{sample.get('prompt', '')}{sample.get('text', '')}", language=None, wrap_lines=True)
        with chrome.panel("Log", key="log"):
            job_view.log_lines(store, job)
    with right:
        if rows := values.get("rows"):
            with chrome.panel("Predicted and measured", key="predictions"):
                job_view.predictions(rows)
                chrome.note(job_view.environment_line(results[0].environment))
        elif results:
            with chrome.panel("Result", key="result"):
                chrome.note(job_view.environment_line(results[0].environment))
        if values.get("timings"):
            with chrome.panel("Timings", "measured on this machine", key="timings"):
                timings_table(values["timings"])
        if values.get("rules"):
            with chrome.panel("How it was scaled down", key="rules"):
                show_value(values["rules"])
        with chrome.panel("Plan", key="plan"):
            show_value({plan_label(key): plan_text(value) for key, value in job.plan.items()})
        if artifacts := store.jobs.artifacts(job.id):
            with chrome.panel("Files", "in the job's directory", key="files"):
                for artifact in artifacts:
                    chrome.html(f'<code class="pl-figures">{chrome.escape(artifact.path)}</code>')


def plan_text(value: Any) -> Any:
    """A value of a plan for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def show_value(value: Any) -> None:
    """A mapping as a table of two columns, a list as lines."""
    if not isinstance(value, Mapping):
        lines = "".join(
            f'<p class="pl-note" style="overflow-wrap:anywhere">{chrome.escape(entry)}</p>' for entry in value
        )
        chrome.html(lines)
        return
    body = "".join(
        f'<tr><td>{chrome.escape(name)}</td><td class="fig" style="white-space:normal">{chrome.escape(entry)}</td></tr>'
        for name, entry in value.items()
        if entry is not None
    )
    chrome.html(f'<table class="pl-table"><tbody>{body}</tbody></table>')


def timings_table(timings: Mapping[str, Mapping[str, Any]]) -> None:
    """A benchmark's phases: median, interval and speed."""
    body = "".join(
        f"<tr><td>{chrome.escape(phase.capitalize())}</td>"
        f'<td class="fig">{figures.duration(timing["median_seconds"])}</td>'
        f'<td class="fig">{figures.duration(timing["low_seconds"])} to {figures.duration(timing["high_seconds"])}</td>'
        f'<td class="fig">{timing["tokens_per_second"]:,.0f}</td></tr>'
        for phase, timing in timings.items()
    )
    head = "<tr><th></th><th>median</th><th>95% interval</th><th>tokens a second</th></tr>"
    chrome.html(f'<table class="pl-table"><thead>{head}</thead><tbody>{body}</tbody></table>')


main()
