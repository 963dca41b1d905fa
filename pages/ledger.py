"""Ledger: every prediction that was measured, the planner's error over them, and where it is worst."""

from __future__ import annotations

from urllib.parse import urlencode

import streamlit as st

from pages.widgets import charts, chrome, ledger_view, nearest, words
from pages.widgets.address import View
from planner.ledger import BY, Pair, exact_quantities, unpredicted

ORIGINS = {"": "Own and published", "own": "Jobs of this store", "published": "Published runs"}
GROUPS = {
    "quantity": "Quantity", "device": "Device", "component": "Component", "source": "Source", "month": "Month",
}  # fmt: skip
DEFAULTS = {"origin": "", "quantity": "", "device": "", "component": "", "by": "device"}


def main() -> None:
    """Draw the page from the address."""
    view = View("ledger", DEFAULTS)
    store = chrome.get_store()
    with st.spinner("Predicting the published runs …"):
        pairs = [*ledger_view.stored_pairs(store), *nearest.published()]
    chrome.header("Ledger", f"{len(pairs):,} predictions that were measured")
    view.choice("origin", ORIGINS)
    view.choice("by", GROUPS)
    chosen = [pair for pair in pairs if view["origin"] in ("", pair.origin)]
    quantities = list(dict.fromkeys(pair.quantity for pair in chosen))
    devices = sorted({pair.device for pair in chosen})
    kinds = sorted({kind for pair in chosen for kind in pair.kinds})
    view.choice("quantity", ("", *quantities))
    view.choice("device", ("", *devices))
    view.choice("component", ("", *kinds))
    row = st.columns([1.2, 1.4, 1.6, 1.3, 1], gap="small")
    row[0].selectbox("From", list(ORIGINS), key=view.key("origin"), format_func=ORIGINS.__getitem__)
    row[1].selectbox(
        "Quantity", ["", *quantities], key=view.key("quantity"), format_func=lambda name: name or "Every quantity"
    )
    row[2].selectbox("Device", ["", *devices], key=view.key("device"), format_func=lambda name: name or "Every device")
    row[3].selectbox(
        "Component", ["", *kinds], key=view.key("component"),
        format_func=lambda name: words.kind_label(name) if name else "Every component",
    )  # fmt: skip
    row[4].selectbox("Error by", list(GROUPS), key=view.key("by"), format_func=GROUPS.__getitem__)
    chosen = [
        pair
        for pair in chosen
        if view["quantity"] in ("", pair.quantity)
        and view["device"] in ("", pair.device)
        and view["component"] in ("", *pair.kinds)
    ]
    view.write()
    if not chosen:
        chrome.empty_state(
            "Nothing was measured of this yet",
            "Verify a design, or send a benchmark: what was predicted stands here beside what is found.",
            page="pages/jobs.py",
            action="Send a job",
        )
        return
    scatters(chosen)
    exact = exact_quantities(chosen)
    erring = [pair for pair in chosen if pair.quantity not in exact]
    if erring:
        over_time(erring)
        with chrome.panel(
            "Where it is worst by component", "median error and pairs, the worst first", key="components"
        ):
            chrome.html(ledger_view.components_html(erring, lambda kind, quantity: _address(view, kind, quantity)))
    if exact:
        listed = ", ".join(f"{name} ({count:,})" for name, count in exact.items())
        chrome.note(f"Each time as predicted, to the last one: {listed}.")
    left, right = st.columns([1.1, 1], gap="small")
    with left, chrome.panel(f"Error by {view['by']}", "the worst median first", key="errors"):
        chrome.html(ledger_view.summary_html(chosen, BY[view["by"]], GROUPS[view["by"]]))
    with right, chrome.panel("Where it is worst", "the ten largest errors", key="worst"):
        chrome.html(ledger_view.worst_html(chosen))
    if view["origin"] != "own" and unpredicted():
        with st.expander("Published readings without a prediction"):
            chrome.html(ledger_view.reasons_html(unpredicted()))


def _address(view: View, component: str, quantity: str) -> str:
    """This page for one component and quantity, with what else is chosen."""
    asked = {name: view[name] for name in DEFAULTS} | {"component": component, "quantity": quantity}
    return f"ledger?{urlencode({name: value for name, value in asked.items() if value != DEFAULTS[name]})}"


def over_time(pairs: list[Pair]) -> None:
    """Errors by the day of their measurement."""
    dated = [pair for pair in pairs if pair.when is not None]
    with chrome.panel(
        "Error over time", "by the day of the measurement; above the line predicted too high", key="time"
    ):
        if not dated:
            chrome.note("Of none of these the day is known.")
            return
        charts.show(
            ledger_view.over_time_plot(dated),
            key="ledger-time",
            alt="Error of each pair by the day of its measurement, a row a quantity",
        )
        said = (
            "A bar is the median of a quarter, a filled point of this store. A published run is predicted as of today, "
            "and stands at the earliest day that its source gives; it was measured by then."
        )
        beyond = sum(abs(pair.error) > ledger_view.MOST_SHOWN_ERROR for pair in dated)
        if beyond:
            said += f" Drawn at the edge, as more than {ledger_view.MOST_SHOWN_ERROR:.0%}: {beyond:,}."
        left_out = len(pairs) - len(dated)
        if left_out:
            said += f" Left out, as without a day: {left_out:,}."
        chrome.note(said)


def scatters(pairs: list[Pair]) -> None:
    """Predicted against measured, a plot for memory and one for time; counts are exact or a mistake."""
    plots = [(unit, found) for unit in ("bytes", "seconds") if (found := [p for p in pairs if p.unit == unit])]
    if not plots:
        chrome.note("What is chosen was counted: it has no spread to draw.")
        return
    for (unit, found), place in zip(plots, st.columns(len(plots), gap="small"), strict=True):
        title = "Memory" if unit == "bytes" else "Time"
        with place, chrome.panel(title, "predicted over measured; on the line is right", key=f"scatter-{unit}"):
            charts.show(
                ledger_view.scatter(found, unit),
                key=f"ledger-{unit}",
                alt=f"Predicted against measured {title.lower()}, one point a run",
            )


main()
