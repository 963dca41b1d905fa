"""What a day of tokens costs, owned, rented or bought: the plot, the ways at one demand, and where they cross."""

from __future__ import annotations

import numpy as np

from pages.widgets import charts, chrome, figures
from pages.widgets.charts import Axis, Curve, Mark
from planner import PlannerError, ServingPlan, hardware, parse_plan
from planner.cost import CostComparison, Crossing, Way, cost_curves, tables
from planner.presets import preset
from planner.serving import estimate_inference
from planner.units import money_text, three_digits

STYLES = {"own": ("variant-a", "solid"), "rented": ("variant-b", "dash"), "by the token": ("variant-c", "dot")}
POINTS = 400


def rate_of(design: str, device: str, weight_format: str, batch: str, context: str) -> tuple[float | None, str]:
    """Tokens a second of one device under a plan, and in words where that is from."""
    if not design:
        return (
            None,
            "Enter the tokens a second that one machine writes under the assumptions: measured ones, if there are.",
        )
    settings = {
        "hardware": device, "weight_format": weight_format, "batch_size": int(batch), "context_length": int(context),
    }  # fmt: skip
    try:
        plan = parse_plan(ServingPlan, settings)
        found = estimate_inference(preset(design).spec, plan)
    except PlannerError as reason:
        return None, f"No rate is predicted: {reason} Enter one under the assumptions."
    usable = hardware(device).usable_memory_bytes
    if found.memory.total_bytes > usable:
        return None, (
            f"{preset(design).title} does not fit there: it needs {figures.memory(found.memory.total_bytes)} of "
            f"{figures.memory(usable)} that are usable. Choose narrower weights, fewer sequences or another device, or "
            "enter a rate under the assumptions."
        )
    if found.tokens_per_second is None:
        return None, f"{found.time_note} Enter a rate under the assumptions."
    rate = float(three_digits(found.tokens_per_second).replace(",", ""))
    return rate, (
        f"{rate:,g} tokens a second are predicted for {batch} sequences of {int(context):,} tokens on one device; a "
        "measured rate can be entered under the assumptions."
    )


def field_notes(device: str) -> dict[str, str]:
    """Where the default of each field is from, by field."""
    found = {name: f"{row.source} ({row.as_of:%Y-%m-%d})" for name, row in tables().assumptions.items()}
    known = tables().purchases.get(device)
    found["device_usd"] = (
        "No list price is known: enter what it costs."
        if known is None
        else f"Absent: {money_text(known.usd)}, {known.source} ({known.as_of:%Y-%m-%d})"
    )
    row = hardware(device)
    if row.price_per_hour_usd is not None:
        found["rented_usd_per_device_hour"] = f"Absent: {money_text(row.price_per_hour_usd)}, {row.price_source}"
    if row.power_watts is not None:
        found["device_watts"] = f"Absent: {row.power_watts:,} W, {row.source}"
    return found


def show(found: CostComparison) -> None:
    """The plot, the table and the crossings."""
    for reason in found.missing:
        chrome.note(reason)
    if not found.ways:
        return
    demand = found.plan.tokens_per_day
    # A plot of a demand a thousand times smaller to a hundred times larger.
    tokens = np.geomspace(demand / 1000, demand * 100, POINTS)
    curves = cost_curves(found, tokens)
    drawn = [
        Curve(
            way.name, tokens.tolist(), curves[way.name].tolist(), *STYLES[way.name], width=2.2,
            exact=[money_text(float(value)) for value in curves[way.name]],
        )
        for way in found.ways
    ]  # fmt: skip
    charts.show(
        charts.lines(
            drawn, x=Axis("tokens a day", log=10), y=Axis("dollars a day", log=10), height=300,
            marks=[Mark(demand, "this demand", "accent")],
        ),
        key="cost-curves",
        alt="Dollars a day over tokens a day, for each way of having them",
    )  # fmt: skip
    chrome.html(_table(found))
    for each in found.crossings:
        if each.first is not None and each.first > 0:
            chrome.note(sentence(each))


def sentence(crossing: Crossing) -> str:
    """Where one way becomes cheaper, in words."""
    assert crossing.first is not None
    first = f"{figures.count(crossing.first)} tokens a day"
    names = {"own": "Owning", "rented": "Renting", "by the token": "Buying tokens"}
    than = {"own": "owning", "rented": "renting", "by the token": "buying tokens"}[crossing.dearer]
    if crossing.always is None:
        return f"{names[crossing.cheaper]} costs no more than {than} at {first}, but not at every demand above."
    if crossing.always <= crossing.first * 1.000001:
        return f"{names[crossing.cheaper]} costs no more than {than} from {first} on."
    return (
        f"{names[crossing.cheaper]} costs no more than {than} at {first} for the first time, and always from "
        f"{figures.count(crossing.always)} on: each further machine is a step."
    )


def _table(found: CostComparison) -> str:
    demand = found.plan.tokens_per_day
    best = found.cheapest()
    heads = ("At this demand", "A day", "A month", "A million tokens", "Machines", "Fixed a machine and day")
    head = "".join(f"<th>{chrome.escape(text)}</th>" for text in heads)
    rows = "".join(_way(way, demand, way is best) for way in found.ways)
    return f'<table class="pl-table"><tr>{head}</tr>{rows}</table>'


def _way(way: Way, demand: float, is_best: bool) -> str:
    a_day = float(way.usd_per_day(demand))
    parts = "; ".join(f"{term.name} {money_text(term.usd_per_day)}: {term.formula}" for term in way.fixed_terms)
    machines = int(way.machines(demand))
    cells = (
        (money_text(a_day), ""),
        (money_text(a_day * 365.25 / 12), ""),
        (money_text(way.usd_per_million(demand)), way.token_formula),
        (f"{machines:,}" if machines else "–", ""),
        (money_text(way.usd_per_machine_day) if machines else "–", parts),
    )
    tone = ' class="pl-good"' if is_best else ""
    figures_html = "".join(f'<td class="fig" title="{chrome.escape(hover)}">{text}</td>' for text, hover in cells)
    return f"<tr><td{tone}>{chrome.status_glyph('approximated')} {chrome.escape(way.name)}</td>{figures_html}</tr>"
