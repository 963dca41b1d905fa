"""Pairs of predicted and measured on a page: those of stored results, the scatter, and the tables of errors."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pages.widgets import charts, chrome, job_view, theme, words
from planner import ArchitectureSpec, PlannerError, size
from planner.ledger import BY, ErrorSummary, Pair, kinds_of_spec, over_time, summarise
from planner.spec import parse_spec

if TYPE_CHECKING:
    from db.engine import Store

SHOWN = 10
ROW_HEIGHT = 118
"""Pixels of one quantity's row in the plot over time."""
MOST_SHOWN_ERROR = 1.0
"""Errors beyond this are drawn at the edge of the plot over time, with their value on hover."""
MOST_GROUPS = 16
_SCALES = {"bytes": (2**30, "GiB"), "seconds": (1.0, "s")}


def stored_pairs(store: Store, jobs: Sequence[str | None] = (None,)) -> list[Pair]:
    """The pairs of all stored results, or of those of some kinds of jobs, the newest first."""
    found = []
    for result in itertools.chain.from_iterable(store.results.list(kind=kind) for kind in jobs):
        rows = result.values.get("rows", ())
        pairs = [row for row in rows if _is_pair(row)]
        if not pairs:
            continue
        whole = result.values.get("spec") or store.designs.revision(result.revision_id).spec
        for row in pairs:
            described = _described(json.dumps(row.get("spec") or whole, sort_keys=True))
            if described is None:
                continue
            kinds, parameters = described
            found.append(
                Pair(
                    quantity=row["quantity"],
                    unit=row.get("unit", ""),
                    predicted=float(row["predicted"]),
                    measured=float(row["measured"]),
                    device=str(result.environment.get("device", "not recorded")),
                    kinds=kinds,
                    parameters=parameters,
                    origin="own",
                    label=f"{row.get('label') or result.name}, {result.kind}",
                    source=result.job_id,
                    when=result.created_at.date(),
                    profile=str(row.get("profile", "")),
                )
            )
    return found


def _is_pair(row: Any) -> bool:
    return (
        isinstance(row, Mapping)
        and isinstance(row.get("quantity"), str)
        and all(isinstance(row.get(name), (int, float)) for name in ("predicted", "measured"))
    )


@lru_cache(maxsize=512)
def _described(text: str) -> tuple[frozenset[str], int] | None:
    """Kinds of components and parameters; ``None`` of a specification that is not read any more."""
    try:
        read: ArchitectureSpec = parse_spec(json.loads(text))
    except PlannerError:
        return None
    return kinds_of_spec(read), size(read).parameters.total


def scatter(pairs: Sequence[Pair], unit: str) -> dict[str, Any]:
    """Predicted against measured on log axes, with the line on which they are equal and those 15% off."""
    palette = theme.palette()
    scale, name = _SCALES[unit]
    values = [value / scale for pair in pairs for value in (pair.predicted, pair.measured) if value > 0]
    low, high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.15
    ends = [10**low, 10**high]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "x": ends, "y": [factor * end for end in ends], "hoverinfo": "skip",
            "line": {"color": palette["line" if factor != 1 else "soft"], "width": 1.2, "dash": dash},
        }
        for factor, dash in ((1.0, "solid"), (1.15, "dot"), (1 / 1.15, "dot"))
    ]  # fmt: skip
    for origin, symbol, colour in (("published", "circle-open", "soft"), ("own", "circle", "accent")):
        chosen = [pair for pair in pairs if pair.origin == origin and pair.predicted > 0 and pair.measured > 0]
        if chosen:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": origin,
                    "x": [pair.measured / scale for pair in chosen], "y": [pair.predicted / scale for pair in chosen],
                    "marker": {"symbol": symbol, "size": 7, "color": palette[colour], "line": {"width": 1.2}},
                    "text": [_hover(pair) for pair in chosen], "hovertemplate": "%{text}<extra></extra>",
                }
            )  # fmt: skip
    axis = {
        "type": "log", "range": [low, high], "gridcolor": palette["line"], "zeroline": False, "dtick": 1,
        "tickfont": {"size": 11, "color": palette["faint"]}, "automargin": True,
    }  # fmt: skip
    font = {"size": 11.5, "color": palette["soft"]}
    return {
        "data": data,
        "layout": {
            **charts.frame(340, right=12),
            "xaxis": {**axis, "title": {"text": f"measured, {name}", "font": font}},
            "yaxis": {**axis, "title": {"text": f"predicted, {name}", "font": font}},
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def over_time_plot(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Each error on the day of its measurement, a row a quantity over one axis of time, and the median of each quarter.

    Above the line the prediction was too high. Pairs without a day are left out.
    """
    palette = theme.palette()
    dated = [pair for pair in pairs if pair.when is not None]
    rows = {name: [pair for pair in dated if pair.quantity == name] for name in _quantities(dated)}
    # The pad above each row holds its name.
    share, pad = 1 / max(len(rows), 1), 24 / (ROW_HEIGHT * max(len(rows), 1))
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    annotations = []
    for place, (quantity, known) in enumerate(rows.items()):
        number = "" if place == 0 else str(place + 1)
        axes = {"xaxis": "x", "yaxis": f"y{number}"}
        for origin, symbol, colour in (("published", "circle-open", "soft"), ("own", "circle", "accent")):
            chosen = [pair for pair in known if pair.origin == origin]
            if chosen:
                data.append(
                    {
                        "type": "scatter", "mode": "markers", "name": f"{quantity}, {origin}", **axes,
                        "x": [str(pair.when) for pair in chosen], "y": [_within(pair.error) for pair in chosen],
                        "marker": {"symbol": symbol, "size": 6, "color": palette[colour], "opacity": 0.75},
                        "text": [_hover(pair) for pair in chosen], "hovertemplate": "%{text}<extra></extra>",
                    }
                )  # fmt: skip
        quarters = over_time(known)
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": f"{quantity}, median", **axes, "connectgaps": False,
                "x": [day for each in quarters for day in (str(each.start), str(each.end), None)],
                "y": [value for each in quarters for value in (*[_within(each.summary.bias)] * 2, None)],
                "line": {"color": palette["ink"], "width": 2.4},
                "text": [text for each in quarters for text in (*[_quarter_text(each.summary)] * 2, "")],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )  # fmt: skip
        widest = min(max(abs(pair.error) for pair in known), MOST_SHOWN_ERROR)
        edge = 1.12 * max(widest, 0.01)
        top = 1 - place * share - pad
        layout[f"yaxis{number}"] = {
            "domain": [1 - (place + 1) * share + 0.08 * share, top], "range": [-edge, edge], "tickformat": "+.3~p",
            "nticks": 5, "gridcolor": palette["line"], "zeroline": True, "zerolinecolor": palette["faint"],
            "zerolinewidth": 1.2, "tickfont": {"size": 10.5, "color": palette["faint"]}, "automargin": True,
        }  # fmt: skip
        annotations.append(
            {
                "xref": "paper", "yref": "paper", "x": 0, "y": top, "xanchor": "left", "yanchor": "bottom",
                "text": f"<b>{chrome.escape(quantity)}</b>", "showarrow": False,
                "font": {"size": 11.5, "color": palette["soft"]},
            }
        )  # fmt: skip
    return {
        "data": data,
        "layout": {
            **charts.frame(ROW_HEIGHT * max(len(rows), 1) + 40, right=12),
            **layout,
            "xaxis": {
                "type": "date", "gridcolor": palette["line"], "tickfont": {"size": 11, "color": palette["faint"]},
                "anchor": "free", "position": 0, "hoverformat": "%d %b %Y",
            },
            "annotations": annotations,
            "showlegend": False,
            "hovermode": "closest",
        },
    }  # fmt: skip


def _quantities(pairs: Sequence[Pair]) -> list[str]:
    """The quantities of pairs, the most often measured first."""
    return [name for name, _ in Counter(pair.quantity for pair in pairs).most_common()]


def _within(error: float) -> float:
    return max(-MOST_SHOWN_ERROR, min(error, MOST_SHOWN_ERROR))


def _quarter_text(summary: ErrorSummary) -> str:
    pairs = "1 pair" if summary.count == 1 else f"{summary.count:,} pairs"
    return f"{summary.name}: {pairs}, in the median {summary.bias:+.1%}, worst {summary.worst:.1%}"


def components_html(pairs: Sequence[Pair], href: Callable[[str, str], str]) -> str:
    """HTML of the median error of each component's pairs by quantity, the worst component first.

    ``href`` gives the address of a component and a quantity.
    """
    kinds = [each.name for each in summarise(pairs, BY["component"])]
    quantities = _quantities(pairs)
    head = "".join(f"<th>{chrome.escape(text)}</th>" for text in ("Component", *quantities))
    body = []
    for kind in kinds:
        of_kind = {each.name: each for each in summarise([p for p in pairs if kind in p.kinds], BY["quantity"])}
        cells = "".join(_cell(of_kind.get(quantity), href(kind, quantity)) for quantity in quantities)
        swatch = chrome.swatch(theme.component_token(kind), words.kind_label(kind))
        body.append(f"<tr><td>{swatch}</td>{cells}</tr>")
    return f'<div class="pl-scroll"><table class="pl-table"><tr>{head}</tr>{"".join(body)}</table></div>'


def _cell(summary: ErrorSummary | None, address: str) -> str:
    if summary is None:
        return '<td class="fig pl-soft">–</td>'
    tone = job_view.error_tone(summary.median)
    hover = f"{summary.count:,} pairs, nine in ten within {summary.ninth_decile:.1%}, worst {summary.worst:.1%}"
    return (
        f'<td class="fig" title="{chrome.escape(hover)}"><a href="{chrome.escape(address)}" target="_self">'
        f'<span class="{tone}">{summary.median:.1%}</span></a> <span class="pl-soft">of {summary.count:,}</span></td>'
    )


def _hover(pair: Pair) -> str:
    predicted, measured = (job_view.quantity_text(value, pair.unit) for value in (pair.predicted, pair.measured))
    lines = [
        pair.label, f"{pair.quantity}, {pair.device}", f"predicted {predicted}, measured {measured}: {pair.error:+.1%}",
        pair.source if pair.origin == "published" else f"job {pair.source}",
    ]  # fmt: skip
    return "<br>".join(chrome.escape(line) for line in lines)


def summary_html(pairs: Sequence[Pair], by: Callable[[Pair], Iterable[str]], title: str) -> str:
    """HTML of the errors by group."""
    groups = summarise(pairs, by)
    head = "".join(f"<th>{text}</th>" for text in (title, "Pairs", "Median", "Nine of ten", "Worst", "Leaning"))
    rows = "".join(
        f'<tr><td>{chrome.escape(each.name)}</td><td class="fig">{each.count:,}</td>'
        f'<td class="fig">{each.median:.1%}</td><td class="fig">{each.ninth_decile:.1%}</td>'
        f'<td class="fig">{each.worst:.1%}</td><td class="fig">{job_view.error_html(each.bias)}</td></tr>'
        for each in groups[:MOST_GROUPS]
    )
    more = f'<p class="pl-note">{len(groups) - MOST_GROUPS} more.</p>' if len(groups) > MOST_GROUPS else ""
    return f'<div class="pl-scroll"><table class="pl-table"><tr>{head}</tr>{rows}</table></div>{more}'


def worst_html(pairs: Sequence[Pair]) -> str:
    """HTML of the largest errors."""
    chosen = sorted(pairs, key=lambda pair: -abs(pair.error))[:SHOWN]
    head = "".join(f"<th>{text}</th>" for text in ("Run", "Predicted", "Measured", "Error"))
    rows = "".join(
        f'<tr title="{chrome.escape(pair.source)}"><td class="pl-break">{chrome.escape(pair.label)}<br>'
        f'<span class="pl-soft">{chrome.escape(f"{pair.quantity}, {pair.device}")}</span></td>'
        f'<td class="fig">{job_view.quantity_text(pair.predicted, pair.unit)}</td>'
        f'<td class="fig">{job_view.quantity_text(pair.measured, pair.unit)}</td>'
        f'<td class="fig">{job_view.error_html(pair.error)}</td></tr>'
        for pair in chosen
    )
    return f'<div class="pl-scroll"><table class="pl-table"><tr>{head}</tr>{rows}</table></div>'


def reasons_html(reasons: Mapping[str, int]) -> str:
    """HTML of why readings have no prediction, the commonest first."""
    items = "".join(
        f"<li>{count:,} × {chrome.escape(reason)}</li>"
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
    )
    return f'<ul class="pl-list">{items}</ul>'
