"""What the sections of ``docs/accuracy.md`` are written with."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence


def error_row(errors: Sequence[float], digits: int = 1) -> str:
    """Cells: how many, the median, the mean and the ninth decile of their sizes, and the median with its sign."""
    sizes = sorted(map(abs, errors))
    within = sizes[min(len(sizes) - 1, -(-9 * len(sizes) // 10) - 1)]
    shown = [statistics.median(sizes), statistics.fmean(sizes), within]
    signed = statistics.median(errors)
    cells = " | ".join(f"{100 * each:.{digits}f}%" for each in shown)
    return f"{len(sizes)} | {cells} | {100 * signed:+.{digits}f}%"


def prose(text: str) -> Iterator[str]:
    """A paragraph, broken into lines."""
    yield from textwrap.wrap(text, 116)
    yield ""


def counted(name: str, reasons: Iterable[str]) -> Iterator[str]:
    """How often each reason occurs."""
    yield f"| {name} | rows |"
    yield "|---|--:|"
    for reason, times in sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])):
        yield f"| {reason} | {times} |"
    yield ""
