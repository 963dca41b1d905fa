"""Benchmarks: what was timed, on which device, and how it changed."""

from __future__ import annotations

import streamlit as st

from db.engine import Store
from db.records import Result
from pages.widgets import charts, chrome, figures, job_view


def main() -> None:
    store = chrome.get_store()
    results = store.results.list(kind="benchmark", include_archived="archived" in st.query_params)
    chrome.header("Benchmarks", f"{len(results)} stored" if results else "none stored yet")
    chrome.worker_banner(store)
    if not results:
        chrome.empty_state(
            "No benchmark yet",
            "Send one of a saved design: prefill, decoding and a training step are timed on the worker's device.",
            page="pages/jobs.py",
            action="Send a benchmark",
        )
        return
    phases = list(dict.fromkeys(phase for result in results for phase in result.values["timings"]))
    asked = st.query_params.get("phase", phases[0])
    phase = st.segmented_control(
        "Phase",
        phases,
        default=asked if asked in phases else phases[0],
        key="phase",
        format_func=str.capitalize,
    )
    phase = phase or phases[0]
    if st.query_params.get("phase") != phase:
        st.query_params["phase"] = phase
    timed = [result for result in results if phase in result.values["timings"]]
    history(timed, phase)
    with chrome.panel("Results", f"{phase}: median with its 95% interval", key="results"):
        table(store, timed, phase)


def history(results: list[Result], phase: str) -> None:
    """Tokens a second of each design over time."""
    by_name: dict[str, list[Result]] = {}
    for result in reversed(results):
        by_name.setdefault(result.name, []).append(result)
    several = {name: found for name, found in by_name.items() if len(found) > 1}
    with chrome.panel("Speed", f"tokens a second, {phase}", key="speed"):
        if several:
            curves = [
                charts.Curve(
                    name,
                    list(range(1, len(found) + 1)),
                    [r.values["timings"][phase]["tokens_per_second"] for r in found],
                    "ink",
                    "solid",
                    1.8,
                    [f"{r.created_at:%Y-%m-%d %H:%M}" for r in found],
                )
                for name, found in several.items()
            ]
            charts.show(
                charts.lines(curves, x=charts.Axis("run, oldest first"), y=charts.Axis("tokens a second"), height=240),
                key="history",
                alt="Tokens a second of each design, run by run",
            )
        newest = [found[-1] for found in by_name.values()][::-1]
        bars = [
            charts.Bar(
                result.name,
                result.values["timings"][phase]["tokens_per_second"],
                "soft",
                f"{result.values['timings'][phase]['tokens_per_second']:,.0f}",
            )
            for result in newest
        ]
        charts.show(charts.bars(bars, x=charts.Axis("tokens a second")), key="newest", alt="Tokens a second, newest")


def table(store: Store, results: list[Result], phase: str) -> None:
    """A line a result; each opens, renames and archives."""
    for result in results:
        timing = result.values["timings"][phase]
        name, median, interval, environment, more = st.columns([5, 1.5, 2.8, 4.5, 1.9], vertical_alignment="center")
        if name.button(result.name, key=f"open-{result.id}", type="tertiary"):
            st.switch_page("pages/jobs.py", query_params={"job": result.job_id})
        with median:
            chrome.html(f'<b class="pl-figures">{figures.duration(timing["median_seconds"])}</b>')
        with interval:
            low, high = figures.duration(timing["low_seconds"]), figures.duration(timing["high_seconds"])
            chrome.html(f'<span class="pl-soft">{low} to {high}, {timing["repetitions"]} runs</span>')
        with environment:
            chrome.html(f'<span class="pl-soft">{chrome.escape(job_view.environment_line(result.environment))}</span>')
        with more, st.popover("More"):
            text = st.text_input("Name", result.name, key=f"name-{result.id}")
            if st.button("Rename", key=f"rename-{result.id}"):
                with chrome.guard():
                    store.results.rename(result.id, text)
                    st.rerun()
            if st.button("Archive", key=f"archive-{result.id}"):
                with chrome.guard():
                    store.results.archive(result.id)
                    st.rerun()


main()
