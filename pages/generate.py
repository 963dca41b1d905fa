"""Prompt: stored prototypes go on with the same text, token by token, side by side. The address names the job."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from db.engine import Store
from db.errors import StoreError
from db.records import Job, JobState
from pages.widgets import chrome, figures, job_view, written
from pages.widgets.labels import distinct
from planner import GeneratePlan, PlannerError, Problem, PrototypePlan, UnsupportedPlan, parse_plan, parse_spec
from planner.generation import MOST_PROTOTYPES, Writer, read_prompt
from planner.vocabulary import BYTES, Vocabulary, vocabulary
from runners.engines import client

KIND = "generate"
OFFERED = 200
"""Prototypes that can be chosen, the newest first."""
SHOWN = 6
"""Earlier prompts that are listed."""
NUMBERS = {
    "temperature": ("Temperature", "Logits are divided by it; 0 takes the likeliest token."),
    "top_k": ("Top-k", "Only so many of the likeliest tokens; empty: all."),
    "top_p": ("Top-p", "Only the fewest likeliest tokens that have this probability together; empty: all."),
    "min_p": ("Min-p", "Only tokens with this share of the likeliest one's probability or more; empty: all."),
    "max_new_tokens": ("New tokens", "How many each prototype writes."),
    "seed": ("Seed", "The same seed draws the same text."),
    "draft_tokens": ("Draft length", "Tokens that the draft proposes at a time."),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A trained prototype that can be chosen."""

    job: Job
    values: Mapping[str, Any]

    @property
    def size(self) -> str:
        """Its parameters, as far as they are known."""
        return str(figures.count(self.values["parameters"])) if self.values.get("parameters") else ""

    @property
    def words(self) -> str:
        """How large it is, and how well it learned."""
        bits, accuracy = self.values.get("bits_per_byte"), self.values.get("accuracy")
        parts = [f"{self.size} parameters"] if self.size else []
        if bits is not None:
            parts.append(f"{bits:.2f} bits a byte")
        elif accuracy is not None:
            parts.append(f"{figures.percent(accuracy, 0)} right")
        return " · ".join(parts)

    def vocabulary(self) -> Vocabulary:
        """What its tokens are called."""
        plan = parse_plan(PrototypePlan, dict(self.job.plan))
        return vocabulary(plan.task, plan.task_difficulty)

    def writer(self) -> Writer:
        """What the planner knows of it; ``PlannerError`` where its specification is not read any more."""
        return Writer(self.job.name, parse_spec(dict(self.values["spec"])), self.vocabulary())


def stored_prototypes(store: Store) -> dict[str, Stored]:
    """The prototypes that were trained here, the newest first: of recorded ones there are no weights."""
    results = {result.job_id: result.values for result in store.results.list(kind="prototype")}
    jobs = store.jobs.list([JobState.SUCCEEDED], kind="prototype", limit=OFFERED)
    return {
        job.id: Stored(job, results[job.id])
        for job in jobs
        if job.id in results and "spec" in results[job.id] and job.worker_id != job_view.RECORDED
    }


def main() -> None:
    store = chrome.get_store()
    job: Job | None = None
    reason: StoreError | None = None
    if asked := st.query_params.get("job"):
        try:
            job = store.jobs.get(asked)
        except StoreError as refused:
            reason = refused
    if job is not None and job.kind != KIND:
        job = None
    with chrome.header("Prompt", "trained prototypes go on with the same text, side by side"):
        if job is not None:
            actions(store, job)
    if reason is not None:
        chrome.error(reason)
    stored = stored_prototypes(store)
    if not stored and job is None:
        chrome.empty_state(
            "No trained prototype yet",
            "A prototype that was trained here can be given a prompt: send one from a saved design.",
            page="pages/jobs.py",
            action="Send a prototype",
        )
        earlier(store, None)
        return
    chrome.worker_banner(store)
    with chrome.panel("Prompt", key="prompt"):
        form(store, stored, job)
    if job is not None:
        with chrome.panel("Texts", key="texts"):
            written.legend()
            if job.error:
                chrome.error(job.error)
            if job.state.ended:
                texts(store, job)
            else:
                follow(job.id)
    earlier(store, job)


def actions(store: Store, job: Job) -> None:
    asked = job.cancel_requested
    if not job.state.ended and st.button("Cancelling…" if asked else "Cancel", disabled=asked, key="cancel"):
        with chrome.guard():
            client.cancel(store, job.id)
        st.rerun()
    if st.button("Log and environment"):
        st.switch_page("pages/jobs.py", query_params={"job": job.id})


def asked_plan(job: Job | None, stored: Mapping[str, Stored]) -> dict[str, Any]:
    """What the form begins with: the job's own plan, else the prototypes that the address names."""
    defaults = {name: field.get_default() for name, field in GeneratePlan.model_fields.items()}
    if job is not None:
        return {**defaults, **job.plan}
    named = [name for name in st.query_params.get("prototypes", "").split(",") if name in stored]
    return {**defaults, "prototypes": named or list(stored)[:1], "prompt": ""}


def form(store: Store, stored: Mapping[str, Stored], job: Job | None) -> None:
    """What is asked of whom; a wrong field says so when it is sent."""
    begun = asked_plan(job, stored)
    key = job.id if job is not None else "new"
    data: dict[str, Any] = {}
    places: dict[str, Any] = {}
    names = distinct({id: f"{one.job.name} · {one.size}" for id, one in stored.items()})
    left, right = st.columns([3, 2])
    with left:
        data["prototypes"] = st.multiselect(
            "Prototypes",
            list(names),
            default=[name for name in begun["prototypes"] if name in names],
            format_func=names.__getitem__,
            max_selections=MOST_PROTOTYPES,
            key=f"prototypes-{key}",
            placeholder="Choose one, or several to stand side by side",
        )
        places["prototypes"] = st.container()
    with right:
        draft = begun["draft"]
        data["draft"] = st.selectbox(
            "Draft for the first",
            [None, *names],
            index=[None, *names].index(draft) if draft in names else 0,
            format_func=lambda name: "none" if name is None else names[name],
            key=f"draft-{key}",
            help="A smaller prototype proposes tokens, and the first one reads them in one pass and keeps what it may: "
            "one more text, as likely as the first one's own.",
        )
        places["draft"] = st.container()
    words = vocabulary_of(stored, data["prototypes"])
    data["prompt"] = st.text_area(
        f"Prompt: {words.what}",
        value=begun["prompt"],
        height=96,
        key=f"prompt-{key}",
        placeholder="def " if not words.separator else " ".join(words.labels[:24]),
    )
    places["prompt"] = st.container()
    for (name, (label, what)), cell in zip(NUMBERS.items(), st.columns(len(NUMBERS)), strict=True):
        with cell:
            given = begun[name]
            typed = st.text_input(label, "" if given is None else f"{given:,}", key=f"{name}-{key}", help=what).strip()
            places[name] = st.container()
        if typed:
            data[name] = typed.replace(",", "")
        elif GeneratePlan.model_fields[name].get_default() is not None:
            data[name] = GeneratePlan.model_fields[name].get_default()
    button, note = st.columns([1, 5], vertical_alignment="center")
    with note:
        if words.separator:
            chrome.note(
                "Trained on a task: only the tokens that it asks for were ever learned, and what else is written "
                "means nothing."
            )
    if button.button("Generate", type="primary", key="generate"):
        send(store, stored, data, places)


def vocabulary_of(stored: Mapping[str, Stored], chosen: Sequence[str]) -> Vocabulary:
    """What the prompt is typed in: the first chosen prototype's tokens."""
    with contextlib.suppress(PlannerError):
        return stored[chosen[0]].vocabulary() if chosen else BYTES
    return BYTES


def send(store: Store, stored: Mapping[str, Stored], data: dict[str, Any], places: Mapping[str, Any]) -> None:
    """Queue the job, or say at each field what is wrong with it."""
    try:
        plan = checked(stored, data)
    except PlannerError as refused:
        for problem in refused.problems:
            with places.get(problem.path.split("[")[0], st.container()):
                chrome.field_error(problem)
        return
    first = stored[plan.prototypes[0]].job
    snippet = " ".join(plan.prompt.split())[:40]
    with chrome.guard():
        made = client.submit(store, KIND, first.revision_id, plan, f"“{snippet}” by {first.name}")
        st.query_params.clear()
        st.query_params["job"] = made.id
        st.rerun()


def checked(stored: Mapping[str, Stored], data: dict[str, Any]) -> GeneratePlan:
    """The plan, which each of its prototypes can follow; ``PlannerError`` names the fields."""
    missing = [
        Problem("prototypes", "No prototype is chosen.", "Choose at least one.", "no_prototype"),
        Problem("prompt", "There is no prompt.", "Type at least one token.", "no_prompt"),
    ]
    if absent := [problem for problem in missing if not data[problem.path]]:
        raise UnsupportedPlan(absent)
    plan = parse_plan(GeneratePlan, data)
    writers = [stored[name].writer() for name in plan.prototypes]
    read_prompt(plan, writers, None if plan.draft is None else stored[plan.draft].writer())
    return plan


@st.fragment(run_every=0.5)
def follow(job_id: str) -> None:
    """The texts while they are written; when the job has ended the page is drawn once more, without a timer."""
    store = chrome.get_store()
    with chrome.guard():
        job = store.jobs.get(job_id)
        if job.state.ended:
            st.rerun()
        if job.state == JobState.QUEUED:
            for other in store.jobs.list([JobState.RUNNING], limit=1):
                chrome.note(f"The worker is at {other.name}; this comes after it.")
        job_view.progress(job)
        texts(store, job)


def texts(store: Store, job: Job) -> None:
    """What has been written so far."""
    plan = parse_plan(GeneratePlan, dict(job.plan))
    found = store.results.list(job_id=job.id, include_archived=True)
    results = found[0].values["texts"] if found else ()
    titles, separator = [], ""
    for prototype, draft in plan.texts:
        name, what, separator = _about(store, prototype)
        titles.append((name, what) if draft is None else (f"{name}, with a draft", f"by {_about(store, draft)[0]}"))
    written.columns(titles, plan.prompt, separator, store.jobs.tokens(job.id), results)
    if found:
        chrome.note(f"Measured side by side in one process · {job_view.environment_line(found[0].environment)}")


def _about(store: Store, job_id: str) -> tuple[str, str, str]:
    """Name, size and the vocabulary's separator of a prototype, as far as its row is still there."""
    try:
        job = store.jobs.get(job_id)
        found = store.results.list(job_id=job_id, include_archived=True)
        one = Stored(job, found[0].values if found else {})
        return job.name, one.words, one.vocabulary().separator
    except (StoreError, PlannerError):
        return job_id, "", ""


def earlier(store: Store, shown: Job | None) -> None:
    """The latest prompts, each a link to what was written."""
    jobs = [job for job in store.jobs.list(kind=KIND, limit=SHOWN + 1) if shown is None or job.id != shown.id]
    if not jobs:
        return
    with chrome.panel("Earlier prompts", "the newest first", key="earlier"):
        for job in jobs[:SHOWN]:
            name, state, when = st.columns([6, 1.4, 1.6], vertical_alignment="center")
            if name.button(job.name, key=f"open-{job.id}", type="tertiary"):
                st.query_params.clear()
                st.query_params["job"] = job.id
                st.rerun()
            with state:
                chrome.html(job_view.state_html(job.state))
            with when:
                chrome.html(f'<span class="pl-soft">{job_view.moment(job.created_at)}</span>')


main()
