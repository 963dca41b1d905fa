"""Serving plan: memory of a device by part, latency against throughput, and what bounds each operator."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import streamlit as st

from pages.widgets import (
    charts,
    chrome,
    design_source,
    devices,
    figures,
    fit_bars,
    key_numbers,
    nearest,
    serving_view,
    terms,
)
from pages.widgets.address import View
from pages.widgets.draft import Draft
from pages.widgets.key_numbers import KeyNumber
from pages.widgets.plan_form import plan_fields
from planner import ArchitectureSpec, PlannerError, ServingPlan, fits, hardware
from planner.cache import formats_for
from planner.serving import WEIGHT_FORMATS, InferenceEstimate, estimate_inference
from planner.serving.times import RooflinePoint, roofline

SECTIONS = {
    "": ("weight_format", "cache_dtype", "context_length", "output_length", "batch_size", "engine"),
    "Division over devices, and drafts": (
        "tensor_parallel", "expert_parallel", "attention_data_parallel", "pipeline_parallel", "offload_layers",
        "speculative",
    ),
}  # fmt: skip
FIELDS = tuple(name for name in ServingPlan.model_fields if name != "hardware")
PHASES = {"decode": "Decoding", "prefill": "Reading the prompt"}
TERMS = {
    "memory": "inference_memory", "requests": "inference_memory", "context": "inference_memory",
    "first": "time_to_first_token", "token": "inter_token_latency", "speed": "inter_token_latency",
    "energy": "inter_token_latency",
}  # fmt: skip
"""What a key number opens: limits are read from the memory, rates and energy from the time between tokens."""


def main() -> None:
    """Draw the page from the address."""
    draft = design_source.from_address("serving_plan")
    view = View("serving_plan", {"hardware": "h100", "phase": "decode"}, kept=(*design_source.PARAMETERS, *FIELDS))
    known = {device.id: device for device in devices.known_devices(with_here=True)}
    view.choice("hardware", known)
    view.choice("phase", PHASES)
    actions = chrome.header("Serving plan", draft.spec.name)
    with actions:
        chrome.link("sensitivity", "Which setting matters", **design_source.studio_query(draft))
    if draft.notice:
        chrome.error(draft.notice)
    with st.container(border=True, key="panel-serving-plan", gap="small"):
        row = st.columns([1.6, 1.4, 2], gap="small")
        with row[0]:
            design_source.choice(view, draft)
        row[1].selectbox("Device", list(known), key=view.key("hardware"), format_func=lambda name: known[name].name)
        plan = plan_fields(
            ServingPlan, "serving-plan", columns=6, given=_asked(draft), sections=SECTIONS,
            fixed={"hardware": view["hardware"]},
            choices={"weight_format": WEIGHT_FORMATS, "cache_dtype": formats_for(draft.spec)},
        )  # fmt: skip
    if plan is None:
        return
    changed = {
        name: str(value)
        for name, value in plan
        if name in FIELDS and value is not None and value != ServingPlan.model_fields[name].get_default()
    }
    try:
        estimate, batches, points = _estimated(draft.spec, plan)
    except PlannerError as reason:
        view.write(**{name: changed.get(name) for name in FIELDS})
        chrome.error(reason)
        return
    numbers(plan, estimate)
    timed = ("inter_token_latency", "time_to_first_token") if batches else ()
    nearest.line(draft.spec, ("inference_memory", *timed), hardware(view["hardware"]).name, key="serving")
    fit = fits(draft.spec, plan, hardware(view["hardware"]))
    with chrome.panel("Memory of each device by part", "of what is usable", key="serving-parts"):
        chrome.html(fit_bars.html_of([fit]))
    times(view, plan, estimate, batches, points)
    view.write(**{name: changed.get(name) for name in FIELDS})
    terms.show_if_asked(draft, plan)


def _asked(draft: Draft) -> dict[str, Any]:
    """What the address says of the plan, else what the design is looked at with."""
    serving = draft.settings.serving
    own = {name: getattr(serving, name) for name in ("weight_format", "cache_dtype", "context_length", "batch_size")}
    asked: dict[str, Any] = {name: value for name, value in st.query_params.items() if name in FIELDS}
    for name, value in asked.items():
        if ServingPlan.model_fields[name].annotation is bool:
            asked[name] = value == "True"
    return own | asked


@lru_cache(maxsize=64)
def _estimated(
    spec: ArchitectureSpec, plan: ServingPlan
) -> tuple[InferenceEstimate, list[tuple[int, InferenceEstimate]], list[RooflinePoint]]:
    """The plan as it is, the same with other batches as far as they fit, and its operators under the roof."""
    estimate = estimate_inference(spec, plan)
    found = []
    if estimate.inter_token_latency_seconds is not None:
        most = max(estimate.max_batch_size or 1, plan.batch_size)
        sizes = sorted({size for size in (2**exponent for exponent in range(13)) if size <= most} | {plan.batch_size})
        for size in sizes:
            try:
                found.append((size, estimate_inference(spec, plan.model_copy(update={"batch_size": size}))))
            except PlannerError:  # a batch that does not divide over the devices
                continue
    return estimate, found, roofline(spec, plan) if found else []


def numbers(plan: ServingPlan, estimate: InferenceEstimate) -> None:
    """The row of key numbers."""
    device = hardware(plan.hardware or "")
    needed, usable = figures.memory(estimate.memory.total_bytes), figures.memory(device.usable_memory_bytes)
    fit = estimate.memory.total_bytes <= device.usable_memory_bytes
    row = [
        KeyNumber(
            "memory", "Memory a device", needed.value, needed.unit, needed.exact, "modelled",
            change="fits" if fit else "does not fit", direction="good" if fit else "bad", note=f"of {usable} usable",
        )
    ]  # fmt: skip
    row += serving_view.time_numbers(estimate)
    most, longest = estimate.max_batch_size, estimate.max_context_length
    row.append(
        KeyNumber(
            "requests", "Most requests", "–" if most is None else f"{most:,}", status="modelled",
            note=f"of {figures.context(plan.context_length)} tokens",
        )
    )  # fmt: skip
    row.append(
        KeyNumber(
            "context", "Longest context", "no bound" if longest is None else f"{longest:,}", status="modelled",
            note=estimate.max_context_note,
        )
    )  # fmt: skip
    key_numbers.show(row, key="serving-numbers", on_open=lambda name: terms.ask(TERMS[name]), opening=TERMS)
    chrome.note(estimate.time_note)


def times(
    view: View,
    plan: ServingPlan,
    estimate: InferenceEstimate,
    batches: list[tuple[int, InferenceEstimate]],
    points: list[RooflinePoint],
) -> None:
    """Latency against throughput, what a pass consists of, and the roofline."""
    if not batches:
        return
    left, right = st.columns(2, gap="small")
    with left, chrome.panel("Latency against throughput", "one point a batch, as far as it fits", key="latency"):
        charts.show(
            serving_view.latency(batches, plan.batch_size),
            key="serving-latency",
            alt="Milliseconds between tokens over tokens a second, for each batch",
        )
    with right, chrome.panel("What a pass consists of", "seconds by what they go to", key="pass"):
        for name, parts in (("decode", estimate.decode_parts), ("prefill", estimate.prefill_parts)):
            chrome.heading(PHASES[name], str(figures.duration(sum(parts.values()))))
            charts.show(serving_view.parts(parts), key=f"serving-{name}", alt=f"Seconds of {PHASES[name].lower()}")
            if parts:
                quantity = "inter_token_latency" if name == "decode" else "time_to_first_token"
                terms.open_button(quantity, f"open-{name}")
    with st.container(border=True, key="panel-serving-roofline", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", key="roofline-head"):
            chrome.heading("Roofline", "each operator under what the device promises")
            st.segmented_control(
                "Phase", list(PHASES), key=view.key("phase"), format_func=PHASES.__getitem__, required=True,
                label_visibility="collapsed",
            )  # fmt: skip
        charts.show(
            serving_view.roof([point for point in points if point.phase == view["phase"]]),
            key=f"serving-roofline-{view['phase']}",
            alt="FLOPs a second over FLOPs a byte of each operator, under the device's roof",
        )


main()
