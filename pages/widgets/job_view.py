"""What pages show of a job: its state, its progress, its curves, and what it found beside what was predicted."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from pages.widgets import charts, chrome, figures
from planner.units import digits_text

if TYPE_CHECKING:
    from db.engine import Store
    from db.records import Job, MetricPoint

MOST_POINTS = 1200
RECORDED = "recorded"
"""The worker of jobs that were run elsewhere and brought in: their times here are those of the import."""
STATE_CLASSES = {"succeeded": "pl-good", "failed": "pl-bad", "running": "pl-warn"}
SERIES = {
    "loss": ("Loss", "nats a token"),
    "bits_per_byte": ("Validation", "bits per byte"),
    "accuracy": ("Accuracy", "share of held-out answers"),
    "gradient_norm": ("Gradient norm", "before clipping"),
    "tokens_per_second": ("Speed", "tokens a second"),
    "learning_rate": ("Learning rate", ""),
    "memory_bytes": ("Memory of the process", "GiB"),
    "router/auxiliary_loss": ("Load balancing loss", "experts a token at even load"),
    "router/z_loss": ("Router z-loss", "square of the log-sum-exp"),
    "router/largest_load": ("Busiest expert", "times its even share"),
}
"""Series of a prototype by name: title and unit; another series is shown under its own name."""


def state_html(state: str) -> str:
    """A job's state in its colour."""
    return f'<span class="{STATE_CLASSES.get(state, "pl-soft")}">{chrome.escape(state)}</span>'


def moment(when: datetime.datetime | None) -> str:
    """A time as ``24 Nov 18:02`` (UTC)."""
    return "" if when is None else f"{when:%d %b %H:%M}"


def duration(job: Job) -> str:
    """How long a job ran, or has been running; of a recorded one it is not known."""
    if job.started_at is None or job.worker_id == RECORDED:
        return ""
    end = job.finished_at or datetime.datetime.now(datetime.UTC)
    return str(figures.duration(max(1.0, round((end - job.started_at).total_seconds()))))


def progress(job: Job) -> None:
    """The bar, with what is left as the job estimates it."""
    if job.progress is None:
        chrome.note(
            "Waiting for a worker." if job.state == "queued" else "Starting: loading PyTorch takes a few seconds."
        )
        return
    left = job.progress.seconds_left
    rest = "" if left is None or job.state.ended else f" · about {figures.duration(max(1, left))} left"
    words = f"{job.progress.done:,} of {job.progress.total:,} {job.progress.unit} {job.progress.message}".rstrip()
    st.progress(job.progress.fraction, text=words + rest)


def thinned(points: Sequence[MetricPoint]) -> tuple[list[int], list[float], str]:
    """Steps and values with the extremes kept, and a note where points were left out."""
    steps = [point.step for point in points]
    values = [point.value for point in points]
    if len(points) <= MOST_POINTS:
        return steps, values, ""
    from tsdownsample import MinMaxLTTBDownsampler

    chosen = MinMaxLTTBDownsampler().downsample(
        np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64), n_out=MOST_POINTS
    )
    note = f"{MOST_POINTS:,} points sampled from {len(points):,}, extremes kept"
    return [steps[index] for index in chosen], [values[index] for index in chosen], note


def series_of(store: Store, job: Job) -> dict[str, list[MetricPoint]]:
    """What the job has said step by step, the known series first; a single value is no curve."""
    found: dict[str, list[MetricPoint]] = {}
    for point in store.jobs.metrics(job.id):
        found.setdefault(point.name, []).append(point)
    names = [name for name in SERIES if name in found] + [name for name in found if name not in SERIES]
    return {name: found[name] for name in names if len(found[name]) > 1}


def _title_of(name: str) -> tuple[str, str]:
    """Title and unit of a series."""
    unit = "GiB" if name.endswith("_bytes") else "seconds" if name.endswith("_seconds") else ""
    return SERIES.get(name, (name.replace("_", " ").capitalize(), unit))


def curves(series: Mapping[str, Sequence[MetricPoint]], job: Job, key: str) -> None:
    """One chart a series that the job has said."""
    wide = st.tabs([_title_of(name)[0] for name in series])
    for (name, points), tab in zip(series.items(), wide, strict=True):
        title, unit = _title_of(name)
        steps, values, note = thinned(points)
        if name.endswith("_bytes"):
            values = charts.gibibytes(values)
        with tab:
            curve = charts.Curve(title.lower(), steps, values, colour="accent", width=2.0)
            drawn = charts.lines(
                [curve],
                x=charts.Axis("step"),
                y=charts.Axis(unit, log=10 if name == "learning_rate" else None),
                height=300,
                end_labels=False,
            )
            charts.show(drawn, key=f"{key}-{name}", alt=f"{title} of {job.name} by step")
            if note:
                chrome.note(note)


def log_lines(store: Store, job: Job, most: int = 400) -> None:
    """The job's log, the technical lines apart."""
    lines = store.jobs.logs(job.id)
    shown = [line for line in lines if line.level != "debug"]
    if shown:
        text = "\n".join(f"{line.created_at:%H:%M:%S}  {line.message}" for line in shown[-most:])
        # Lines wrap, so that only what is long for certain is given a height to scroll in.
        st.code(text, language=None, height=320 if len(shown) > 12 else "content", wrap_lines=True)
    technical = [line.message for line in lines if line.level == "debug"]
    if technical:
        with st.expander("Technical details"):
            st.code("\n".join(technical), language=None)
    if not lines:
        chrome.note("Nothing was logged.")


def quantity_text(value: Any, unit: str) -> str:
    """A predicted or measured value with its unit, exact where it is a count."""
    if value is None:
        return "–"
    match unit:
        case "bytes":
            return f"{figures.memory(value)}"
        case "FLOP" | "FLOPs" | "flops":
            return f"{figures.flops(value)}"
        case "seconds":
            return f"{figures.duration(value)}"
        case "parameters" | "elements" | "count" | "":
            return digits_text(value, 4) if isinstance(value, float) and not value.is_integer() else f"{value:,}"
    return f"{value:,} {unit}" if isinstance(value, int) else f"{digits_text(value, 4)} {unit}"


def error_html(error: float | None) -> str:
    """The error of a prediction: exact, or in percent with a colour by size."""
    if error is None:
        return '<span class="pl-soft">–</span>'
    if error == 0:
        return '<span class="pl-good">exact</span>'
    sign = "+" if error > 0 else "−"
    return f'<span class="{error_tone(error)}">{sign}{figures.percent(abs(error))}</span>'


def error_tone(error: float) -> str:
    """The class of an error's colour: within 5%, within 15%, or beyond."""
    return "pl-good" if abs(error) <= 0.05 else "pl-warn" if abs(error) <= 0.15 else "pl-bad"


def _called(row: Mapping[str, Any]) -> str:
    """A row's quantity, and of what it is where that is not the job's own design."""
    return f"{row['quantity']}, {row['label']}" if row.get("label") else str(row["quantity"])


def predictions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Predicted, measured and the error, a line a quantity; how it was measured is on hover."""
    body = "".join(
        f'<tr title="{chrome.escape(row.get("how") or "")}"><td>{chrome.escape(_called(row))}</td>'
        f'<td class="fig">{quantity_text(row.get("predicted"), row.get("unit", ""))}</td>'
        f'<td class="fig">{quantity_text(row.get("measured"), row.get("unit", ""))}</td>'
        f'<td class="fig">{error_html(row.get("error"))}</td></tr>'
        for row in rows
    )
    head = "<tr><th></th><th>predicted</th><th>measured</th><th>error</th></tr>"
    chrome.html(f'<table class="pl-table"><thead>{head}</thead><tbody>{body}</tbody></table>')
    reasons = [f"{row['quantity']}: {row['how']}" for row in rows if row.get("measured") is None and row.get("how")]
    for reason in reasons:
        chrome.note(reason)


def environment_line(environment: Mapping[str, Any]) -> str:
    """Device, versions and date in one line."""
    parts = []
    for name in ("device", "cpu", "cores", "threads", "torch", "triton", "python", "date", "measured_at"):
        value = environment.get(name)
        if value not in (None, "", [], {}):
            if name in ("date", "measured_at"):
                value = _day(str(value))
            counted = f"{value} {name if value != 1 else name.removesuffix('s')}" if name in _COUNTED else None
            parts.append(counted or (f"{name} {value}" if name in _NAMED else str(value)))
    load = environment.get("load_before")
    if isinstance(load, (int, float)) and load > 1:
        parts.append(f"load {digits_text(load, 2)} when it began")
    return " · ".join(parts) or "environment not recorded"


def _day(text: str) -> str:
    """A moment in the form of ISO 8601 as ``24 Nov 2026 20:06 UTC``; other text as it is."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when:%d %b %Y %H:%M}{' UTC' if when.utcoffset() == datetime.timedelta(0) else ''}"


_COUNTED = {"cores", "threads"}
_NAMED = {"torch", "triton", "python"}
