"""The Studio: an architecture is edited on its own picture, and what it costs stands above it."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from pages.widgets import (
    charts,
    chrome,
    diagram,
    edits,
    figures,
    fit_bars,
    inspector,
    key_numbers,
    layer_strip,
    nearest,
    spec_fields,
    studio_actions,
    studio_numbers,
    terms,
    theme,
    words,
)
from pages.widgets import (
    draft as drafts,
)
from pages.widgets.devices import known_devices
from pages.widgets.draft import Draft, Settings
from pages.widgets.layer_strip import Paint
from pages.widgets.starting import starting_spec
from planner import Fit, PlannerError, fits, hardware
from planner.components.patterns import MaskPattern
from planner.serving import WEIGHT_FORMATS

CONTEXTS = tuple(2**exponent for exponent in range(10, 21))
SHARES = {"parameters": "parameters", "flops": "FLOPs", "cache_bytes": "cache"}
# Shown first; the rest of the catalogue is one click away.
DEVICES = ("here", "laptop_16gb", "rtx4090", "l40s", "h100", "h200", "mi300x")


def main() -> None:
    """Draw the page from the session's draft."""
    began = time.monotonic()
    draft = drafts.current(starting_spec())
    drafts.write_address(draft)
    try:
        draw(draft)
    finally:  # also where the next edit ends this run
        draft.answered(began)


def draw(draft: Draft) -> None:
    """Everything that the page shows."""
    settled = studio_numbers.settle(draft)
    with st.container(key="plumb-sticky", gap="small"):
        head(draft)
        baseline = draft.baseline or draft.spec
        key_numbers.show(
            studio_numbers.key_numbers(draft.spec, baseline, draft.settings),
            key="key-numbers",
            on_open=lambda quantity: terms.ask(quantity),
        )
    error_of_these = st.container(key="studio-nearest")  # filled at the end: the picture does not wait for it
    for said in filter(None, (draft.notice, settled)):
        chrome.error(said)
    with st.container(border=True, key="panel-strip"):
        strip(draft)
    costs = studio_numbers.blocks_of(draft.spec, draft.settings.serving, draft.settings.training)
    left, right = st.columns([1.75, 1], gap="small")
    with left, st.container(border=True, key="panel-diagram", height="stretch", gap="small"):
        stack(draft, costs)
    with right, st.container(border=True, key="panel-inspector", height="stretch", gap="small"):
        inspector.show(draft, costs)
    left, right = st.columns(2, gap="small")
    with left:
        cache_chart(draft)
    with right:
        will_it_run(draft)
    components(draft)
    with error_of_these:
        nearest.line(draft.spec, ("inference_memory", "training_memory", "parameters"), key="studio")
    terms.show_if_asked(draft)
    studio_actions.show_if_opening(draft)


def head(draft: Draft) -> None:
    """Title, state and actions."""
    said = []
    if draft.origin is not None:
        said.append(f"revision {draft.origin.number}")
    changes = draft.unsaved_changes
    if changes:
        said.append("1 change not saved" if changes == 1 else f"{changes} changes not saved")
    elif draft.origin is None:
        said.append("not saved yet")
    said.append(f"baseline: {draft.baseline_label}")
    with chrome.header(draft.spec.name, " · ".join(said), key="studio"):
        studio_actions.show(draft, settings_form)


def settings_form(draft: Draft) -> None:
    """For what context, batch and precision the numbers are."""
    chrome.heading("Serving", "cache, inference memory, will it run")
    serving, training = draft.settings.serving, draft.settings.training

    def apply_serving(changes: Any) -> None:
        draft.settings = Settings(edits.revalued(serving, dict(changes)), training, draft.settings.share)

    def apply_training(changes: Any) -> None:
        draft.settings = Settings(serving, edits.revalued(training, dict(changes)), draft.settings.share)

    def form(name: str, apply: Any) -> spec_fields.Form:
        problems = st.session_state.setdefault(f"settings-problems-{name}", {})
        typed = st.session_state.setdefault(f"settings-typed-{name}", {})
        return spec_fields.Form(f"settings-{name}", apply, problems, typed)

    spec_fields.show(serving, form("serving", apply_serving), ("context_length", "batch_size"))
    for name, options in (("weight_format", WEIGHT_FORMATS), ("cache_dtype", ("bf16", "fp16", "fp8", "int8", "fp32"))):
        label, box = st.columns([1.3, 2.1], gap="small", vertical_alignment="center")
        label.markdown(spec_fields.label_of(name))
        key = f"settings-{name}"
        value = getattr(serving, name)
        box.selectbox(
            name,
            options,
            index=options.index(value),
            key=key,
            label_visibility="collapsed",
            on_change=lambda name=name, key=key: apply_serving({name: st.session_state[key]}),
        )
    chrome.heading("Training", "one device")
    shown = ("sequence_length", "micro_batch_size", "precision", "gradient_dtype", "optimizer", "recompute")
    spec_fields.show(training, form("training", apply_training), shown)
    problem = studio_numbers.overview_of(draft.spec, serving, training)["training_memory"].problem
    if problem is not None and problem.path in shown:
        chrome.field_error(problem)


def strip(draft: Draft) -> None:
    """The strip of layers."""

    def select(span: list[int]) -> None:
        first, last = span
        draft.select("layer", tuple(range(first, min(last, draft.spec.num_layers - 1) + 1)))

    layer_strip.show(
        draft.spec,
        selected=draft.selected,
        paints=paints(),
        key="strip",
        on_select=select,
        painted=draft.painted,
        on_paint=lambda clicks: paint_all(draft, clicks),
    )
    if "paint" in draft.problems:
        chrome.field_error(draft.problems["paint"])


def paints() -> list[Paint]:
    """Every kind of mixer that a selection can be painted with; attention with a window is one of its own."""
    made = []
    for part, union in edits.MIXER_UNIONS.items():
        for kind, component in edits.kinds_of(union).items():
            token = theme.component_token(component.component)
            if "sliding_window" in component.model_fields:
                made.append(Paint(f"{part}:{kind}:full", "Full attention", token))
                made.append(Paint(f"{part}:{kind}:window", "Window", "window"))
            else:
                made.append(Paint(f"{part}:{kind}", paint_label(kind), token))
    return made


def paint_label(kind: str) -> str:
    """A short name for a chip."""
    if kind == "moe":
        return "MoE"
    label = words.kind_label(kind)
    for ending in (" attention", " net", " mixers"):
        label = label.removesuffix(ending)
    return label


def paint_all(draft: Draft, clicks: list[dict[str, Any]]) -> None:
    """Take the clicks on paints that were not taken yet, in their order."""
    for click in clicks:
        if click["number"] > draft.painted:
            paint(draft, click["name"], tuple(index for index in click["layers"] if index < draft.spec.num_layers))
            draft.painted = click["number"]


def paint(draft: Draft, name: str, layers: tuple[int, ...]) -> None:
    """Give layers the mixer that a chip stands for."""
    part, kind, *reach = name.split(":")
    component = edits.kinds_of(edits.MIXER_UNIONS[part])[kind]

    def change(layer: Any) -> Any:
        before = getattr(layer, part)
        made = (
            before if before is not None and before.kind == kind else edits.starting_part(component, draft.spec, before)
        )
        if reach:
            changes: dict[str, int | None] = dict.fromkeys(MaskPattern.__dataclass_fields__)
            if reach == ["window"]:
                changes = (
                    {} if getattr(made, "sliding_window", None) is not None else {**changes, "sliding_window": 4096}
                )
            made = edits.revalued(made, changes)
        return edits.revalued(layer, {part: made})

    inspector.try_edit(draft, edits.change_layers, layers, change, field="paint")


def stack(draft: Draft, costs: Any) -> None:
    """The block diagram, and which share its bars show."""
    with st.container(horizontal=True, vertical_alignment="center", key="diagram-head"):
        chrome.html(
            '<h2 class="pl-heading">Architecture<span>click a block to edit it · bars: share of the</span></h2>'
        )
        st.segmented_control(
            "Bars show the share of",
            list(SHARES),
            default=draft.settings.share,
            required=True,
            format_func=SHARES.__getitem__,
            key="share",
            label_visibility="collapsed",
            on_change=lambda: set_share(draft),
        )

    def select(target: dict[str, Any]) -> None:
        if target["part"] == "model":
            draft.select("model")
            return
        first, last, step = target["layers"]
        draft.select(target["part"], tuple(range(first, min(last, draft.spec.num_layers - 1) + 1, step)))

    diagram.show(
        draft.spec,
        costs,
        draft.settings.share,
        selected=draft.selected,
        part=draft.part,
        key="diagram",
        on_select=select,
    )


def set_share(draft: Draft) -> None:
    """Take the choice of what the bars show."""
    draft.settings = Settings(draft.settings.serving, draft.settings.training, st.session_state["share"])


def cache_chart(draft: Draft) -> None:
    """Cache over context: this design, the baseline, and full attention with a KV head a query head."""
    serving = draft.settings.serving
    sequences = "one sequence" if serving.batch_size == 1 else f"{serving.batch_size:,} sequences"
    with chrome.panel("Cache over context", f"{serving.cache_dtype}, {sequences}", key="cache", height="stretch"):
        reference = studio_numbers.reference_of(draft.spec)
        designs = [("this design", draft.spec, "ink", "solid", 2.6)]
        if draft.baseline is not None and draft.baseline != draft.spec:
            designs.append(("baseline", draft.baseline, "soft", "dot", 1.8))
        if reference is not None and reference != draft.spec:
            designs.append(("MHA, all full", reference, "faint", "dash", 1.6))
        curves = []
        for label, spec, colour, dash, width in reversed(designs):
            held = studio_numbers.cache_curve(spec, CONTEXTS, serving)
            exact = [f"{figures.memory(size)} ({size:,} bytes)" for size in held]
            if any(held):
                curves.append(charts.Curve(label, CONTEXTS, charts.gibibytes(held), colour, dash, width, exact))
        if not curves:
            chrome.empty_state("Nothing is kept", "This design has no cache.", key="no-cache")
            return
        figure = charts.lines(curves, x=charts.Axis("context, tokens", log=2), y=charts.Axis("GiB", log=2))
        charts.show(figure, key="cache-over-context", alt="Cache in GiB over context length")


def will_it_run(draft: Draft) -> None:
    """What inference needs, against the usable memory of devices."""
    serving = draft.settings.serving
    note = f"{serving.weight_format} weights, {figures.context(serving.context_length)} context · of what is usable"
    with chrome.panel("Will it run", note, key="fit", height="stretch"):
        try:
            verdicts = device_fits(draft, st.session_state.get("all-devices", False))
        except PlannerError as error:
            chrome.error(error)
            return
        chrome.html(fit_bars.html_of(verdicts))
        st.toggle("All devices of the catalogue", key="all-devices")


def device_fits(draft: Draft, everything: bool) -> list[Fit]:
    """The verdict for each device that is shown, this machine first."""
    serving = draft.settings.serving
    known = [device.id for device in known_devices()]
    names = ["here", *known] if everything else DEVICES
    return [fits(draft.spec, serving, hardware(name)) for name in names if name in known or name == "here"]


def components(draft: Draft) -> None:
    """Parameters by component, as bars."""
    counts = studio_numbers.size_of(draft.spec).by_component
    with chrome.panel("Parameters by component", "counted", key="components"):
        entries = [
            charts.Bar(
                words.kind_label(name),
                count,
                theme.component_token(name),
                str(figures.count(count)),
                figures.count(count).exact,
            )
            for name, count in sorted(counts.items(), key=lambda item: -item[1])
        ]
        charts.show(
            charts.bars(entries, x=charts.Axis("parameters")), key="by-component", alt="Parameters by component"
        )


main()
