"""Sensitivity: which setting changes a number, and how far one can be taken before it no longer fits."""

from __future__ import annotations

from functools import lru_cache

import streamlit as st

from pages.widgets import charts, chrome, design_source, nearest, sensitivity_view
from pages.widgets.address import View
from pages.widgets.devices import known_devices
from pages.widgets.draft import Draft
from pages.widgets.plan_form import plan_fields
from planner import ArchitectureSpec, Device, PlannerError, ServingPlan, TrainingPlan, hardware
from planner.plans import Plan
from planner.sensitivity import (
    OUTPUTS,
    PLANS,
    Tornado,
    largest,
    numeric_fields,
    output_of,
    smallest_device,
    tornado,
)

SHOWN = {"12": "The first 12", "30": "The first 30", "": "All"}
DEFAULTS = {"output": "inference_memory", "shown": "12", "field": "", "device": "h100"}


def main() -> None:
    """Draw the page from the address."""
    draft = design_source.from_address("sensitivity")
    view = View("sensitivity", DEFAULTS, kept=(*design_source.PARAMETERS, *_plan_names()))
    known = {device.id: device for device in known_devices()}
    view.choice("output", OUTPUTS)
    view.choice("shown", SHOWN)
    view.choice("device", known)
    chrome.header("Sensitivity", f"{draft.spec.name}: which setting changes the result")
    if draft.notice:
        chrome.error(draft.notice)
    with st.container(border=True, key="panel-sensitivity", gap="small"):
        row = st.columns([1.6, 1.4, 1], gap="small")
        with row[0]:
            design_source.choice(view, draft)
        row[1].selectbox("Number", list(OUTPUTS), key=view.key("output"), format_func=lambda name: OUTPUTS[name].label)
        row[2].selectbox("Fields", list(SHOWN), key=view.key("shown"), format_func=SHOWN.__getitem__)
        plan, changed = the_plan(view)
    if plan is not None or PLANS[output_of(view["output"]).plan] is None:
        swings(view, draft, plan)
    if plan is not None:
        limits(view, draft, plan, known)
    view.write(**{name: changed.get(name) for name in _plan_names()})


def _plan_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys([*ServingPlan.model_fields, *TrainingPlan.model_fields]))


def the_plan(view: View) -> tuple[Plan | None, dict[str, str]]:
    """The plan that the number is read from, and what of it is not the default."""
    plan_class = PLANS[output_of(view["output"]).plan]
    if plan_class is None:
        return None, {}
    asked = {name: value for name, value in st.query_params.items() if name in plan_class.model_fields}
    # A link that names hardware wins; else the device below, without which no time is known.
    given = {"hardware": view["device"], **asked}
    with st.expander("The plan that it is read from"):
        plan = plan_fields(plan_class, f"sensitivity-{plan_class.__name__}", columns=4, given=given)
    if plan is None:
        return None, asked
    default = plan_class()
    changed = {
        name: str(value)
        for name, value in plan
        if value is not None and value != getattr(default, name) and (name, value) != ("hardware", view["device"])
    }
    return plan, changed


@lru_cache(maxsize=32)
def _tornado(spec: ArchitectureSpec, output: str, plan: Plan | None) -> Tornado:
    return tornado(spec, output, plan)


def swings(view: View, draft: Draft, plan: Plan | None) -> None:
    """Each field's bar, the longest on top."""
    with chrome.panel("What each field does", "halved and doubled, turned, or every other choice", key="tornado"):
        try:
            found = _tornado(draft.spec, view["output"], plan)
        except PlannerError as reason:
            chrome.error(reason)
            return
        count = int(view["shown"]) if view["shown"] else len(found.swings)
        label = OUTPUTS[view["output"]].label
        chrome.note(f"{label}: {sensitivity_view.text(found.base, found.unit)} as it is.")
        figure = sensitivity_view.figure(found, count)
        charts.show(figure, key=f"tornado-{view['output']}", alt=f"What each field does to {label.lower()}")
        if len(found.swings) > count:
            chrome.note(f"{len(found.swings) - count:,} fields more do less than these.")
        device = getattr(plan, "hardware", None)
        nearest.line(draft.spec, (view["output"],), hardware(device).name if device else None, key="sensitivity")
        with st.expander("Fields that change nothing of it, and those that cannot be changed alone"):
            chrome.html(sensitivity_view.rest_html(found))


def limits(view: View, draft: Draft, plan: Plan, known: dict[str, Device]) -> None:
    """How far a field goes on a device, and the smallest device for the plan as it is."""
    assert isinstance(plan, ServingPlan | TrainingPlan)
    fields = numeric_fields(draft.spec, plan)
    first = "plan.context_length" if isinstance(plan, ServingPlan) else "plan.micro_batch_size"
    view.defaults["field"] = first
    view.choice("field", fields)
    with chrome.panel("How far", "exact: the next possible value no longer fits", key="limits"):
        row = st.columns([1.3, 1.3, 2.4], gap="small", vertical_alignment="bottom")
        row[0].selectbox("The greatest", fields, key=view.key("field"), format_func=sensitivity_view.field_label)
        row[1].selectbox("that fits", list(known), key=view.key("device"), format_func=lambda name: known[name].name)
        with chrome.guard():
            found = largest(draft.spec, view["field"], plan, device=known[view["device"]])
            with row[2]:
                chrome.html(sensitivity_view.limit_html(found, fields[view["field"]]))
            smallest = smallest_device(draft.spec, plan)
            chrome.note(
                "The plan as it is fits no single device of the catalogue."
                if smallest is None
                else f"The smallest device that holds the plan as it is: {smallest.name}."
            )
            memory = "inference_memory" if isinstance(plan, ServingPlan) else "training_memory"
            nearest.line(draft.spec, (memory,), known[view["device"]].name, key="limits")


main()
