"""A training plan drawn: memory of each pipeline rank by part, the moments of a step, and the map of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pages.widgets import charts, chrome, figures, theme
from pages.widgets.charts import Axis, Bar
from pages.widgets.key_numbers import KeyNumber
from planner import Device, TrainingPlan
from planner.step_time import StepTime
from planner.step_time.run_cost import RunCost
from planner.training import Buffer, TrainingEstimate, TrainingMemory
from planner.training.records import Change
from planner.units import digits_text, money_text

PARTS = ("parameters", "gradients", "optimizer", "activations", "communication")
MOST_RANKS = 16
MOST_DRAWN = 8


def device_count(plan: TrainingPlan) -> int:
    """Devices that take part in a step."""
    return plan.tensor_parallel * plan.pipeline_parallel * plan.context_parallel * plan.data_parallel


def time_numbers(estimate: TrainingEstimate) -> list[KeyNumber]:
    """Key numbers of time, as far as they are modelled."""
    found = []
    if estimate.step_seconds is not None:
        step = figures.duration(estimate.step_seconds)
        found.append(KeyNumber("step", "Time of a step", step.value, step.unit, step.exact, "modelled"))
    if estimate.tokens_per_second is not None:
        speed = figures.count(estimate.tokens_per_second)
        found.append(
            KeyNumber("speed", "Tokens a second", speed.value, speed.unit, speed.exact, "modelled", note="all devices")
        )
    if estimate.model_flops_utilization is not None:
        share = estimate.model_flops_utilization
        found.append(KeyNumber("mfu", "Of the peak", figures.percent(share), exact=f"{share}", status="modelled"))
    return found


def stages_html(stages: Sequence[TrainingMemory], device: Device) -> str:
    """HTML of one bar a pipeline rank, and what the colours are."""
    whole = max([device.usable_memory_bytes, *(memory.total_bytes for memory in stages)])
    shown = list(stages) if len(stages) <= MOST_RANKS else [*stages[: MOST_RANKS - 1], stages[-1]]
    rows = "".join(_stage(memory, len(stages), device.usable_memory_bytes, whole) for memory in shown)
    worst = max(stages, key=lambda memory: memory.total_bytes)
    legend = "".join(
        chrome.swatch(theme.MEMORY_TOKENS.get(name, "other"), f"{name} {figures.memory(value)}")
        for name, value in worst.parts.items()
        if value
    )
    left_out = len(stages) - len(shown)
    more = f'<p class="pl-note">{left_out} ranks between them are not drawn.</p>' if left_out else ""
    return f'<div class="pl-fit">{rows}</div>{more}<p class="pl-legend">{legend}</p>'


def _stage(memory: TrainingMemory, ranks: int, usable: int, whole: int) -> str:
    total = memory.total_bytes
    bars = "".join(
        f'<i style="width:{100 * value / whole:.3f}%;background:var(--{theme.MEMORY_TOKENS.get(name, "other")})" '
        f'title="{chrome.escape(f"{name}: {figures.memory(value)}")}"></i>'
        for name, value in memory.parts.items()
        if value
    )
    limit = f'<u style="left:{min(100 * usable / whole, 99.8):.3f}%"></u>'
    mark, tone = ("✓", "pl-good") if total <= usable else ("✕", "pl-bad")
    name = "every device" if ranks == 1 else f"pipeline rank {memory.pipeline_rank}, {_layers(memory)}"
    needed = figures.memory(total)
    return (
        f"<div>{name}</div>"
        f'<div class="pl-bar" title="{chrome.escape(needed.exact)}">{bars}{limit}</div>'
        f'<div class="{tone}" title="{chrome.escape(needed.exact)}">{mark} {needed} of {figures.memory(usable)}</div>'
    )


def timeline(memory: TrainingMemory, usable: int) -> dict[str, Any]:
    """Stacked bars: what is alive at each moment of a step, in its order, and the peak."""
    palette = theme.palette()
    places = list(range(1, len(memory.moments) + 1))
    data = [
        {
            "type": "bar", "name": part, "x": places,
            "y": [getattr(moment, f"{part}_bytes") / 2**30 for moment in memory.moments],
            "marker": {"color": palette[theme.MEMORY_TOKENS[part]]},
            "customdata": [[moment.name, str(figures.memory(getattr(moment, f"{part}_bytes")))]
                           for moment in memory.moments],
            "hovertemplate": "%{customdata[0]}<br>" + part + " %{customdata[1]}<extra></extra>",
        }
        for part in PARTS
        if any(getattr(moment, f"{part}_bytes") for moment in memory.moments)
    ]  # fmt: skip
    totals = [moment.total_bytes for moment in memory.moments]
    peak = totals.index(max(totals))
    highest = totals[peak] / 2**30
    line = usable / 2**30
    shapes, annotations = [], [
        {
            "x": places[peak], "y": highest, "text": "peak", "showarrow": False, "yshift": 9,
            "font": {"size": 11.5, "color": palette["ink"]},
        }
    ]  # fmt: skip
    if line <= 3 * highest:
        shapes.append(
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": line, "y1": line,
                "line": {"color": palette["bad" if highest > line else "faint"], "width": 1.2, "dash": "4px 3px"},
            }
        )  # fmt: skip
        annotations.append(
            {
                "xref": "paper", "x": 1, "y": line, "xanchor": "right", "yshift": 8, "text": "usable",
                "showarrow": False, "font": {"size": 11, "color": palette["soft"]},
            }
        )  # fmt: skip
    font = {"size": 11.5, "color": palette["soft"]}
    ticks = {"size": 11, "color": palette["faint"]}
    return {
        "data": data,
        "layout": {
            **charts.frame(300, right=12),
            "barmode": "stack",
            "bargap": 0.25,
            "showlegend": False,
            "xaxis": {"title": {"text": "moments of a step, in their order", "font": font}, "tickfont": ticks,
                      "zeroline": False, "dtick": 1 if len(places) <= 20 else 5},
            "yaxis": {"title": {"text": "GiB", "font": font}, "tickfont": ticks, "gridcolor": palette["line"],
                      "zeroline": False, "automargin": True},
            "shapes": shapes,
            "annotations": annotations,
        },
    }  # fmt: skip


_PART_WORDS = {"matmul": "matrices", "attention": "attention and states", "launches": "launches of kernels"}


def time_bars(time: StepTime) -> dict[str, Any]:
    """Bars of what a step's time goes to, the longest on top."""
    entries = [
        Bar(
            _PART_WORDS.get(name, name.replace("_", " ")), float(seconds), "soft",
            str(figures.duration(float(seconds))), figures.duration(float(seconds)).exact,
        )
        for name, seconds in sorted(time.parts.items(), key=lambda item: -item[1])
        if seconds > 0
    ]  # fmt: skip
    return charts.bars(entries, x=Axis("s"), row_height=24)


def changes_html(changes: Sequence[Change]) -> str:
    """HTML of what would make a plan fit, from what costs least."""
    head = '<th>Change</th><th style="text-align:left">Costs</th><th>Alone</th><th>With those above</th>'
    rows = "".join(
        f"<tr><td>{chrome.escape(', '.join(f'{name} = {value}' for name, value in change.fields.items()))}</td>"
        f'<td style="text-align:left">{chrome.escape(change.cost)}</td>'
        f'<td class="fig">{figures.memory(change.alone_bytes)}</td>'
        f'<td class="fig {"pl-good" if change.fits else ""}">{figures.memory(change.together_bytes)}'
        f"{' ✓' if change.fits else ''}</td></tr>"
        for change in changes
    )
    return f'<div class="pl-scroll"><table class="pl-table"><tr>{head}</tr>{rows}</table></div>'


def run_html(run: RunCost) -> str:
    """HTML of what a run takes."""
    price = "–" if run.price_usd is None else money_text(run.price_usd)
    energy = "–" if run.energy_kwh is None else f"{digits_text(run.energy_kwh, 3)} kWh"
    entries = (
        ("Steps", f"{run.steps:,}", ""),
        ("Time", str(figures.duration(run.total_seconds)), f"{run.goodput:.1%} of it steps that count"),
        ("Device hours", digits_text(run.device_hours, 4), f"{run.devices:,} devices"),
        ("Energy", energy, "at the devices' rated power"),
        ("Rent", price, "; ".join(run.notes)),
    )
    rows = "".join(
        f'<tr><td>{name}</td><td class="fig">{chrome.escape(value)}</td><td>{chrome.escape(note)}</td></tr>'
        for name, value, note in entries
    )
    return f'<table class="pl-table">{rows}</table>'


def buffers_html(buffers: Sequence[Buffer]) -> str:
    """HTML of what an engine sets aside, each with its source."""
    rows = "".join(
        f'<tr><td>{chrome.escape(buffer.name)}<br><span class="pl-soft">{chrome.escape(buffer.source)}</span></td>'
        f'<td class="fig" title="{chrome.escape(figures.memory(buffer.bytes).exact)}">'
        f"{figures.memory(buffer.bytes)}</td></tr>"
        for buffer in buffers
    )
    return f'<table class="pl-table">{rows}</table>'


_VARIANTS = ("variant-a", "variant-b", "variant-c", "variant-d", "variant-e", "variant-f", "variant-g", "variant-h")


def map_html(plan: TrainingPlan, stages: Sequence[TrainingMemory]) -> str:
    """HTML of the devices: columns are pipeline ranks, rows are replicas of the model, a cell's squares share a layer.

    Of many, the first and the last are drawn, and the words say how many there are.
    """
    together = plan.tensor_parallel * plan.context_parallel
    columns = _drawn(plan.pipeline_parallel)
    lines = []
    for replica in _drawn(plan.data_parallel):
        if replica is None:
            lines.append("<div>⋮</div>")
            continue
        cells = "".join("<span>…</span>" if rank is None else _cell(plan, stages[rank], replica) for rank in columns)
        lines.append(f"<div><b>{replica}</b>{cells}</div>")
    words = [
        _count(plan.data_parallel, "replica of the model", "replicas of the model, as rows"),
        _count(plan.pipeline_parallel, "pipeline rank", "pipeline ranks, as columns"),
        _count(together, "device for each layer", "devices that share each layer"),
    ]
    if plan.tensor_parallel > 1 and plan.context_parallel > 1:
        words[-1] += f" ({plan.tensor_parallel} for its tensors by {plan.context_parallel} for the positions)"
    if plan.expert_parallel > 1:
        words.append(f"experts dealt out to {plan.expert_parallel} devices")
    said = ", ".join(words)
    return f'<div class="pl-map">{"".join(lines)}</div><p class="pl-note">{said}: {device_count(plan):,} in all.</p>'


def _count(number: int, one: str, several: str) -> str:
    return f"one {one}" if number == 1 else f"{number:,} {several}"


def _drawn(count: int) -> list[int | None]:
    """Indices that are drawn; ``None`` stands for those left out."""
    if count <= MOST_DRAWN:
        return list(range(count))
    return [*range(MOST_DRAWN - 2), None, count - 1]


def _layers(memory: TrainingMemory) -> str:
    return _count(memory.num_layers, "layer", "layers")


def _cell(plan: TrainingPlan, stage: TrainingMemory, replica: int) -> str:
    rank = stage.pipeline_rank
    together = plan.tensor_parallel * plan.context_parallel
    drawn = min(together, MOST_DRAWN)
    colour = _VARIANTS[rank % len(_VARIANTS)]
    squares = f'<i style="background:var(--{colour})"></i>' * drawn
    more = f"<em>+{together - drawn}</em>" if together > drawn else ""
    said = f"replica {replica}, pipeline rank {rank}, {_layers(stage)}, {together} devices"
    return f'<span title="{said}">{squares}{more}</span>'
