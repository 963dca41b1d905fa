"""What each field does to a number: a tornado, the fields beside it, and how far one goes, in words."""

from __future__ import annotations

from typing import Any

from pages.widgets import charts, chrome, figures, theme
from pages.widgets.plan_form import label_of
from planner.sensitivity import Limit, Swing, Tornado
from planner.units import digits_text

ROW_HEIGHT = 26


def text(value: float, unit: str) -> str:
    """A value of an output with its unit."""
    match unit:
        case "bytes":
            return str(figures.memory(value))
        case "flops":
            return str(figures.flops(value))
        case "seconds":
            return str(figures.duration(value))
        case "per_second":
            return f"{digits_text(value, 3)} a second"
    return str(figures.count(value))


def field_label(name: str) -> str:
    """A field for people: ``plan.context_length`` as ``Context length``."""
    owner, _, field = name.rpartition(".")
    return label_of(field) if owner in ("", "plan") else f"{label_of(field)} · {owner.replace('_', ' ')}"


def figure(found: Tornado, count: int) -> dict[str, Any]:
    """Bars from the least to the greatest output of each field, with the present value as a line."""
    palette = theme.palette()
    shown = found.swings[:count]
    scale, unit = _scale(found)
    rows = [field_label(swing.field) for swing in shown]
    # Two fields of one name stay two rows.
    labels = [row if rows.count(row) == 1 else f"{row} ({swing.value})" for row, swing in zip(rows, shown, strict=True)]
    base = found.base / scale
    data = []
    for side, colour in (("low", "faint"), ("high", "soft")):
        ends = [getattr(swing, side) / scale for swing in shown]
        data.append(
            {
                "type": "bar", "orientation": "h", "y": labels, "base": base, "x": [end - base for end in ends],
                "marker": {"color": palette[colour], "cornerradius": 3},
                "text": [_end(swing, side) for swing in shown], "textposition": "outside", "cliponaxis": False,
                "constraintext": "none", "textfont": {"size": 11, "color": palette["soft"]},
                "hovertext": [_hover(swing, found.unit) for swing in shown],
                "hovertemplate": "%{y}<br>%{hovertext}<extra></extra>", "name": side,
            }
        )  # fmt: skip
    low = min((swing.low for swing in shown), default=found.base) / scale
    high = max((swing.high for swing in shown), default=found.base) / scale
    room = (high - low) * 0.16 or 1
    layout = charts.frame(ROW_HEIGHT * max(len(shown), 1) + 64, right=24)
    return {
        "data": data,
        "layout": {
            **layout,
            "barmode": "overlay",
            "bargap": 0.42,
            "showlegend": False,
            "xaxis": {
                "title": {"text": unit, "font": {"size": 11.5, "color": palette["soft"]}},
                "range": [low - room, high + room],
                "gridcolor": palette["line"],
                "zeroline": False,
                "tickfont": {"size": 11, "color": palette["faint"]},
            },
            "yaxis": {
                "autorange": "reversed", "automargin": True, "ticklabelstandoff": 6,
                "tickfont": {"size": 12, "color": palette["ink"]},
            },
            "shapes": [
                {
                    "type": "line", "x0": base, "x1": base, "yref": "paper", "y0": 0, "y1": 1,
                    "line": {"color": palette["accent"], "width": 1.2, "dash": "4px 3px"},
                }
            ],
        },
    }  # fmt: skip


def _scale(found: Tornado) -> tuple[float, str]:
    largest = max([found.base, *(swing.high for swing in found.swings)])
    steps = {
        "bytes": ((2**30, "GiB"), (2**20, "MiB")),
        "flops": ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs")),
        "count": ((1e9, "B"), (1e6, "M")),
        "seconds": ((1.0, "s"), (1e-3, "ms")),
    }
    for step, name in steps.get(found.unit, ()):
        if largest >= step:
            return step, name
    return 1.0, {"per_second": "a second", "bytes": "bytes", "flops": "FLOPs", "seconds": "s"}.get(found.unit, "")


def _end(swing: Swing, side: str) -> str:
    value = swing.low_value if side == "low" else swing.high_value
    return "" if value == swing.value else _said(value)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else "none" if value is None else str(value)


def _hover(swing: Swing, unit: str) -> str:
    tried = [f"now {_said(swing.value)}"]
    for change in swing.changes:
        said = "not possible" if change.output is None else text(change.output, unit)
        tried.append(f"{_said(change.value)}: {said}")
    shown = tried[:9]
    return "<br>".join(shown) + (f"<br>… {len(tried) - 9} more" if len(tried) > 9 else "")


def rest_html(found: Tornado) -> str:
    """HTML of the fields without a bar."""
    unmoved = ", ".join(field_label(name) for name in found.unmoved)
    items = "".join(
        f"<li><b>{chrome.escape(field_label(name))}</b>: {chrome.escape(reason)}</li>" for name, reason in found.refused
    )
    return (
        f'<p class="pl-note">They change nothing of it: {chrome.escape(unmoved or "none")}.</p>'
        f'<ul class="pl-list">{items}</ul>'
    )


def limit_html(limit: Limit, now: int) -> str:
    """HTML of how far a field goes."""
    if limit.value is None:
        return (
            f'<p class="pl-note"><b class="pl-bad">Nothing fits.</b> {chrome.escape(limit.reason)} '
            f"(it is {now:,} now).</p>"
        )
    beyond = "" if limit.next_value is None else f"; {limit.next_value:,} no longer fits"
    why = chrome.escape(limit.reason) if limit.next_value is None else ""
    return f'<p class="pl-note"><b class="pl-figures">{limit.value:,}</b> (now {now:,}){beyond}. {why}</p>'
