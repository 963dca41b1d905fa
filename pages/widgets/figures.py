"""Numbers of :mod:`planner.units` taken apart for display: what is read, its unit, and the exact value for the hover.

>>> count(7_241_732_096)
Figure(value='7.24', unit='B', exact='7,241,732,096')
>>> memory(2**30 * 14.5)
Figure(value='14.5', unit='GiB', exact='15,569,256,448 bytes')
>>> str(duration(5400)), percent(0.0229), context(32768), context(5000)
('1.5 h', '2.3%', '32K', '5,000')
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from planner import units

_MINUS = "−"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number for people: ``value`` and ``unit`` to read, ``exact`` on hover."""

    value: str
    unit: str
    exact: str

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".rstrip()


def _figure(text: str, exact: str) -> Figure:
    value, _, unit = text.partition(" ")
    return Figure(value.replace("-", _MINUS), unit, exact)


def count(number: float) -> Figure:
    """Parameters, tokens, layers."""
    return _figure(units.count_text(number), f"{number:,.0f}")


def flops(number: float) -> Figure:
    """Floating-point operations."""
    return _figure(units.flops_text(number), f"{number:,.0f} FLOPs")


def memory(number: float) -> Figure:
    """Bytes of memory, in powers of two."""
    return _figure(units.bytes_text(number), f"{number:,.0f} bytes")


def disk(number: float) -> Figure:
    """Bytes of disk or network, in powers of ten."""
    return _figure(units.bytes_text(number, disk=True), f"{number:,.0f} bytes")


def duration(seconds: float) -> Figure:
    """A time."""
    return _figure(units.seconds_text(seconds), f"{seconds:,.6g} s")


def ago(moment: datetime.datetime) -> str:
    """How long ago something was: ``2 h ago``."""
    seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
    if seconds < 60:
        return "just now"
    value, unit = str(duration(seconds)).split(" ")
    return f"{float(value.replace(',', '')):.0f} {unit} ago"


def percent(share: float, digits: int = 1) -> str:
    """A share as ``2.3%``; what is not nothing but would be rounded to it, as ``<0.1%``."""
    text = f"{share * 100:.{digits}f}%".replace("-", _MINUS)
    if share > 0 and float(text.rstrip("%")) == 0:
        return f"<{10**-digits:g}%"
    return text


def change(value: float, reference: float, figure: Figure) -> str:
    """A difference with its sign: ``figure`` is its size, and its share follows where it says more than 0.05%."""
    if value == reference:
        return ""
    sign = "+" if value > reference else _MINUS
    return f"{sign}{str(figure).lstrip(_MINUS)}"


def relative(value: float, reference: float) -> str:
    """A change as a share of the reference: ``−77%``, ``×3.2`` from a doubling on; empty where there is none."""
    if value == reference or reference == 0:
        return ""
    ratio = value / reference
    if ratio >= 2:
        return f"×{units.three_digits(ratio)}"
    share = (ratio - 1) * 100
    digits = 0 if abs(share) >= 10 else 1 if abs(share) >= 0.1 else 3
    return f"{'+' if share > 0 else _MINUS}{abs(share):.{digits}f}%"


def context(tokens: int) -> str:
    """A context length: ``32K`` where it is a whole number of 1,024s."""
    if tokens >= 2**20 and tokens % 2**20 == 0:
        return f"{tokens // 2**20:,}M"
    return f"{tokens // 1024:,}K" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"
