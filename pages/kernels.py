"""Kernels: what the compiled Triton kernels are made of, from the newest stored report."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import streamlit as st

from db.engine import Store
from pages.widgets import chrome, figures, job_view
from planner.plans import KernelsPlan
from runners.engines import client

STARTER = "tiny-hybrid"
TIMINGS = pathlib.Path(__file__).parent.parent / "assets" / "gpu-timings.json"


def main() -> None:
    store = chrome.get_store()
    results = store.results.list(kind="kernels", limit=1)
    with chrome.header("Kernels", "compiled ahead of time, read from their cubins"):
        if st.button("Compile again" if results else "Compile", type="primary"):
            with chrome.guard():
                dispatch(store)
    chrome.worker_banner(store)
    if not results:
        chrome.empty_state(
            "No report yet",
            "Compile the kernels for A100, H100 and B200 (sm_80, sm_90, sm_100): registers, spills, shared "
            "memory and tensor-core instructions are read from what the compiler made. No GPU is needed.",
            key="no-report",
        )
        timings()
        return
    entries = results[0].values["kernels"]
    chrome.note(f"{job_view.environment_line(results[0].environment)} · nothing here was run on a GPU")
    for kernel in dict.fromkeys(entry["kernel"] for entry in entries):
        with chrome.panel(kernel.replace("_", " "), key=f"kernel-{kernel}"):
            chrome.html(table([entry for entry in entries if entry["kernel"] == kernel]))
    timings()


def timings() -> None:
    """What the kernels' benchmark wrote on a GPU, beside PyTorch's own kernels in the same run."""
    measured = json.loads(TIMINGS.read_text(encoding="utf-8"))
    made = measured["environment"]
    with chrome.panel(f"Timed on one {made['device']}", key="kernel-timings"):
        chrome.note(f"PyTorch {made['torch']}, Triton {made['triton']}, bf16 · {made['date'][:10]}")
        head = "".join(f"<th>{name}</th>" for name in ("", "PyTorch", "Triton", "times as fast"))
        body = "".join(
            f"<tr><td>{chrome.escape(row['kernel'].replace('_', ' '))}, {chrome.escape(row['case'])}</td>"
            f'<td class="fig">{row["eager_milliseconds"]:.3f} ms</td>'
            f'<td class="fig">{row["triton_milliseconds"]:.3f} ms</td><td class="fig">{row["ratio"]:.2f}</td></tr>'
            for row in measured["kernels"]
        )
        chrome.html(f'<table class="pl-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def dispatch(store: Store) -> None:
    """Send a report; it reads no specification, but every job stands on a revision."""
    from planner import load

    designs = store.designs.list()
    if designs:
        revision = designs[0].latest
    else:
        spec = load(STARTER)
        revision = store.designs.create(spec.name, spec.model_dump(mode="json")).latest
    job = client.submit(store, "kernels", revision.id, KernelsPlan(), "Kernel report")
    st.switch_page("pages/jobs.py", query_params={"job": job.id})


FLAGS = {"rich_mask"}
"""Sizes of a report that are no sizes: 1 stands for yes, 0 for no."""


def size_text(name: str, value: int) -> str:
    """``head dim 128``; a flag as ``rich mask: yes``."""
    label = name.replace("_", " ")
    if isinstance(value, bool) or name in FLAGS:
        return f"{label}: {'yes' if value else 'no'}"
    return f"{label} {value:,}"


def table(entries: list[dict[str, Any]]) -> str:
    """A line a compilation."""
    head = "".join(
        f"<th>{name}</th>"
        for name in ("", "device", "type", "sizes", "registers", "spills", "shared memory", "tensor cores", "warps")
    )
    body = []
    for entry in entries:
        sizes = ", ".join(size_text(name, value) for name, value in entry["sizes"].items())
        cores = ", ".join(f"{count} {name}" for name, count in entry["tensor_core_instructions"].items()) or "–"
        spills = entry["spills"]
        spilled = f'<span class="{"pl-bad" if spills else "pl-good"}">{spills}</span>'
        cells = (
            entry["architecture"], entry["dtype"], sizes or "–", entry["registers"], spilled,
            figures.memory(entry["shared_memory_bytes"]), cores, entry["num_warps"],
        )  # fmt: skip
        body.append(
            f"<tr><td>{chrome.escape(entry['function'])}</td>"
            + "".join(f'<td class="fig">{c}</td>' for c in cells)
            + "</tr>"
        )
    return f'<table class="pl-table"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


main()
