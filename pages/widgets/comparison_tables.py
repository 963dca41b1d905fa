"""The tables of a comparison as HTML, for the page and for its export."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pages.widgets import chrome, figures
from planner.comparison import ComparisonRow, Difference, Spread
from planner.diff import Quantities, SpecDiff
from planner.units import digits_text


def value_text(value: float | None, unit: str) -> str:
    """A value for people."""
    if value is None:
        return "not modelled"
    match unit:
        case "bytes":
            return str(figures.memory(value))
        case "flops":
            return str(figures.flops(value))
        case "seconds":
            return str(figures.duration(value))
        case "count" | "tokens":
            return str(figures.count(value))
    return digits_text(value, 4)


def exact_text(value: float | None, unit: str) -> str:
    """The whole value, for the hover and the export."""
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if float(value).is_integer() else f"{value:,.6g} {unit}"


def change_text(row: ComparisonRow, index: int) -> str:
    """The change against the baseline, relative and absolute."""
    absolute, relative = row.absolute[index], row.relative[index]
    if absolute is None:
        return ""
    if absolute == 0:
        return "same"
    sign = "+" if absolute > 0 else "−"
    size = value_text(abs(absolute), row.unit)
    return f"{sign}{size}" if relative is None else f"{sign}{figures.percent(abs(relative))} ({sign}{size})"


def numbers_html(rows: Sequence[ComparisonRow], names: Sequence[str], baseline: int, differences_only: bool) -> str:
    """Quantities down, designs across; the baseline's column says so, the others their change."""
    shown = [row for row in rows if row.differs or not differences_only]
    head = "".join(f"<th>{chrome.variant_tag(index)} {chrome.escape(name)}</th>" for index, name in enumerate(names))
    body = []
    for row in shown:
        cells = []
        for index, value in enumerate(row.values):
            change = "baseline" if index == baseline else change_text(row, index)
            cells.append(
                f'<td class="fig" title="{chrome.escape(exact_text(value, row.unit))}">'
                f"{chrome.escape(value_text(value, row.unit))}<br>"
                f'<span class="pl-soft">{chrome.escape(change)}</span></td>'
            )
        label = f"{chrome.status_glyph(row.status)} {chrome.escape(row.quantity)}"
        body.append(f"<tr><td>{label}</td>{''.join(cells)}</tr>")
    return f'<table class="pl-table"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def changes_html(found: SpecDiff) -> str:
    """What each changed field did alone and what fields did together; the last line is the sum of the others."""
    lines = []
    for change in found.changes:
        place, _, field = change.path.rpartition(".")
        hover = f"{change.path}: {_shown(change.before)} → {_shown(change.after)}"
        where = f' <span class="pl-soft">{chrome.escape(place)}</span>' if place else ""
        label = f'<td title="{chrome.escape(hover)}">{chrome.escape(field)}{where}</td>'
        moved = f'<td class="fig">{chrome.escape(_shown(change.before))} → {chrome.escape(_shown(change.after))}</td>'
        if change.effect is None:
            reason = chrome.escape(change.reason)
            lines.append(f'<tr>{label}{moved}<td colspan="3" class="pl-soft" title="{reason}">not alone</td></tr>')
        else:
            lines.append(f"<tr>{label}{moved}{_effect_cells(change.effect)}</tr>")
    for each in found.interactions:
        together = " × ".join(path.rpartition(".")[2] for path in each.paths)
        label = f'<td title="{chrome.escape(", ".join(each.paths))}">{chrome.escape(together)}</td>'
        lines.append(f'<tr>{label}<td class="pl-soft">together</td>{_effect_cells(each.effect)}</tr>')
    lines.append(f"<tr><td><b>All</b></td><td></td>{_effect_cells(found.effect)}</tr>")
    return (
        '<table class="pl-table"><thead><tr><th>Field</th><th></th><th>Parameters</th><th>FLOPs</th><th>Cache</th></tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _effect_cells(effect: Quantities) -> str:
    cells = []
    for value, figure in (
        (effect.parameters, figures.count),
        (effect.flops, figures.flops),
        (effect.cache_bytes, figures.memory),
    ):
        text = f"{'−' if value < 0 else '+'}{figure(abs(value))}" if value else "–"
        cells.append(f'<td class="fig" title="{value:+,}">{chrome.escape(text)}</td>')
    return "".join(cells)


def _shown(value: object) -> str:
    """A field's value in a few words."""
    if isinstance(value, dict):
        return str(value.get("kind", "other fields"))
    if isinstance(value, list):
        return f"{len(value)} entries"
    return "none" if value is None else f"{value:,}" if type(value) is int else str(value)


def spread_text(spread: Spread | None, unit: str) -> str:
    """Mean, spread and the number of seeds."""
    if spread is None:
        return "–"
    mean = value_text(spread.mean, unit)
    if spread.deviation is None:
        return f"{mean}, one seed"
    return f"{mean} ± {digits_text(spread.deviation, 2)}, {len(spread.values)} seeds"


def difference_text(found: Difference | None) -> str:
    """The verdict against the baseline."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return found.text
    low, high = digits_text(found.low, 3), digits_text(found.high, 3)
    return f"{found.text} (95% interval {low} to {high})"


def measured_html(
    lines: Sequence[tuple[str, str, Sequence[Spread | None], Sequence[Difference | None]]],
    names: Sequence[str],
    baseline: int,
) -> str:
    """Measured quantities over seeds, with the verdict on each difference."""
    head = "".join(f"<th>{chrome.variant_tag(index)} {chrome.escape(name)}</th>" for index, name in enumerate(names))
    body = []
    for quantity, unit, spreads, verdicts in lines:
        cells = "".join(
            f'<td class="fig" style="white-space:normal">{chrome.escape(spread_text(spread, unit))}<br>'
            f'<span class="pl-soft">'
            f"{'baseline' if index == baseline else chrome.escape(difference_text(verdict))}</span></td>"
            for index, (spread, verdict) in enumerate(zip(spreads, verdicts, strict=True))
        )
        body.append(f"<tr><td>{chrome.status_glyph('measured')} {chrome.escape(quantity)}</td>{cells}</tr>")
    return f'<table class="pl-table"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def as_csv(rows: Sequence[ComparisonRow], names: Sequence[str]) -> str:
    """Every quantity a line, every design a column, exact values; changes in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            "quantity",
            "unit",
            "status",
            *names,
            *(f"{name}: change" for name in names),
            *(f"{name}: relative" for name in names),
        ]
    )
    for row in rows:
        writer.writerow([row.quantity, row.unit, row.status, *row.values, *row.absolute, *row.relative])
    return text.getvalue()
