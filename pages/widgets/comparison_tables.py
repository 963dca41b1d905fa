"""The tables of a comparison as HTML, for the page and for its export."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pages.widgets import chrome, figures
from planner.comparison import ComparisonRow, Difference, Spread
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
