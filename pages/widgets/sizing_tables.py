"""Tables of the sizing page: components with what is active of them, operators with what holds them back."""

from __future__ import annotations

from collections.abc import Sequence

from pages.widgets import chrome, figures, sizing_plots, theme, words
from planner import Operator
from planner.cache import CacheUse
from planner.distribution import ComponentShare
from planner.intensity import Bound


def components_html(parts: Sequence[ComponentShare]) -> str:
    """Parameters and active parameters of each kind of component, with their sums."""
    rows = "".join(
        f"<tr><td>{chrome.swatch(theme.component_token(part.component), words.kind_label(part.component))}</td>"
        f"{_cell(part.count, part.share)}{_cell(part.active, part.active_share)}</tr>"
        for part in parts
    )
    total, active = sum(part.count for part in parts), sum(part.active for part in parts)
    return (
        '<table class="pl-table"><thead><tr><th></th><th>Parameters</th><th>Active</th></tr></thead>'
        f"<tbody>{rows}<tr><td><b>All</b></td>{_cell(total)}{_cell(active)}</tr></tbody></table>"
    )


def _cell(count: int, share: float | None = None) -> str:
    figure = figures.count(count)
    part = "" if share is None else f'<br><span class="pl-soft">{figures.percent(share)}</span>'
    return f'<td class="fig" title="{chrome.escape(figure.exact)}">{chrome.escape(figure)}{part}</td>'


def cache_html(use: CacheUse) -> str:
    """The cache as its tensors fill it and as the engine's blocks take it up, and what is taken of the engine."""
    ideal, allocated = figures.memory(use.ideal_bytes), figures.memory(use.allocated_bytes)
    rows = "".join(
        f'<tr><td>{chrome.status_glyph(status)} {label}</td><td class="fig" title="{chrome.escape(figure.exact)}">'
        f"{chrome.escape(figure)}</td></tr>"
        for label, figure, status in (
            ("Cache, filled", ideal, use.status),
            ("Cache, allocated in blocks", allocated, use.allocated_status),
        )
    )
    return (
        f'<table class="pl-table">{rows}</table>'
        f'<p class="pl-note">Written in {chrome.escape(use.scheme)}. {chrome.escape(use.assumption)}</p>'
    )


def operators_html(found: Sequence[Operator], held: Sequence[Bound]) -> str:
    """Intensity of each operator, and on the device what decides and how much of the time it takes at best."""
    by_operator = {id(bound.operator): bound for bound in held}
    rows = []
    for each in found:
        bound = by_operator.get(id(each))
        moved, done = figures.memory(each.moved_bytes), figures.flops(each.flops)
        decides = "" if bound is None else "memory" if bound.by == "memory" else "arithmetic"
        share = "" if bound is None else figures.percent(bound.share)
        value = f"{each.intensity:,.3g}" if each.intensity < 1000 else f"{each.intensity:,.0f}"
        rows.append(
            f"<tr><td>{chrome.swatch(theme.component_token(each.component), sizing_plots.operator_label(each))}</td>"
            f'<td class="fig" title="{chrome.escape(f"{done.exact} over {moved.exact}")}">{value}</td>'
            f'<td style="white-space:nowrap">{decides} <span class="pl-soft">{share}</span></td></tr>'
        )
    return (
        '<table class="pl-table"><thead><tr><th>Operator</th><th>FLOPs a byte</th>'
        '<th title="and the share of the time at best">Decided by</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
