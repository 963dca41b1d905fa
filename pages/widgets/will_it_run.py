"""Will this run here, with which settings: a design, a device and a few settings, answered in words and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from pages.widgets import (
    address,
    chrome,
    design_source,
    figures,
    fit_bars,
    key_numbers,
    ledger_view,
    nearest,
    serving_view,
    studio_actions,
    training_view,
    transfer,
)
from pages.widgets import draft as drafts
from pages.widgets.address import View
from pages.widgets.devices import known_devices
from pages.widgets.draft import Draft, Settings
from pages.widgets.key_numbers import KeyNumber
from pages.widgets.plan_form import label_of
from planner import (
    Device,
    ServingPlan,
    TrainingPlan,
    UnsupportedPlan,
    VerifyPlan,
    estimate_inference,
    estimate_job,
    estimate_training,
    fits,
    hardware,
    parse_plan,
)
from planner.advice import (
    SERVED_BY_JOBS,
    TRAINED_BY_JOBS,
    Suggestion,
    check_length,
    serving_suggestions,
    training_suggestions,
    usual_length,
    verification_of,
    widest_format,
)
from planner.calibration import NOT_CALIBRATED, PHASE_LABELS, Phase
from planner.hardware import machine_profile
from planner.presets import preset, preset_ids
from planner.sensitivity import largest
from planner.serving import WEIGHT_FORMATS
from planner.serving.formats import is_weight_format

if TYPE_CHECKING:
    from db.engine import Store

AnyPlan = TypeVar("AnyPlan", ServingPlan, TrainingPlan)

RUNS = {"serve": "Serve", "train": "Train"}
OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor", "lion", "muon", "sgd")
SERVING = {
    "context": "context_length", "batch": "batch_size", "weights": "weight_format", "cache": "cache_dtype",
    "offload": "offload_layers", "devices": "tensor_parallel",
}  # fmt: skip
TRAINING = {"length": "sequence_length", "sequences": "micro_batch_size", "optimizer": "optimizer"}
NO_ROOM = "Speed: no time is given, as jobs run models in fp32, and so it does not fit here."
HOW_TO_CALIBRATE = ".venv/bin/python -m runners run calibrate --spec gpt2"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a design, a plan and a device."""

    draft: Draft
    plan: ServingPlan | TrainingPlan
    device: Device

    @property
    def where(self) -> str:
        """The device in a sentence."""
        return "here" if self.device.id == "here" else f"on {self.device.name}"


def show(store: Store) -> None:
    """Draw the panel from the address, and put what it holds back there."""
    draft = design_source.from_address("home")
    view = View("home", _defaults(draft), kept=design_source.PARAMETERS)
    _follow_defaults(view)
    with chrome.panel(
        "Will it run?", "memory by part, the longest context, the speed, and what to change", key="will-it-run"
    ):
        devices = {"here": "This machine"} | {device.id: device.name for device in known_devices()}
        view.choice("device", devices)
        view.choice("run", RUNS)
        row = st.columns([1.7, 1.7, 0.9], gap="small", vertical_alignment="bottom")
        with row[0]:
            design_source.choice(view, draft)
        row[1].selectbox("Device", list(devices), key=view.key("device"), format_func=devices.__getitem__)
        row[2].segmented_control(
            "To", list(RUNS), key=view.key("run"), format_func=RUNS.__getitem__, required=True,
            label_visibility="collapsed",
        )  # fmt: skip
        _pasting(view)
        if draft.notice:
            chrome.error(draft.notice)
        plan = _serving_fields(view, draft) if view["run"] == "serve" else _training_fields(view, draft)
        if plan is not None:
            with chrome.guard():
                question = Question(draft, plan, hardware(view["device"]))
                _answer(view, question)
                _actions(store, question)
                _nearest(store, question)
    view.write()


def _defaults(draft: Draft) -> dict[str, str]:
    """What the address leaves out."""
    serving, training = draft.settings.serving, draft.settings.training
    return {
        "device": "here",
        "run": "serve",
        "context": str(usual_length(draft.spec, serving.context_length)),
        "batch": str(serving.batch_size),
        "weights": serving.weight_format,
        "cache": serving.cache_dtype,
        "offload": str(serving.offload_layers),
        "devices": str(serving.tensor_parallel),
        "length": str(usual_length(draft.spec, training.sequence_length)),
        "sequences": str(training.micro_batch_size),
        "optimizer": training.optimizer,
    }


def _follow_defaults(view: View) -> None:
    """Give what was left at another design's default the default of this one."""
    before: Mapping[str, str] = st.session_state.get("home-defaults", {})
    for name, default in view.defaults.items():
        if name in before and before[name] != default and view[name] == before[name]:
            view.set(name, default)
    st.session_state["home-defaults"] = dict(view.defaults)


def _pasting(view: View) -> None:
    """Take a pasted or dropped configuration once as the design; a refusal stands at its field."""
    with st.expander("Or paste or drop a config.json"):
        loaded = transfer.dropped_or_pasted("home", height=130)
    if loaded is not None and loaded.spec != st.session_state.get("home-taken"):
        st.session_state["home-taken"] = loaded.spec
        view.go(**dict.fromkeys(design_source.PARAMETERS) | {"draft": drafts.pack(loaded.spec, Settings())})
        st.rerun()
    asked = address.asked("home").get("preset", "")
    left_out = preset(asked).left_out if asked in preset_ids() else ()
    if loaded is not None and "preset" not in address.asked("home"):
        left_out = loaded.left_out
    if left_out:
        chrome.html(transfer.left_out_html(left_out))


# --- the few settings ---


def _serving_fields(view: View, draft: Draft) -> ServingPlan | None:
    if not is_weight_format(view["weights"]):
        view.set("weights", view.defaults["weights"])
    row = st.columns([1, 1, 1.2, 1.4], gap="small", vertical_alignment="top")
    with row[0]:
        st.text_input("Tokens of context", key=view.key("context"))
    with row[1]:
        st.text_input("Requests at a time", key=view.key("batch"))
    with row[2]:
        formats = list(dict.fromkeys([*WEIGHT_FORMATS, view["weights"]]))
        st.selectbox("Weights in", formats, key=view.key("weights"))
    places = {"context_length": row[0], "batch_size": row[1], "weight_format": row[2]}
    extra = {name: view[name] for name in ("cache", "offload", "devices") if view[name] != view.defaults[name]}
    if extra:
        with row[3]:
            words = ", ".join(f"{label_of(SERVING[name]).lower()} {value}" for name, value in extra.items())
            chrome.note(f"And {words}.")
            usual = {name: view.defaults[name] for name in extra}
            st.button("Without these", key="home-without", on_click=_set, args=(view, usual))
    return _checked(draft, ServingPlan, {field: view[name] for name, field in SERVING.items()}, places)


def _training_fields(view: View, draft: Draft) -> TrainingPlan | None:
    view.choice("optimizer", OPTIMIZERS)
    row = st.columns([1, 1, 1.2, 1.4], gap="small", vertical_alignment="top")
    with row[0]:
        st.text_input("Tokens of a sequence", key=view.key("length"))
    with row[1]:
        st.text_input("Sequences at a time", key=view.key("sequences"))
    with row[2]:
        st.selectbox("Optimizer", OPTIMIZERS, key=view.key("optimizer"))
    places = {"sequence_length": row[0], "micro_batch_size": row[1]}
    return _checked(draft, TrainingPlan, {field: view[name] for name, field in TRAINING.items()}, places)


def _checked(
    draft: Draft, plan_class: type[AnyPlan], data: dict[str, str], places: Mapping[str, Any]
) -> AnyPlan | None:
    """The plan that was typed; ``None`` while a field is wrong, which says so below itself."""
    length = "context_length" if plan_class is ServingPlan else "sequence_length"
    try:
        plan = parse_plan(plan_class, {name: value.replace(",", "") for name, value in data.items()})
        check_length(draft.spec, length, getattr(plan, length))
        return plan
    except UnsupportedPlan as refused:
        for problem in refused.problems:
            with places.get(problem.path, st.container()):
                chrome.field_error(problem)
        return None


def _set(view: View, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        view.set(name, value)


# --- the answer ---


def _answer(view: View, question: Question) -> None:
    """The verdict, the bar of memory, the numbers, and what to change."""
    spec, plan, device = question.draft.spec, question.plan, question.device
    fit = fits(spec, plan, device)
    needed, usable = figures.memory(fit.needed_bytes), figures.memory(fit.usable_bytes)
    tone, start, end = ("pl-good", "Yes", "runs") if fit.fits else ("pl-bad", "No", "does not so run")
    chrome.html(
        f'<p class="pl-verdict"><b class="{tone}">{start}, {chrome.escape(f"{spec.name} {end} {question.where}")}.</b> '
        f"{chrome.escape(_words(plan))} takes {needed}, and {usable} are usable.</p>"
    )
    chrome.html(fit_bars.html_of([fit]))
    if device.id == "here":
        chrome.note(f"Usable here: {device.usable_reason}.")
    numbers, notes = _serving_numbers(question, plan) if isinstance(plan, ServingPlan) else _training(question, plan)
    key_numbers.show(numbers, key="home-numbers")
    for note in notes:
        chrome.html(f'<p class="pl-note">{note}</p>')
    if fit.fits:
        return
    if isinstance(plan, ServingPlan):
        suggestions = serving_suggestions(spec, plan, device)
    else:
        suggestions = training_suggestions(spec, plan, device)
    _changes(view, question, suggestions)


def _words(plan: ServingPlan | TrainingPlan) -> str:
    """What is done, as the beginning of a sentence."""
    if isinstance(plan, ServingPlan):
        count = "one request" if plan.batch_size == 1 else f"{plan.batch_size:,} requests"
        return f"Serving {count} of {plan.context_length:,} tokens with weights in {plan.weight_format}"
    count = "one sequence" if plan.micro_batch_size == 1 else f"{plan.micro_batch_size:,} sequences"
    return f"Training with {plan.optimizer} on {count} of {plan.sequence_length:,} tokens a step"


def _serving_numbers(question: Question, plan: ServingPlan) -> tuple[list[KeyNumber], list[str]]:
    spec, device = question.draft.spec, question.device
    estimate = estimate_inference(spec, plan.model_copy(update={"hardware": device.id}))
    best = widest_format(spec, plan, device)
    longest, most = estimate.max_context_length, estimate.max_batch_size
    numbers = [
        KeyNumber(
            "format", "Widest weights", "none" if best is None else best[0], status="modelled",
            note="fit at this context" if best is None else f"that fit: {figures.memory(best[1].needed_bytes)}",
        ),
        KeyNumber(
            "context", "Longest context", "no bound" if longest is None else f"{longest:,}", status="modelled",
            note=estimate.max_context_note,
        ),
        KeyNumber(
            "requests", "Most requests", "–" if most is None else f"{most:,}", status="modelled",
            note=f"of {figures.context(plan.context_length)} tokens",
        ),
    ]  # fmt: skip
    if not fits(spec, plan, device).fits:
        return numbers, []
    if device.id == "here":
        timed = plan.model_copy(update=SERVED_BY_JOBS)
        if not fits(spec, timed, device).fits:
            return numbers, [NO_ROOM]
        estimate = estimate_inference(spec, timed.model_copy(update={"hardware": device.id}))
    times = [each for each in serving_view.time_numbers(estimate) if each.quantity != "energy"]
    return numbers + times, [_time_note(device, estimate.time_note)]


def _training(question: Question, plan: TrainingPlan) -> tuple[list[KeyNumber], list[str]]:
    spec, device = question.draft.spec, question.device
    numbers = []
    for field, label in (("sequence_length", "Longest sequence"), ("micro_batch_size", "Most sequences")):
        most = largest(spec, f"plan.{field}", plan, device=device).value
        numbers.append(KeyNumber(field, label, "none fits" if most is None else f"{most:,}", status="modelled"))
    if not fits(spec, plan, device).fits:
        return numbers, []
    timed = plan.model_copy(update=TRAINED_BY_JOBS if device.id == "here" else {})
    if not fits(spec, timed, device).fits:
        return numbers, [NO_ROOM]
    estimate = estimate_training(spec, timed.model_copy(update={"hardware": device.id}))
    return numbers + training_view.time_numbers(estimate), [_time_note(device, estimate.time_note)]


def _time_note(device: Device, said: str) -> str:
    """HTML of what the times rest on, or how to come by them."""
    if device.id != "here":
        return chrome.escape(said)
    command = f" <code>{HOW_TO_CALIBRATE}</code>" if NOT_CALIBRATED in said else ""
    return f"Speed, as jobs run it here in fp32: {chrome.escape(said)}{command}"


def _changes(view: View, question: Question, suggestions: tuple[Suggestion, ...]) -> None:
    """What would make it fit, each with a button that takes it."""
    chrome.heading("What to change", "each fits by itself; from what costs least")
    if not suggestions:
        chrome.note("No change of these settings and no single device of the catalogue makes it fit.")
    for place, each in enumerate(suggestions):
        words = ", ".join(f"{label_of(name)} {_said(value)}" for name, value in each.fields.items())
        moved = {name: str(each.fields[field]) for name, field in (SERVING | TRAINING).items() if field in each.fields}
        if each.device != question.device:
            words, moved = each.device.name, {**moved, "device": each.device.id}
        with st.container(horizontal=True, vertical_alignment="center", key=f"home-change-{place}"):
            st.button("Take it", key=f"home-take-{place}", on_click=_set, args=(view, moved))
            chrome.html(
                f'<p class="pl-note"><b>{chrome.escape(words)}</b> · {chrome.escape(each.cost)} · '
                f"{figures.memory(each.fit.needed_bytes)} of {figures.memory(each.fit.usable_bytes)}</p>"
            )
    if isinstance(question.plan, TrainingPlan):
        plan = question.plan.model_copy(update={"hardware": question.device.id})
        changes = estimate_training(question.draft.spec, plan).changes
        if changes:
            chrome.heading("Or change the step", "together, one after another")
            chrome.html(training_view.changes_html(changes))


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- what follows ---


def _actions(store: Store, question: Question) -> None:
    """The job that verifies it, and the pages that know more."""
    draft, plan = question.draft, question.plan
    verification = verification_of(draft.spec, plan)
    sent: tuple[str, VerifyPlan, str] | None = st.session_state.get("home-verify")
    known = sent is not None and sent[:2] == (draft.spec.content_hash(), verification)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="home-actions"):
        pressed = False
        if known and sent is not None:
            chrome.link("jobs", "It is in the queue: follow it under Jobs", job=sent[2])
        else:
            pressed = st.button("Verify this with a job", type="primary", key="home-verify-button")
        _links(question)
    chrome.note(_promise(draft, verification))
    chrome.worker_banner(store)
    if pressed:
        with chrome.guard():
            job = _verify(store, draft, verification)
            st.session_state["home-verify"] = (draft.spec.content_hash(), verification, job)
            st.rerun()


def _promise(draft: Draft, plan: VerifyPlan) -> str:
    """What the job does, at which shape, and for how long."""
    estimate = estimate_job("verify", draft.spec, plan, machine_profile())
    return (
        f"It builds the model without its data and holds parameters, FLOPs, cache and peak training memory against "
        f"these formulas, at {plan.batch_size:,} × {plan.sequence_length:,} tokens in {plan.precision}: about "
        f"{figures.duration(estimate.seconds)}."
    )


def _verify(store: Store, draft: Draft, plan: VerifyPlan) -> str:
    """Save the design where it is not saved yet, and queue the job; its id."""
    from runners.engines.client import submit

    saved = store.designs.find_revision(draft.spec.content_hash())
    if saved is None:
        revision = studio_actions.save(draft, store, "Saved to verify it", anew=True).revision_id
    else:
        revision = saved.id
    return submit(store, "verify", revision, plan, f"Verify · {draft.spec.name}").id


def _links(question: Question) -> None:
    draft, plan = question.draft, question.plan
    settings = draft.settings
    if isinstance(plan, ServingPlan):
        settings = Settings(plan, settings.training, settings.share)
    else:
        settings = Settings(settings.serving, plan, settings.share)
    query = {"draft": drafts.pack(draft.spec, settings)}
    chrome.link("studio", "Studio", **query)
    device = {} if question.device.id == "here" else {"hardware": question.device.id}
    serving = _changed(plan, SERVING) if isinstance(plan, ServingPlan) else {}
    training = _changed(plan, TRAINING) if isinstance(plan, TrainingPlan) else {}
    chrome.link("serving_plan", "Serving plan", **query, **device, **serving)
    chrome.link("training_plan", "Training plan", **query, **device, **training)


def _changed(plan: ServingPlan | TrainingPlan, fields: Mapping[str, str]) -> dict[str, str]:
    return {field: str(getattr(plan, field)) for field in fields.values()}


def _nearest(store: Store, question: Question) -> None:
    """How far the planner is on runs like this one."""
    serves, here = isinstance(question.plan, ServingPlan), question.device.id == "here"
    spec, names = question.draft.spec, ["inference_memory" if serves else "training_memory"]
    if not here:
        names += ["inter_token_latency", "time_to_first_token"] if serves else ["step_time"]
    nearest.line(spec, names, question.device.name, key="home")
    if here:
        phases: tuple[Phase, ...] = ("prefill", "decode") if serves else ("training",)
        own = ledger_view.stored_pairs(store, ("benchmark", "calibrate"))
        nearest.own_line(spec, [PHASE_LABELS[phase] for phase in phases], question.device.name, own)
