"""Plots of a design's size: a treemap of its tensors, bars layer by layer, shares as it grows, operators at a ridge.

They look like those of :mod:`pages.widgets.charts`, which draws them (``charts.show``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pages.widgets import charts, figures, theme, words
from planner import ArchitectureSpec, Operator
from planner.distribution import LayerCost, TensorShare
from planner.growth import Growth
from planner.intensity import Bound

BAR_INDENT = 64
"""Pixels left of the bars, for the marks; a strip beneath them begins there too."""
_FIGURES = {"parameters": figures.count, "flops": figures.flops, "cache_bytes": figures.memory}


def _axis(palette: theme.Palette, title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 11.5, "color": palette["soft"]}, "standoff": 8},
        "gridcolor": palette["line"],
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 11, "color": palette["faint"]},
        "automargin": True,
        "tickangle": 0,
        **more,
    }


def _layout(palette: theme.Palette, height: int, **more: Any) -> dict[str, Any]:
    plain = charts.lines([], x=charts.Axis(), y=charts.Axis(), height=height, end_labels=False)["layout"]
    kept = {name: plain[name] for name in ("height", "paper_bgcolor", "plot_bgcolor", "font", "hoverlabel")}
    return {**kept, "margin": {"l": 44, "r": 12, "t": 8, "b": 40}, "showlegend": False, "dragmode": "zoom", **more}


def treemap(shares: Sequence[TensorShare], height: int = 360) -> dict[str, Any]:
    """Every kind of tensor as an area, inside its component; equal areas are equal counts of parameters."""
    palette = theme.palette()
    components: dict[str, int] = {}
    for each in shares:
        components[each.component] = components.get(each.component, 0) + each.count
    total = sum(components.values())
    nodes: list[tuple[str, str, str, int, str]] = []
    for name, count in components.items():
        colour = palette[theme.component_token(name)]
        nodes.append((name, words.kind_label(name), "", count, colour))
        inside = [each for each in shares if each.component == name]
        if len(inside) > 1:
            nodes += [
                (f"{name}/{each.name}", each.name.removesuffix(".weight"), name, each.count, colour) for each in inside
            ]
    ids, labels, parents, values, colours = (list(column) for column in zip(*nodes, strict=True))
    return {
        "data": [
            {
                "type": "treemap",
                "ids": ids,
                "labels": labels,
                "parents": parents,
                "values": values,
                "branchvalues": "total",
                "text": [_hover(count, total) for count in values],
                "texttemplate": "%{label}<br>%{percentRoot:.1%}",
                "hovertemplate": "%{label}: %{text}<extra></extra>",
                "marker": {
                    "colors": colours,
                    "line": {"width": 1.2, "color": palette["panel"]},
                    "pad": {"t": 25, "l": 2, "r": 2, "b": 2},
                    "cornerradius": 4,
                },
                "textfont": {"size": 12, "color": [_readable_on(colour) for colour in colours]},
                "tiling": {"packing": "squarify", "pad": 2},
                "pathbar": {"visible": False},
                "root": {"color": "rgba(0,0,0,0)"},
            }
        ],
        "layout": {
            **_layout(palette, height),
            "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
            "uniformtext": {"minsize": 11, "mode": "hide"},
        },
    }


def _readable_on(colour: str) -> str:
    """Dark or white text, whichever has the greater contrast on ``colour`` (WCAG 2.2, relative luminance)."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#14171b" if (luminance + 0.05) ** 2 > 0.059 * 1.05 else "#ffffff"


def _hover(count: int, total: int) -> str:
    return f"{figures.count(count).exact} ({figures.percent(count / total)})"


def layers(spec: ArchitectureSpec, costs: Sequence[LayerCost], measure: str, height: int = 190) -> dict[str, Any]:
    """A bar a layer, in the colours of the strip: what its mixers and norms have of ``measure``."""
    palette = theme.palette()
    figure = _FIGURES[measure]
    traces = []
    own = [layer for _, layer in spec.iterate_layers()]
    for part, label in (("sequence_mixer", "sequence mixer"), ("channel_mixer", "channel mixer"), ("norms", "norms")):
        values = [getattr(cost, part) for cost in costs]
        if not any(values):
            continue
        colours, said = [], []
        for layer, value in zip(own, values, strict=True):
            mixer = getattr(layer, part, None)
            colours.append(palette["norm" if mixer is None else theme.mixer_token(mixer)])
            name = label if mixer is None else words.described(mixer)
            said.append(f"{name}: {figure(value)} ({figure(value).exact})" if value else f"{name}: nothing")
        traces.append(
            {
                "type": "bar",
                "x": [cost.index for cost in costs],
                "y": values,
                "marker": {"color": colours, "line": {"width": 0}},
                "text": said,
                "textposition": "none",
                "hovertemplate": "layer %{x} · %{text}<extra></extra>",
            }
        )
    most = max((cost.sequence_mixer + cost.channel_mixer + cost.norms for cost in costs), default=0)
    return {
        "data": traces,
        "layout": _layout(
            palette,
            height,
            barmode="stack",
            bargap=0.12,
            margin={"l": BAR_INDENT, "r": 0, "t": 8, "b": 36},
            xaxis=_axis(palette, "layer", showgrid=False, automargin=False, range=[-0.5, len(costs) - 0.5]),
            yaxis=_axis(palette, "", showgrid=True, automargin=False, **_marks(most, figure)),
        ),
    }


def _marks(most: float, figure: Any) -> dict[str, Any]:
    """Four marks from nothing to the most, in the words that people read."""
    if not most:
        return {"range": [0, 1], "tickvals": []}
    values = [most * step / 4 for step in range(5)]
    return {"range": [0, most * 1.04], "tickvals": values, "ticktext": ["0", *(str(figure(v)) for v in values[1:])]}


def growth(found: Growth, height: int = 260) -> dict[str, Any]:
    """Shares over the parameters of the grown model, stacked, the factors beneath, labelled at their ends."""
    palette = theme.palette()
    order = sorted(found.shares, key=lambda name: -max(found.shares[name]))
    traces, notes = [], []
    height_left, floor = 0.0, -8.0
    for name in order:
        colour = palette[theme.component_token("lm_head" if name == "embedding" else name)]
        label = "Embedding and head" if name == "embedding" else words.kind_label(name)
        shares = found.shares[name]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "stackgroup": "all",
                "x": list(found.parameters),
                "y": [100 * share for share in shares],
                "name": label,
                "line": {"width": 0.6, "color": colour},
                "fillcolor": colour,
                "text": [figures.percent(share) for share in shares],
                "hovertemplate": "%{text}",
            }
        )
        if shares[-1] > 0.02:
            # Labels of thin bands are moved up, so that none lies on another.
            floor = max(100 * (height_left + shares[-1] / 2), floor + 8)
            notes.append(
                {
                    "x": 1,
                    "xref": "paper",
                    "y": floor,
                    "text": label,
                    "showarrow": False,
                    "xanchor": "left",
                    "xshift": 6,
                    "font": {"size": 11.5, "color": palette["ink"]},
                }
            )
        height_left += shares[-1]
    here = min(range(len(found.factors)), key=lambda index: abs(found.factors[index] - 1))
    marks = [found.parameters[index] for index in (0, here, len(found.parameters) - 1)]
    return {
        "data": traces,
        "layout": _layout(
            palette,
            height,
            margin={"l": 44, "r": 128, "t": 16, "b": 40},
            hovermode="x unified",
            annotations=[
                *notes,
                {
                    "x": _log10(found.parameters[here]),
                    "y": 1,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "text": "this design",
                    "showarrow": False,
                    "font": {"size": 11.5, "color": palette["soft"]},
                },
            ],
            shapes=[
                {
                    "type": "line",
                    "x0": found.parameters[here],
                    "x1": found.parameters[here],
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": palette["ink"], "width": 1.2, "dash": "4px 3px"},
                }
            ],
            xaxis=_axis(
                palette,
                "parameters of the grown model",
                type="log",
                showgrid=False,
                tickvals=marks,
                ticktext=[str(figures.count(mark)) for mark in marks],
                ticklabelstandoff=5,
                range=[_log10(found.parameters[0]), _log10(found.parameters[-1])],
            ),
            yaxis=_axis(palette, "share, %", range=[0, 100]),
        ),
    }


def flops_line(
    label: str, lengths: Sequence[int], values: Sequence[float], colour: str, dash: str = "solid"
) -> charts.Curve:
    """A curve of FLOPs a token, drawn in GFLOPs, with the exact count on hover."""
    exact = [f"{figures.flops(value)} ({value:,.0f})" for value in values]
    return charts.Curve(label, lengths, [value / 1e9 for value in values], colour, dash, 2.0, exact)


def flops_axis(curves: Sequence[charts.Curve]) -> charts.Axis:
    """A logarithmic axis of GFLOPs a token with marks at 1, 2 and 5 of each decade that the curves reach."""
    values = [value for curve in curves for value in curve.y if value > 0]
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    steps = (1,) if high / low > 300 else (1, 2, 5)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [step * 10.0**exponent for exponent in range(first, last + 1) for step in steps]
    marks = [mark for mark in marks if low * 0.8 <= mark <= high * 1.25] or [low]
    labels = [f"{mark:,.10g}" for mark in marks]
    edges = (min(low * 0.85, marks[0] * 0.9), max(high * 1.15, marks[-1] * 1.1))
    return charts.Axis("GFLOPs a token", log=10, ticks=marks, tick_labels=labels, range=edges)


def _log10(value: float) -> float:
    return math.log10(value)


def intensity(
    found: Sequence[Operator], limits: Sequence[Bound], ridge: float | None, dtype: str, row_height: int = 31
) -> dict[str, Any]:
    """Operators as points on a line each; the area of a point is its share of the time, the line is the ridge."""
    palette = theme.palette()
    shown = [each for each in found if each.intensity > 0]
    share = {id(bound.operator): bound for bound in limits}
    labels = [operator_label(each) for each in shown]
    sizes, said = [], []
    for each in shown:
        bound = share.get(id(each))
        part = bound.share if bound is not None else 0.0
        sizes.append(7 + 26 * part**0.5)
        words_of = (
            f"{figures.flops(each.flops)} over {figures.memory(each.moved_bytes)}: {each.intensity:,.3g} FLOPs a byte"
        )
        if bound is not None:
            held = "memory" if bound.by == "memory" else "arithmetic"
            words_of += f"<br>held back by {held}: {figures.duration(bound.seconds)} at best, {figures.percent(part)}"
        said.append(words_of)
    values = [each.intensity for each in shown] + ([ridge] if ridge else [])
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    limits_of_axis = [_log10(low) - 0.25, _log10(high) + 0.3]
    height = row_height * max(1, len(shown)) + 74
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    if ridge:
        shapes.append(
            {
                "type": "rect", "layer": "below", "x0": 10 ** limits_of_axis[0], "x1": ridge, "yref": "paper",
                "y0": 0, "y1": 1, "line": {"width": 0}, "fillcolor": palette["line"], "opacity": 0.35,
            }
        )  # fmt: skip
        shapes.append(
            {
                "type": "line", "x0": ridge, "x1": ridge, "yref": "paper", "y0": 0, "y1": 1,
                "line": {"color": palette["accent"], "width": 1.6},
            }
        )  # fmt: skip
        right = _log10(ridge) > sum(limits_of_axis) / 2
        notes.append(
            {
                "x": _log10(ridge),
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "right" if right else "left",
                "text": f"ridge of {dtype}: {ridge:,.0f}",
                "showarrow": False,
                "font": {"size": 11.5, "color": palette["accent"]},
            }
        )
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [each.intensity for each in shown],
                "y": labels,
                "text": said,
                "hovertemplate": "%{y}: %{text}<extra></extra>",
                "marker": {
                    "size": sizes,
                    "color": [palette[theme.component_token(each.component)] for each in shown],
                    "line": {"width": 1, "color": palette["panel"]},
                    "symbol": ["circle-open" if each.status == "approximated" else "circle" for each in shown],
                },
                "cliponaxis": False,
            }
        ],
        "layout": _layout(
            palette,
            height,
            margin={"l": 44, "r": 16, "t": 24, "b": 40},
            shapes=shapes,
            annotations=notes,
            xaxis=_axis(
                palette, "FLOPs a byte", type="log", showgrid=True, range=limits_of_axis, **_decades(limits_of_axis)
            ),
            yaxis=_axis(
                palette,
                "",
                autorange="reversed",
                showgrid=True,
                type="category",
                tickfont={"size": 12, "color": palette["ink"]},
            ),
        ),
    }


def _decades(limits: Sequence[float]) -> dict[str, Any]:
    low, high = math.ceil(limits[0]), math.floor(limits[1])
    values = [10.0**exponent for exponent in range(low, high + 1)]
    if len(values) < 2:
        values = [step * 10.0**exponent for exponent in range(low - 1, high + 1) for step in (1, 2, 5)]
        values = [value for value in values if limits[0] <= math.log10(value) <= limits[1]]
    return {"tickvals": values, "ticktext": [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values]}


def operator_label(operator: Operator) -> str:
    """An operator for people: ``Attention · q_proj``."""
    kind = "MoE" if operator.component == "moe" else words.kind_label(operator.component)
    if operator.name == operator.component:
        return kind
    return f"{kind} · {'between tokens' if operator.name == 'mixing' else operator.name}"
