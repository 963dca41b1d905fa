"""A serving plan drawn: latency against throughput, what a pass consists of, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pages.widgets import charts, figures, theme
from pages.widgets.charts import Axis, Bar
from pages.widgets.key_numbers import KeyNumber
from planner.serving import InferenceEstimate
from planner.serving.times import RooflinePoint
from planner.units import digits_text

_MOST_TICKS = 7
LABELLED = 2
"""Names beside a place of the roofline."""
TOGETHER = 0.12
"""Points whose coordinates differ by less, in natural logarithms, share a label."""


def time_numbers(estimate: InferenceEstimate) -> list[KeyNumber]:
    """Key numbers of time, as far as they are modelled."""
    found = []
    for quantity, label, seconds in (
        ("first", "Time to first token", estimate.time_to_first_token_seconds),
        ("token", "Between tokens", estimate.inter_token_latency_seconds),
    ):
        if seconds is not None:
            said = figures.duration(seconds)
            found.append(KeyNumber(quantity, label, said.value, said.unit, said.exact, "modelled"))
    if estimate.tokens_per_second is not None:
        speed = figures.count(estimate.tokens_per_second)
        found.append(
            KeyNumber("speed", "Tokens a second", speed.value, speed.unit, speed.exact, "modelled", note="all requests")
        )
    if estimate.energy_per_token_joules is not None:
        energy = digits_text(estimate.energy_per_token_joules, 3)
        found.append(KeyNumber("energy", "Energy a token", energy, "J", status="modelled", note="at rated power"))
    return found


def _font(palette: theme.Palette) -> dict[str, Any]:
    return {"size": 11.5, "color": palette["soft"]}


def _log_axis(palette: theme.Palette, title: str, values: Sequence[float], padding: float = 0.12) -> dict[str, Any]:
    logs = [math.log10(value) for value in values if value > 0]
    low, high = min(logs), max(logs)
    space = max((high - low) * padding, 0.08)
    ticks = log_ticks(low - space, high + space)
    return {
        "type": "log", "title": {"text": title, "font": _font(palette)}, "range": [low - space, high + space],
        "gridcolor": palette["line"], "zeroline": False, "tickfont": {"size": 11, "color": palette["faint"]},
        "automargin": True, "tickvals": ticks, "ticktext": [tick_text(value) for value in ticks],
    }  # fmt: skip


def log_ticks(low: float, high: float) -> list[float]:
    """Where ticks stand between two powers of ten: at most seven, each a whole number that its label says in full."""
    for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10), [tenth / 10 for tenth in range(10, 100)]):
        decades = range(math.floor(low), math.floor(high) + 1)
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [value for value in found if low <= math.log10(value) <= high]
        if len(found) >= 3:
            break
    return found[:: -(-len(found) // _MOST_TICKS)]


def tick_text(value: float) -> str:
    """A tick's number, such as 20, 0.5, 2k or 1.5G."""
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def latency(batches: Sequence[tuple[int, InferenceEstimate]], chosen: int) -> dict[str, Any]:
    """Milliseconds between tokens over tokens a second: a point a batch, the plan's own filled."""
    palette = theme.palette()
    known = [
        (size, found.tokens_per_second, 1e3 * found.inter_token_latency_seconds)
        for size, found in batches
        if found.tokens_per_second is not None and found.inter_token_latency_seconds is not None
    ]
    speeds, waits = [speed for _, speed, _ in known], [wait for _, _, wait in known]
    return {
        "data": [
            {
                "type": "scatter", "mode": "lines+markers+text", "x": speeds, "y": waits,
                "text": [f"{size:,}" for size, _, _ in known], "textposition": "top center",
                "textfont": {"size": 11, "color": palette["soft"]},
                "line": {"color": palette["soft"], "width": 1.4},
                "marker": {
                    "size": [11 if size == chosen else 7 for size, _, _ in known],
                    "color": [palette["accent"] if size == chosen else palette["panel"] for size, _, _ in known],
                    "line": {"width": 1.4, "color": palette["soft"]},
                },
                "hovertemplate": "%{text} sequences: %{y:.3~g} ms, %{x:.4~g} tokens a second<extra></extra>",
            }
        ],
        "layout": {
            **charts.frame(300, right=16),
            "xaxis": _log_axis(palette, "tokens a second, all requests", speeds),
            "yaxis": _log_axis(palette, "ms between tokens", waits),
            "showlegend": False,
            "hovermode": "closest",
        },
    }  # fmt: skip


def parts(seconds: Mapping[str, float]) -> dict[str, Any]:
    """Bars of what a pass goes to, the longest on top."""
    entries = [
        Bar(name, value, "soft", str(figures.duration(value)), figures.duration(value).exact)
        for name, value in sorted(seconds.items(), key=lambda item: -item[1])
        if value > 0
    ]
    return charts.bars(entries, x=Axis("s"), row_height=24)


def roof(points: Sequence[RooflinePoint]) -> dict[str, Any]:
    """FLOPs a second over FLOPs a byte of each operator, under the roof; a point's area is its share of the time."""
    palette = theme.palette()
    whole = sum(point.seconds for point in points) or 1.0
    ordered = sorted(points, key=lambda point: point.intensity)
    data: list[dict[str, Any]] = []
    if ordered:
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": [point.intensity for point in ordered],
                "y": [point.roof_flops_per_second for point in ordered], "hoverinfo": "skip",
                "line": {"color": palette["faint"], "width": 1.6},
            }
        )  # fmt: skip
    middle = math.sqrt(ordered[0].intensity * ordered[-1].intensity) if ordered else 1.0
    for index, group in enumerate(_standing_together(ordered)):
        # Towards the middle, where there is room, and neighbours one above the other.
        side = "right" if group[0].intensity <= middle else "left"
        large = [point.name for point in group if point.seconds / whole > 0.06]
        label = ", ".join(large[:LABELLED]) + (f" and {len(large) - LABELLED} more" if len(large) > LABELLED else "")
        for place, point in enumerate(group):
            share = point.seconds / whole
            data.append(
                {
                    "type": "scatter", "mode": "markers+text", "x": [point.intensity], "y": [point.flops_per_second],
                    "text": ["" if place else label], "textposition": f"{('bottom', 'top')[index % 2]} {side}",
                    "textfont": {"size": 11, "color": palette["soft"]},
                    "marker": {
                        "size": 7 + 40 * math.sqrt(share), "opacity": 0.8,
                        "color": palette[theme.component_token(point.component)],
                    },
                    "hovertext": f"{point.name}: {figures.percent(share)} of the pass, bound by {point.bound}, "
                    f"{figures.flops(point.flops_per_second)}/s of {figures.flops(point.roof_flops_per_second)}/s",
                    "hovertemplate": "%{hovertext}<extra></extra>",
                }
            )  # fmt: skip
    values = [value for point in points for value in (point.flops_per_second, point.roof_flops_per_second)] or [1.0]
    return {
        "data": data,
        "layout": {
            **charts.frame(330, right=24),
            "xaxis": _log_axis(palette, "FLOPs a byte", [point.intensity for point in points] or [1.0]),
            "yaxis": _log_axis(palette, "FLOPs a second", values),
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def _standing_together(ordered: Sequence[RooflinePoint]) -> list[list[RooflinePoint]]:
    """Points that would cover each other's names, the one with most time first; ``ordered`` by intensity."""
    groups: list[list[RooflinePoint]] = []
    for point in ordered:
        near = (
            group
            for group in groups
            if abs(math.log(point.intensity / group[0].intensity)) < TOGETHER
            and abs(math.log(point.flops_per_second / group[0].flops_per_second)) < TOGETHER
        )
        group = next(near, None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return [sorted(group, key=lambda point: -point.seconds) for group in groups]
