"""Sizing and fit: where a design's parameters, FLOPs, cache and time lie, and which devices hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import streamlit as st

from pages.widgets import (
    charts,
    checks,
    chrome,
    design_source,
    figures,
    fit_bars,
    key_numbers,
    layer_strip,
    nearest,
    sizing_plots,
    sizing_source,
    sizing_tables,
    studio_numbers,
    terms,
    words,
)
from pages.widgets.address import View
from pages.widgets.devices import known_devices
from pages.widgets.draft import Draft
from planner import ArchitectureSpec, Device, Fit, PlannerError, crossover, explain, fits, grow, hardware
from planner.curves import crossover_curve, flops_curve
from planner.distribution import by_component, by_layer, by_tensor
from planner.explain import QUANTITIES, SERVING_QUANTITIES
from planner.intensity import bounds, ridge_point
from planner.plans import Plan, ServingPlan, TrainingPlan
from planner.serving import planned_cache
from planner.serving.operators import PHASES, merged, operators

LENGTHS = tuple(2**exponent for exponent in range(10, 21))
FACTORS = tuple(2 ** (step / 2) for step in range(-6, 9))
MEASURES = {"parameters": "Parameters", "flops": "FLOPs", "cache_bytes": "Cache"}
PHASE_LABELS = {"decode": "Decoding", "prefill": "Reading a prompt, or training"}
DIRECTIONS = {"width": "Wider", "depth": "Deeper"}
GROWN = {"parameters": "Parameters", "flops": "FLOPs"}
RUNS = {"serving": "Serving", "training": "Training step"}
FEW_DEVICES = ("here", "laptop_16gb", "rtx4090", "l40s", "h100", "h200", "mi300x")
COMPUTE_TYPES = ("bf16", "fp16", "fp32")


def main() -> None:
    """Draw the page from the address."""
    draft = design_source.from_address("sizing")
    view = View("sizing", defaults(draft), kept=design_source.PARAMETERS)
    known = {device.id: device for device in known_devices()}
    choices: dict[str, Iterable[str]] = {
        "layers": MEASURES, "phase": PHASE_LABELS, "grow": DIRECTIONS, "share": GROWN, "run": RUNS,
        "device": known, "derive": ("", *QUANTITIES), "all": ("", "1"),
    }  # fmt: skip
    for name, options in choices.items():
        view.choice(name, options)
    with st.container(key="plumb-sticky", gap="small"):
        actions = chrome.header("Sizing and fit", draft.spec.name, key="sizing")
        sizing_source.take_settings(view, draft)
        with actions:
            chrome.link("studio", "Open in the Studio", **design_source.studio_query(draft))
        numbers = studio_numbers.key_numbers(draft.spec, draft.baseline or draft.spec, draft.settings)
        if draft.baseline in (None, draft.spec):  # nothing to be compared with
            numbers[0] = replace(numbers[0], note="counted")
        key_numbers.show(
            numbers,
            key="sizing-numbers",
            on_open=terms.ask,
        )
    error_of_these = st.container(key="sizing-nearest")  # filled at the end: the plots do not wait for it
    if draft.notice:
        chrome.error(draft.notice)
    sizing_source.form(view, draft)
    spec, serving, training = draft.spec, draft.settings.serving, draft.settings.training
    parameters(spec)
    layers(view, spec, serving, training)
    left, right = st.columns(2, gap="small")
    with left:
        flops_over_length(spec)
    with right:
        cache_over_context(spec, serving)
    left, right = st.columns(2, gap="small")
    with left:
        growing(view, spec, training)
    with right:
        crossing(spec)
    roofline(view, spec, serving, known)
    fitting(view, spec, serving, training, known)
    derivation(view, draft)
    with error_of_these:
        nearest.line(spec, ("inference_memory", "training_memory", "parameters"), key="sizing")
    view.write()
    terms.show_if_asked(draft)


def defaults(draft: Draft) -> dict[str, str]:
    """What the address leaves out: the draft's own settings, and the first choice of everything else."""
    serving, training = draft.settings.serving, draft.settings.training
    return {
        "context": str(serving.context_length),
        "batch": str(serving.batch_size),
        "weights": serving.weight_format,
        "cache": serving.cache_dtype,
        "block": str(serving.cache_block_size),
        "pages": serving.windowed_pages,
        "length": str(training.sequence_length),
        "layers": "parameters",
        "phase": "decode",
        "device": "h100",
        "grow": "width",
        "share": "parameters",
        "run": "serving",
        "all": "",
        "derive": "",
    }


# --- what it consists of ---


@lru_cache(maxsize=64)
def tensors_of(spec: ArchitectureSpec) -> Any:
    """Kinds of tensors, once a design."""
    return by_tensor(spec)


def parameters(spec: ArchitectureSpec) -> None:
    """A treemap of the tensors, and the components as a table with what is active of each."""
    left, right = st.columns([1.35, 1], gap="small")
    with (
        left,
        chrome.panel("Parameters by tensor", "an area a share, over all layers", key="treemap", height="stretch"),
    ):
        charts.show(sizing_plots.treemap(tensors_of(spec)), key="chart-treemap", alt="Share of each kind of tensor")
    with right, chrome.panel("Parameters by component", "exact on hover", key="by-component", height="stretch"):
        chrome.html(sizing_tables.components_html(by_component(spec)))
        chrome.note(
            "Active is what one token touches: of routed experts the chosen ones, of everything else all. The "
            "embedding counts whole, though a token looks up one row."
        )


def segments(view: View, name: str, label: str, options: dict[str, str]) -> None:
    """A choice of a few, in the address."""
    st.segmented_control(
        label, list(options), key=view.key(name), format_func=options.__getitem__, required=True,
        label_visibility="collapsed",
    )  # fmt: skip


def layers(view: View, spec: ArchitectureSpec, serving: ServingPlan, training: TrainingPlan) -> None:
    """The strip, and beneath it what each layer has of the chosen measure."""
    with st.container(border=True, key="panel-by-layer", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", key="by-layer-head"):
            chrome.heading("By layer", "sequence mixer below, channel mixer above it")
            segments(view, "layers", "What the bars show", MEASURES)
        measure = view["layers"]
        with chrome.guard():
            costs = by_layer(spec, measure, serving, training)
            if not any(cost.sequence_mixer or cost.channel_mixer for cost in costs):
                chrome.empty_state("Nothing is kept", "This design has no cache.", key="no-layer-cache")
                return
            charts.show(
                sizing_plots.layers(spec, costs, measure),
                key=f"by-layer-{measure}",
                alt=f"{MEASURES[measure]} by layer",
            )
            chrome.html(
                f'<div style="padding-left:{sizing_plots.BAR_INDENT}px">{layer_strip.static(spec, height=26)}</div>'
            )


# --- over the length ---


def ends(spec: ArchitectureSpec) -> list[charts.Mark]:
    """Where learned positions end: no sequence can be longer."""
    last = getattr(spec.positions, "num_positions", None)
    return [charts.Mark(last, "positions end")] if last is not None and LENGTHS[0] <= last <= LENGTHS[-1] else []


def flops_over_length(spec: ArchitectureSpec) -> None:
    """Forward, needed and training FLOPs a token over the length of the sequence."""
    with chrome.panel("FLOPs a token", "over the length of the sequence", key="flops-over-length", height="stretch"):
        curve = flops_curve(spec, LENGTHS)
        drawn = [
            sizing_plots.flops_line("training", LENGTHS, curve.training, "soft", "dash"),
            sizing_plots.flops_line("forward, counted", LENGTHS, curve.forward, "ink", "solid"),
            sizing_plots.flops_line("forward, needed", LENGTHS, curve.needed, "accent", "dot"),
        ]
        charts.show(
            charts.lines(
                drawn, x=charts.Axis("tokens", log=2), y=sizing_plots.flops_axis(drawn), height=270, marks=ends(spec)
            ),
            key="chart-flops",
            alt="FLOPs a token over the length of the sequence",
        )
        chrome.note("Counted multiplies the whole square of scores; needed leaves out what masks and windows hide.")


def cache_over_context(spec: ArchitectureSpec, serving: ServingPlan) -> None:
    """Cache over context, beside the same design with a KV head a query head and no windows."""
    sequences = "one sequence" if serving.batch_size == 1 else f"{serving.batch_size:,} sequences"
    note = f"{serving.cache_dtype}, {sequences}"
    with chrome.panel("Cache over context", note, key="cache-over-context", height="stretch"):
        reference = studio_numbers.reference_of(spec)
        own = studio_numbers.cache_curve(spec, LENGTHS, serving)
        designs = [("this design", spec, "ink", "solid", 2.4)]
        if reference is not None and studio_numbers.cache_curve(reference, LENGTHS, serving) != own:
            designs.insert(0, ("MHA, all full", reference, "faint", "dash", 1.6))
        curves = []
        for label, each, colour, dash, width in designs:
            held = studio_numbers.cache_curve(each, LENGTHS, serving)
            exact = [f"{figures.memory(size)} ({size:,} bytes)" for size in held]
            if any(held):
                curves.append(charts.Curve(label, LENGTHS, charts.gibibytes(held), colour, dash, width, exact))
        if not curves:
            chrome.empty_state("Nothing is kept", "This design has no cache.", key="no-cache")
            return
        figure = charts.lines(
            curves, x=charts.Axis("context, tokens", log=2), y=charts.Axis("GiB", log=2), height=270, marks=ends(spec)
        )
        charts.show(figure, key="chart-cache", alt="Cache in GiB over context length")


# --- as it grows ---


def growing(view: View, spec: ArchitectureSpec, training: TrainingPlan) -> None:
    """Shares of the components as the design grows."""
    with st.container(border=True, key="panel-growing", height="stretch", gap="small"):
        chrome.heading("Shares as it grows", "an eighth to sixteen times as wide or deep")
        with st.container(horizontal=True, vertical_alignment="center", key="growing-head"):
            segments(view, "grow", "Grow", DIRECTIONS)
            segments(view, "share", "Share of", GROWN)
        by, measure = view["grow"], view["share"]
        with chrome.guard():
            found = grow(spec, FACTORS, by, measure, training.sequence_length)  # type: ignore[arg-type]
            charts.show(sizing_plots.growth(found), key=f"growth-{by}-{measure}", alt="Shares as the model grows")
        chrome.note(
            "Wider multiplies the stream, the heads and the inner widths; heads keep their size, and vocabulary, "
            "windows, states and the number of experts stay."
            if by == "width"
            else "Deeper multiplies the layers; embedding and head stay."
        )


def crossing(spec: ArchitectureSpec) -> None:
    """Where attention between tokens comes to cost what the channel mixers do."""
    with chrome.panel(
        "Attention against the MLPs", "FLOPs a token, without projections", key="cross", height="stretch"
    ):
        found = crossover(spec)
        if found.counted_tokens is None:
            chrome.empty_state(
                "They never meet", "One of the two is missing: no layer attends, or none has a channel mixer.",
                key="no-crossover",
            )  # fmt: skip
            return
        curve = crossover_curve(spec, LENGTHS)
        drawn = [
            sizing_plots.flops_line("MLPs", LENGTHS, [curve.channel] * len(LENGTHS), "mlp", "solid"),
            sizing_plots.flops_line("attention, counted", LENGTHS, curve.attention_counted, "attention", "solid"),
            sizing_plots.flops_line("attention, needed", LENGTHS, curve.attention_needed, "attention", "dot"),
        ]
        marks = [charts.Mark(length, "", "soft") for length in (found.counted_tokens, found.needed_tokens)
                 if length is not None and LENGTHS[0] < length < LENGTHS[-1]]  # fmt: skip
        figure = charts.lines(
            drawn, x=charts.Axis("tokens", log=2), y=sizing_plots.flops_axis(drawn), height=270, marks=marks
        )
        charts.show(figure, key="chart-crossover", alt="FLOPs a token of attention and MLPs over the length")
        needed = "never" if found.needed_tokens is None else f"from {found.needed_tokens:,} tokens on"
        chrome.html(
            '<table class="pl-table">'
            f'<tr><td>Scores and values cost as much, counted</td><td class="fig">'
            f"from {found.counted_tokens:,.0f} tokens on</td></tr>"
            f'<tr><td>…and needed, under masks and windows</td><td class="fig">{needed}</td></tr></table>'
        )


# --- on a device ---


def roofline(view: View, spec: ArchitectureSpec, serving: ServingPlan, known: dict[str, Device]) -> None:
    """Each operator's FLOPs a byte against the ridge point of a device."""
    devices = {identifier: device.name for identifier, device in known.items()}
    with st.container(border=True, key="panel-intensity", gap="small"):
        sequences = "one sequence" if serving.batch_size == 1 else f"{serving.batch_size:,} sequences"
        chrome.heading(
            "Arithmetic intensity by operator",
            f"{sequences} of {figures.context(serving.context_length)} tokens, {serving.weight_format} weights · "
            "left of the line memory decides, right of it arithmetic",
        )
        with st.container(horizontal=True, vertical_alignment="center", key="intensity-head"):
            segments(view, "phase", "Phase", {phase: PHASE_LABELS[phase] for phase in reversed(PHASES)})
            st.selectbox(
                "Device", list(devices), key=view.key("device"), format_func=devices.__getitem__, width=260,
                label_visibility="collapsed",
            )  # fmt: skip
        device = hardware(view["device"])
        dtype = next((name for name in COMPUTE_TYPES if name in device.peak_flops), COMPUTE_TYPES[0])
        with chrome.guard():
            found = merged(operators(spec, serving, "decode" if view["phase"] == "decode" else "prefill"))
            held = bounds(found, device, dtype)
            ridge = ridge_point(device, dtype)
            left, right = st.columns([1.1, 1], gap="medium")
            with left:
                figure = sizing_plots.intensity(found, held, ridge, dtype)
                charts.show(figure, key=f"intensity-{view['phase']}-{device.id}", alt="FLOPs a byte of each operator")
            with right:
                chrome.html(sizing_tables.operators_html(found, held))
            if ridge is None:
                chrome.note(f"No bandwidth or no {dtype} rate of {device.name} is published, so it has no ridge here.")
            chrome.note(
                "An ideal kernel moves weights, inputs, outputs and cache once each. The area of a point is its share "
                "of the time at the device's promised rates; what is elementwise has no point, and an open one is "
                "approximated."
            )


def fitting(
    view: View, spec: ArchitectureSpec, serving: ServingPlan, training: TrainingPlan, known: dict[str, Device]
) -> None:
    """What is needed, against the usable memory of devices."""
    with st.container(border=True, key="panel-fit", gap="small"):
        training_run = view["run"] == "training"
        said = (
            f"one sequence of {figures.context(training.sequence_length)}, {words.setting(training.precision)}, "
            f"{words.setting(training.optimizer)}"
            if training_run
            else f"{serving.weight_format} weights, {figures.context(serving.context_length)} context"
        )
        with st.container(horizontal=True, vertical_alignment="center", key="fit-head"):
            chrome.heading("Will it run", f"{said} · one device, of what is usable")
            segments(view, "run", "Way of running", RUNS)
        with chrome.guard():
            plan: ServingPlan | TrainingPlan = training if training_run else serving
            chrome.html(fit_bars.html_of(device_fits(spec, plan, bool(view["all"]), known)))
            if not training_run:
                sizing_source.blocks_form(view)
                chrome.html(sizing_tables.cache_html(planned_cache(spec, serving, *shape_of(serving))))
        if st.toggle("All devices of the catalogue", value=bool(view["all"]), key="sizing-all-devices") != bool(
            view["all"]
        ):
            view.set("all", "" if view["all"] else "1")
            view.go()
            st.rerun()


def shape_of(serving: ServingPlan) -> tuple[int, int]:
    """Context and batch of a plan."""
    return serving.context_length, serving.batch_size


def device_fits(
    spec: ArchitectureSpec, plan: ServingPlan | TrainingPlan, everything: bool, known: Iterable[str]
) -> list[Fit]:
    """The verdict for each device that is shown, this machine first."""
    names = ["here", *known] if everything else [name for name in FEW_DEVICES if name == "here" or name in known]
    found = []
    for name in names:
        try:
            found.append(fits(spec, plan, hardware(name)))
        except PlannerError:
            if name != "here":  # a machine that cannot be measured has no bar; a plan that is not modelled has none
                raise
    return found


# --- where each number comes from ---


@lru_cache(maxsize=64)
def explained(spec: ArchitectureSpec, quantity: str, plan: Plan) -> Any:
    """The terms of a number, once a design; SymPy is loaded here and nowhere else on this page."""
    return explain(spec, quantity, plan)


def derivation(view: View, draft: Draft) -> None:
    """A number opened into its terms, each with its formula, and what was measured of it."""
    spec, settings = draft.spec, draft.settings
    with chrome.panel("Where a number comes from", "every term with the formula that computed it", key="derivation"):
        labels = {"": "Choose a number", **{name: name.replace("_", " ").capitalize() for name in QUANTITIES}}
        st.selectbox(
            "Number",
            list(labels),
            key=view.key("derive"),
            format_func=labels.__getitem__,
            label_visibility="collapsed",
            width=320,
        )
        quantity = view["derive"]
        if not quantity:
            chrome.note("Any of the numbers above opens into its terms too: click it.")
            return
        with chrome.guard():
            plan: Plan = settings.serving if quantity in SERVING_QUANTITIES else settings.training
            terms.show(explained(spec, quantity, plan), spec, checks.of_design(spec).get(quantity, ()))


main()
