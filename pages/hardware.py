"""Hardware and cost: the devices that are known, and whether to own them, rent them or buy tokens instead."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.widgets import address, chrome, cost_view, device_tables, nearest
from pages.widgets.address import View
from pages.widgets.devices import known_devices
from pages.widgets.plan_form import plan_fields
from planner import Device, PlannerError
from planner.cost import CostPlan, compare_costs, tables
from planner.hardware import DeviceRow, add_device, own_rows, remove_device
from planner.presets import preset, preset_ids

KINDS = {"": "Every kind", "gpu": "GPUs and accelerators", "tpu": "TPUs", "unified": "Shared memory", "cpu": "CPUs"}
DEFAULTS = {
    "kind": "",
    "q": "",
    "device": "rtx4090",
    "design": "llama-3-8b",
    "format": "fp8",
    "batch": "16",
    "context": "4096",
    "api": "llama_3_1_8b",
}
FORMATS = ("bf16", "fp8", "int8", "int4")
BATCHES = tuple(str(2**exponent) for exponent in range(9))
CONTEXTS = tuple(str(2**exponent) for exponent in range(10, 18))
ASSUMED = tuple(name for name in CostPlan.model_fields if name != "device")
OF_A_CHOICE = (
    "tokens_per_second", "device_usd", "device_watts", "rented_usd_per_device_hour", "input_usd_per_million",
    "output_usd_per_million",
)  # fmt: skip
"""Assumptions that belong to what is chosen above them: another choice brings its own."""


def main() -> None:
    """Draw the page from the address."""
    view = View("hardware", DEFAULTS, kept=ASSUMED)
    known = {device.id: device for device in known_devices()}
    chrome.header("Hardware and cost", f"{len(known):,} devices, each number with its source")
    view.choice("device", known)
    view.choice("kind", KINDS)
    with chrome.panel("Own, rent, or buy tokens", "what a day costs, over demand", key="cost"):
        chosen = costs(view, known)
    catalogue(view, list(known.values()))
    adding()
    view.write(**{name: chosen.get(name) for name in ASSUMED})


def costs(view: View, known: dict[str, Device]) -> dict[str, str]:
    """The comparison; gives what was changed of its assumptions, for the address."""
    designs = {"": "A rate of my own", **{name: preset(name).title for name in preset_ids()}}
    apis = {"": "No tokens to buy", **{name: api.name for name, api in tables().apis.items()}}
    for name, options in (
        ("design", designs), ("api", apis), ("format", FORMATS), ("batch", BATCHES), ("context", CONTEXTS),
    ):  # fmt: skip
        view.choice(name, options)
    row = st.columns([1.4, 1.5, 0.8, 0.8, 0.8, 1.4], gap="small")
    row[0].selectbox("Device", list(known), key=view.key("device"), format_func=lambda name: known[name].name)
    row[1].selectbox("Serves", list(designs), key=view.key("design"), format_func=designs.__getitem__)
    unused = not view["design"]
    row[2].selectbox("Weights", FORMATS, key=view.key("format"), disabled=unused)
    row[3].selectbox("Sequences at once", BATCHES, key=view.key("batch"), disabled=unused)
    row[4].selectbox("Context", CONTEXTS, key=view.key("context"), disabled=unused)
    row[5].selectbox("Tokens from", list(apis), key=view.key("api"), format_func=apis.__getitem__)
    rate, ground = cost_view.rate_of(view["design"], view["device"], view["format"], view["batch"], view["context"])
    given: dict[str, Any] = {}
    if rate is not None:
        given["tokens_per_second"] = rate
    if view["api"]:
        api = tables().apis[view["api"]]
        given |= {"input_usd_per_million": api.input_usd, "output_usd_per_million": api.output_usd}
    # What is chosen above fills some fields: another choice gives them keys of their own, and so their new values.
    form = "-".join(
        ("cost", view["device"], view["design"], view["format"], view["batch"], view["context"], view["api"])
    )
    left = () if st.session_state.get("cost-form", form) == form else OF_A_CHOICE
    st.session_state["cost-form"] = form
    asked = {name: text for name, text in address.asked("hardware").items() if name in ASSUMED and name not in left}
    with st.expander("Assumptions", expanded=rate is None and bool(view["design"])):
        plan = plan_fields(
            CostPlan, form, columns=4, given=given | asked, fixed={"device": view["device"]},
            notes=cost_view.field_notes(view["device"]),
        )  # fmt: skip
    chrome.note(ground)
    if rate is not None:
        names = ("tokens_per_second", "inference_memory")
        nearest.line(preset(view["design"]).spec, names, known[view["device"]].name, key="hardware")
        chrome.note("No bill was measured: what owning and renting cost a token is off by as much as the rate.")
    if plan is None:
        return {}
    try:
        found = compare_costs(plan)
    except PlannerError as reason:
        chrome.error(reason)
        return {}
    cost_view.show(found)
    default = CostPlan.model_validate({"tokens_per_second": 1.0, **given, "device": view["device"]})
    changed = {name: getattr(plan, name) for name in ASSUMED if getattr(plan, name) != getattr(default, name)}
    if rate is None and "tokens_per_second" not in changed:
        changed["tokens_per_second"] = plan.tokens_per_second
    return {name: f"{value:g}" for name, value in changed.items() if value is not None}


def catalogue(view: View, devices: list[Device]) -> None:
    """The table of devices."""
    with chrome.panel("Devices", "peaks are dense; usable is what a process can fill", key="catalogue"):
        row = st.columns([1, 1.6, 3], gap="small")
        row[0].selectbox("Kind", list(KINDS), key=view.key("kind"), format_func=KINDS.__getitem__)
        row[1].text_input("Search", key=view.key("q"), placeholder="a name or a maker")
        words = view["q"].lower().split()
        shown = [
            device
            for device in devices
            if view["kind"] in ("", device.kind)
            and all(word in f"{device.id} {device.name} {device.vendor}".lower() for word in words)
        ]
        if not shown:
            chrome.empty_state("No device passes", "Change the kind or the search.", key="no-device")
            return
        chrome.html(device_tables.devices_html(shown))


def adding() -> None:
    """A row of one's own: a form, and those that were added."""
    with chrome.panel("A device of your own", "everyone who uses this server sees it", key="own-device"):
        with chrome.guard():
            for identifier, row in own_rows().items():
                line = st.columns([4, 1], vertical_alignment="center")
                line[0].markdown(f"`{identifier}` {chrome.escape(row.name)}")
                line[1].button("Remove", key=f"remove-{identifier}", on_click=remove_device, args=(identifier,))
        with st.expander("Add one"):
            data = device_tables.row_fields(DeviceRow, "own")
            if st.button("Add the device", type="primary", key="add-device"):
                identifier = str(data.pop("id"))
                try:
                    device = add_device(identifier, data)
                except PlannerError as reason:
                    chrome.error(reason)
                else:
                    st.toast(f"{device.name} can be chosen now.")
                    st.rerun()


main()
