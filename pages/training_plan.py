"""Training plan: memory of every device by part, what is alive when, and how the devices divide the work."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import streamlit as st

from pages.widgets import charts, chrome, design_source, devices, figures, key_numbers, nearest, terms, training_view
from pages.widgets.address import View
from pages.widgets.key_numbers import KeyNumber
from pages.widgets.plan_form import plan_fields
from planner import ArchitectureSpec, Device, PlannerError, TrainingPlan, estimate_training, hardware
from planner.step_time.run_cost import Interruptions, run_cost
from planner.training import TrainingEstimate, TrainingMemory
from planner.training.estimate import stage_memories

SECTIONS = {
    "": ("micro_batch_size", "global_batch_size", "sequence_length", "precision", "optimizer", "recompute"),
    "Division over devices": (
        "data_parallel", "tensor_parallel", "sequence_parallel", "tp_comm_overlap", "pipeline_parallel",
        "pipeline_schedule", "virtual_stages", "pipeline_layers", "context_parallel", "context_exchange",
        "expert_parallel", "expert_tensor_parallel", "zero_stage", "fsdp_reshard", "network_gb_per_second",
    ),
}  # fmt: skip
DEFAULTS = {"hardware": "h100", "tokens": "1e12", "checkpoint": "60", "restart": "600"}
FIELDS = tuple(name for name in TrainingPlan.model_fields if name != "hardware")
TERMS = {"memory": "training_memory", "step": "step_time", "speed": "step_time", "mfu": "step_time"}
"""What a key number opens: a rate and a share are read from the step's time."""


def main() -> None:
    """Draw the page from the address."""
    draft = design_source.from_address("training_plan")
    view = View("training_plan", DEFAULTS, kept=(*design_source.PARAMETERS, *FIELDS))
    known = {device.id: device for device in devices.known_devices(with_here=True)}
    view.choice("hardware", known)
    actions = chrome.header("Training plan", draft.spec.name)
    with actions:
        chrome.link("sensitivity", "Which setting matters", **_sensitivity(draft))
    if draft.notice:
        chrome.error(draft.notice)
    with st.container(border=True, key="panel-training-plan", gap="small"):
        row = st.columns([1.6, 1.4, 2], gap="small")
        with row[0]:
            design_source.choice(view, draft)
        row[1].selectbox("Device", list(known), key=view.key("hardware"), format_func=lambda name: known[name].name)
        plan = plan_fields(
            TrainingPlan, "training-plan", columns=6, given=_asked(draft.settings.training), sections=SECTIONS,
            fixed={"hardware": view["hardware"]},
        )  # fmt: skip
    if plan is None:
        return
    changed = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in plan
        if name in FIELDS and value is not None and value != TrainingPlan.model_fields[name].get_default()
    }
    view.write(**{name: changed.get(name) for name in FIELDS})
    try:
        estimate, stages = _estimated(draft.spec, plan)
    except PlannerError as reason:
        chrome.error(reason)
        return
    device = hardware(view["hardware"])
    numbers(plan, estimate, device)
    timed = ("step_time",) if estimate.step_seconds is not None else ()
    nearest.line(draft.spec, ("training_memory", *timed), device.name, key="training")
    memory(plan, stages, device)
    left, right = st.columns([1.35, 1], gap="small")
    with left, chrome.panel("Within a step", "what is alive at each moment, on the device that needs most", key="step"):
        charts.show(
            training_view.timeline(estimate.memory, device.usable_memory_bytes),
            key="training-timeline",
            alt="Memory by part at each moment of a step",
        )
        peak = estimate.memory.peak
        chrome.note(f"The peak, {figures.memory(peak.total_bytes)}, is at: {peak.name}.")
    with right, chrome.panel("The devices", "each square is one", key="map"):
        chrome.html(training_view.map_html(plan, stages))
    if estimate.memory.total_bytes > device.usable_memory_bytes:
        with chrome.panel("What would make it fit", "from what costs least", key="changes"):
            if estimate.changes:
                chrome.html(training_view.changes_html(estimate.changes))
            else:
                chrome.note("No change of the plan that is modelled makes it fit.")
    if estimate.step_seconds is not None:
        time_and_money(view, estimate, device)
    if estimate.memory.buffers:
        with chrome.panel("What the engine sets aside", "beside states and activations", key="buffers"):
            chrome.html(training_view.buffers_html(estimate.memory.buffers))
    terms.show_if_asked(draft, plan)


def _sensitivity(draft: Any) -> dict[str, str]:
    return {**design_source.studio_query(draft), "output": "training_memory"}


def _asked(training: TrainingPlan) -> dict[str, Any]:
    """What the address says of the plan, else what the design is looked at with."""
    own = {"sequence_length": training.sequence_length, "micro_batch_size": training.micro_batch_size}
    asked: dict[str, Any] = {name: value for name, value in st.query_params.items() if name in FIELDS}
    for name, value in asked.items():
        annotation = TrainingPlan.model_fields[name].annotation
        if annotation is bool:
            asked[name] = value == "True"
        elif isinstance(TrainingPlan.model_fields[name].get_default(), tuple):
            asked[name] = tuple(part for part in value.split(",") if part)
    return own | asked


@lru_cache(maxsize=64)
def _estimated(spec: ArchitectureSpec, plan: TrainingPlan) -> tuple[TrainingEstimate, tuple[TrainingMemory, ...]]:
    estimate = estimate_training(spec, plan)
    return estimate, tuple(stage_memories(spec, plan, plan.sequence_length, plan.micro_batch_size))


def numbers(plan: TrainingPlan, estimate: TrainingEstimate, device: Device) -> None:
    """The row of key numbers."""
    total, usable = estimate.memory.total_bytes, device.usable_memory_bytes
    needed = figures.memory(total)
    fits = total <= usable
    count = training_view.device_count(plan)
    row = [
        KeyNumber(
            "memory", "Memory a device", needed.value, needed.unit, needed.exact, "modelled",
            change="fits" if fits else "does not fit", direction="good" if fits else "bad",
            note=f"of {figures.memory(usable)} usable",
        ),
        KeyNumber("devices", "Devices", f"{count:,}", exact=f"{count:,}", note=device.name),
    ]  # fmt: skip
    row += training_view.time_numbers(estimate)
    key_numbers.show(row, key="training-numbers", on_open=lambda name: terms.ask(TERMS[name]), opening=TERMS)
    if estimate.step_seconds is None:
        chrome.note(estimate.time_note)


def time_and_money(view: View, estimate: TrainingEstimate, device: Device) -> None:
    """What a step's time goes to, and what a run on a number of tokens takes."""
    left, right = st.columns([1.35, 1], gap="small")
    with left, chrome.panel("Time of a step", "by what it goes to", key="step-time"):
        charts.show(training_view.time_bars(estimate.time), key="training-time", alt="Seconds of a step by part")
        chrome.note(estimate.time.text)
        terms.open_button("step_time", "open-step-time")
    with right, chrome.panel("A whole run", "with interruptions", key="run"):
        row = st.columns(3, gap="small")
        tokens = row[0].text_input("Tokens", key=view.key("tokens"), help="such as 1.5e12")
        checkpoint = row[1].text_input("A checkpoint takes, s", key=view.key("checkpoint"))
        restart = row[2].text_input("A restart takes, s", key=view.key("restart"))
        try:
            count, waits, back = (float(text.replace(",", "")) for text in (tokens, checkpoint, restart))
            if not (count > 0 and waits >= 0 and back >= 0) or not math.isfinite(count + waits + back):
                raise ValueError("out of range")
        except ValueError:
            chrome.field_error("Tokens above 0 and seconds of 0 or more are needed.")
            return
        with chrome.guard():
            chrome.html(training_view.run_html(run_cost(estimate.time, device, count, Interruptions(waits, back))))


def memory(plan: TrainingPlan, stages: tuple[TrainingMemory, ...], device: Device) -> None:
    """A bar a pipeline rank, against what is usable."""
    note = "at its peak, of what is usable" + ("; the rank that needs most decides" if len(stages) > 1 else "")
    with chrome.panel("Memory by part", note, key="parts"):
        chrome.html(training_view.stages_html(stages, device))


main()
