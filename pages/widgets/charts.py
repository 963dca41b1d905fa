"""Plots in one style: curves labelled at their ends, units on the axes, exact values on hover.

::

    curves = [Curve("this design", contexts, sizes, "ink", width=2.6), Curve("MHA", contexts, others, "faint", "dash")]
    charts.show(charts.lines(curves, y=Axis("GiB", log=2), x=Axis("tokens", log=2)), key="cache", alt="Cache …")

``colour`` is a token of :mod:`pages.widgets.theme`; a component's token is ``theme.component_token(name)`` and a
variant's ``theme.VARIANTS[index].token`` with its ``dash``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.widgets import theme

_FONT = "Inter, 'Source Sans', system-ui, sans-serif"
CONFIG = {"displayModeBar": False, "responsive": True, "scrollZoom": False, "doubleClick": "reset"}


@dataclass(frozen=True, slots=True)
class Curve:
    """A line; ``exact`` is what a point's hover says (default: its y value)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "ink"
    dash: str = "solid"
    width: float = 1.8
    exact: Sequence[str] | None = None
    opacity: float = 1.0
    low: Sequence[float] | None = None
    """Lower edge of a band around the line; with ``high``."""
    high: Sequence[float] | None = None
    points: bool = False
    """Whether each value has a mark of its own."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: what it counts, whether it is logarithmic (to base 2 or 10), and marks of one's own."""

    title: str = ""
    log: int | None = None
    ticks: Sequence[float] | None = None
    tick_labels: Sequence[str] | None = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with a word beside it, such as a resumption or an optimum."""

    x: float
    label: str
    colour: str = "warn"


def gibibytes(sizes: Sequence[float]) -> list[float]:
    """Bytes as GiB, for an axis that says so."""
    return [size / 2**30 for size in sizes]


def power_of_two_label(value: float) -> str:
    """``0.125`` as ``1/8``, ``32768`` as ``32K``: marks of a base-two axis."""
    if value < 1:
        return f"1/{round(1 / value)}"
    for size, unit in ((2**20, "M"), (2**10, "K")):
        if value >= size and value % size == 0:
            return f"{int(value) // size}{unit}"
    return f"{value:g}"


def plain_label(value: float) -> str:
    """``0.125`` as ``1/8``, ``2048`` as ``2,048``: marks of a base-two axis whose title has the unit already."""
    return f"1/{round(1 / value):,}" if value < 1 else f"{value:,.0f}"


def lines(
    curves: Sequence[Curve], *, x: Axis, y: Axis, height: int = 250, marks: Sequence[Mark] = (), end_labels: bool = True
) -> dict[str, Any]:
    """Curves over a shared x axis, as a Plotly figure in plain data; draw it with :func:`show`."""
    palette = theme.palette()
    bands = [_band(curve, palette) for curve in curves if curve.low is not None and curve.high is not None]
    traces = bands + [_trace(curve, palette) for curve in curves if len(curve.x)]
    y_range = _range(
        [value for curve in curves for values in (curve.y, curve.low or (), curve.high or ()) for value in values], y
    )
    x_range = _range([value for curve in curves for value in curve.x], x, padding=0.0)
    right = 12
    annotations: list[dict[str, Any]] = []
    if end_labels:
        right = 18 + max((7 * len(curve.label) for curve in curves), default=0)
        annotations = _end_labels(curves, y, y_range, height - 56, palette)
    shapes = []
    for mark in marks:
        shapes.append(
            {
                "type": "line",
                "x0": mark.x,
                "x1": mark.x,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": palette[mark.colour], "width": 1.2, "dash": "4px 3px"},
            }
        )
        where = math.log10(mark.x) if x.log else mark.x
        annotations.append(
            _annotation(
                mark.label, palette["soft"], x=where, y=1, yref="paper", xanchor="left", yanchor="top", xshift=5
            )
        )
    return {
        "data": traces,
        "layout": {
            **_layout(palette, height, right=right),
            "xaxis": _axis(x, x_range, palette, grid=False),
            "yaxis": _axis(y, y_range, palette, grid=True, label=plain_label),
            "annotations": annotations,
            "shapes": shapes,
            "showlegend": False,
            "hovermode": "x unified" if len(curves) > 1 else "closest",
        },
    }


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, its length, its token, and the words at its end."""

    label: str
    value: float
    colour: str
    text: str
    exact: str = ""


def bars(entries: Sequence[Bar], *, x: Axis, row_height: int = 26) -> dict[str, Any]:
    """Horizontal bars with their values at the ends, the first on top."""
    palette = theme.palette()
    height = row_height * len(entries) + 16
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": [entry.label for entry in entries],
                "x": [entry.value for entry in entries],
                "text": [entry.text for entry in entries],
                "textposition": "outside",
                "constraintext": "none",
                "cliponaxis": False,
                "hovertext": [entry.exact or entry.text for entry in entries],
                "hovertemplate": "%{y}: %{hovertext}<extra></extra>",
                "marker": {"color": [palette[entry.colour] for entry in entries], "cornerradius": 3},
                "textfont": {"color": palette["soft"], "size": min(12, row_height - 9)},
            }
        ],
        "layout": {
            **_layout(palette, height, right=64, bottom=6, top=4),
            "bargap": 0.5,
            "xaxis": {**_axis(x, None, palette, grid=False), "visible": False},
            "yaxis": {
                "autorange": "reversed",
                "automargin": True,
                "ticklabelstandoff": 6,
                "tickfont": {"size": 12.5, "color": palette["ink"]},
            },
            "showlegend": False,
        },
    }


def frame(height: int, *, right: int, bottom: int = 40, top: int = 12) -> dict[str, Any]:
    """The layout that all plots share, for a figure of another kind than those here."""
    return _layout(theme.palette(), height, right=right, bottom=bottom, top=top)


@dataclass(frozen=True, slots=True)
class Grid:
    """Values in rows and columns; ``None`` leaves a cell empty. The first row stands at the bottom."""

    values: Sequence[Sequence[float | None]]
    x: Sequence[float]
    y: Sequence[str]
    colour: str = "ink"
    unit: str = ""
    """What a value counts, for the bar of shades and the hover."""
    range: tuple[float, float] | None = None


def grid(
    cells: Grid, *, x: Axis, y: Axis, height: int = 250, over: Sequence[Curve] = (), scale: bool = True
) -> dict[str, Any]:
    """Cells in shades of one colour, with curves over them whose y values are names of rows."""
    palette = theme.palette()
    shades: dict[str, Any] = {
        "type": "heatmap",
        "z": [list(row) for row in cells.values],
        "x": list(cells.x),
        "y": list(cells.y),
        "colorscale": [[0.0, palette["line"]], [1.0, palette[cells.colour]]],
        "hoverongaps": False,
        "hovertemplate": f"{x.title} %{{x}}, {y.title} %{{y}}: %{{z:.3~g}} {cells.unit}<extra></extra>",
        "showscale": scale,
        "colorbar": {
            "title": {"text": cells.unit, "font": {"size": 11, "color": palette["soft"]}, "side": "right"},
            "thickness": 8,
            "outlinewidth": 0,
            "tickfont": {"size": 10.5, "color": palette["faint"]},
        },
    }
    if cells.range is not None:
        shades["zmin"], shades["zmax"] = cells.range
    traces = [_trace(curve, palette) | {"hoverinfo": "skip", "hovertemplate": None} for curve in over]
    step = max(1, -(-len(cells.y) * 20 // max(1, height - 52)))
    return {
        "data": [shades, *traces],
        "layout": {
            **_layout(palette, height, right=12),
            "xaxis": {**_axis(x, None, palette, grid=False), "constrain": "domain"},
            "yaxis": {
                **_axis(y, None, palette, grid=False),
                "type": "category",
                "tickvals": list(cells.y)[::step],
                "ticktext": list(cells.y)[::step],
            },
            "showlegend": False,
        },
    }


def show(figure: dict[str, Any], *, key: str, alt: str) -> None:
    """Draw a figure of this module; ``alt`` says in words what it shows."""
    st.plotly_chart(figure, key=key, theme=None, config=CONFIG, alt=alt)


def _band(curve: Curve, palette: theme.Palette) -> dict[str, Any]:
    low, high = list(curve.low or ()), list(curve.high or ())
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*curve.x, *reversed(curve.x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": palette[curve.colour],
        "opacity": 0.16,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _trace(curve: Curve, palette: theme.Palette) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers" if len(curve.x) == 1 else "lines+markers" if curve.points else "lines",
        "name": curve.label,
        "x": list(curve.x),
        "y": list(curve.y),
        "opacity": curve.opacity,
        "line": {"color": palette[curve.colour], "width": curve.width, "dash": curve.dash},
        "hovertemplate": "%{y:.6~g}" if curve.exact is None else "%{text}",
    }
    if curve.points:
        trace["marker"] = {"size": 5, "color": palette[curve.colour]}
        trace["cliponaxis"] = False
    if curve.exact is not None:
        trace["text"] = list(curve.exact)
    return trace


def _range(values: Sequence[float], axis: Axis, padding: float = 0.06) -> tuple[float, float] | None:
    """The axis's range in Plotly's terms (exponents of ten where it is logarithmic)."""
    if axis.range is not None:
        low, high = axis.range
        return (math.log10(low), math.log10(high)) if axis.log else (low, high)
    known = [value for value in values if math.isfinite(value) and (value > 0 or not axis.log)]
    if not known:
        return None
    low, high = min(known), max(known)
    if axis.log:
        low, high = math.log10(low), math.log10(high)
    space = (high - low) * padding or (abs(high) * padding if padding else 0.5) or 0.5
    return (
        (low - (space if padding else 0), high + (space if padding else 0)) if high > low else (low - 0.5, high + 0.5)
    )


def _axis(
    axis: Axis,
    limits: tuple[float, float] | None,
    palette: theme.Palette,
    *,
    grid: bool,
    label: Callable[[float], str] = power_of_two_label,
) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "title": {"text": axis.title, "font": {"size": 11.5, "color": palette["soft"]}, "standoff": 8},
        "type": "log" if axis.log else "linear",
        "showgrid": grid,
        "gridcolor": palette["line"],
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 11, "color": palette["faint"]},
        "fixedrange": False,
        "automargin": True,
        "tickangle": 0,
    }
    if limits is not None:
        drawn["range"] = list(limits)
    ticks, labels = axis.ticks, axis.tick_labels
    if ticks is None and axis.log == 2 and limits is not None:
        low, high = (math.ceil(limit / math.log10(2) - 1e-9) for limit in limits)
        high = math.floor(limits[1] / math.log10(2) + 1e-9)
        step = max(1, math.ceil((high - low) / 6))
        ticks = [2.0**exponent for exponent in range(low, high + 1, step)]
        labels = [label(tick) for tick in ticks]
    if axis.log == 10 and limits is not None and limits[1] - limits[0] > 1.2:
        drawn["dtick"], drawn["exponentformat"] = 1, "power"  # whole decades alone
    if ticks is not None:
        drawn["tickvals"] = list(ticks)
        drawn["ticktext"] = list(labels) if labels is not None else [f"{tick:g}" for tick in ticks]
    return drawn


def _end_labels(
    curves: Sequence[Curve], y: Axis, limits: tuple[float, float] | None, height: float, palette: theme.Palette
) -> list[dict[str, Any]]:
    """Each curve's name at its last point, moved apart where two would overlap."""
    if limits is None:
        return []
    scale = height / (limits[1] - limits[0])
    ends: list[tuple[float, float, Curve]] = []
    for curve in curves:
        if curve.label and len(curve.x) and math.isfinite(curve.y[-1]) and (curve.y[-1] > 0 or not y.log):
            value = math.log10(curve.y[-1]) if y.log else curve.y[-1]
            ends.append((value, (value - limits[0]) * scale, curve))
    ends.sort(key=lambda end: end[1])
    placed: list[dict[str, Any]] = []
    floor = -math.inf
    for value, position, curve in ends:
        shown = max(position, floor + 14)
        floor = shown
        placed.append(
            _annotation(
                curve.label,
                palette[curve.colour],
                x=1,
                xref="paper",
                y=value,
                xanchor="left",
                yanchor="middle",
                xshift=6,
                yshift=shown - position,
            )
        )
    return placed


def _annotation(text: str, colour: str, **place: Any) -> dict[str, Any]:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return {"text": escaped, "showarrow": False, "font": {"size": 11.5, "color": colour}, **place}


def _layout(palette: theme.Palette, height: int, *, right: int, bottom: int = 40, top: int = 12) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 44, "r": right, "t": top, "b": bottom},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 12, "color": palette["ink"]},
        "hoverlabel": {
            "bgcolor": palette["panel"],
            "bordercolor": palette["line"],
            "font": {"family": _FONT, "size": 12, "color": palette["ink"]},
        },
        "dragmode": "zoom",
    }
