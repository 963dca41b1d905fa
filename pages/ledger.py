"""Ledger: every prediction that was measured, the planner's error over them, and where it is worst."""

from __future__ import annotations

import streamlit as st

from pages.widgets import charts, chrome, ledger_view, nearest
from pages.widgets.address import View
from planner.ledger import BY, Pair, unpredicted

ORIGINS = {"": "Own and published", "own": "Jobs of this store", "published": "Published runs"}
GROUPS = {
    "quantity": "Quantity", "device": "Device", "component": "Component", "source": "Source", "month": "Month",
}  # fmt: skip
DEFAULTS = {"origin": "", "quantity": "", "device": "", "by": "device"}


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
    view.choice("quantity", ("", *quantities))
    view.choice("device", ("", *devices))
    row = st.columns([1.2, 1.4, 1.6, 1.1], gap="small")
    row[0].selectbox("From", list(ORIGINS), key=view.key("origin"), format_func=ORIGINS.__getitem__)
    row[1].selectbox(
        "Quantity", ["", *quantities], key=view.key("quantity"), format_func=lambda name: name or "Every quantity"
    )
    row[2].selectbox("Device", ["", *devices], key=view.key("device"), format_func=lambda name: name or "Every device")
    row[3].selectbox("Error by", list(GROUPS), key=view.key("by"), format_func=GROUPS.__getitem__)
    chosen = [
        pair for pair in chosen if view["quantity"] in ("", pair.quantity) and view["device"] in ("", pair.device)
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
    left, right = st.columns([1.1, 1], gap="small")
    with left, chrome.panel(f"Error by {view['by']}", "the worst median first", key="errors"):
        chrome.html(ledger_view.summary_html(chosen, BY[view["by"]], GROUPS[view["by"]]))
    with right, chrome.panel("Where it is worst", "the ten largest errors", key="worst"):
        chrome.html(ledger_view.worst_html(chosen))
    if view["origin"] != "own" and unpredicted():
        with st.expander("Published readings without a prediction"):
            chrome.html(ledger_view.reasons_html(unpredicted()))


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
