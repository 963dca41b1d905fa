"""How numbers are written for people: 7.24 B, 14.5 GiB, 21 h. The exact value goes beside it, for the hover.

>>> count(7_241_732_096)
Figure(value='7.24', unit='B', exact='7,241,732,096')
>>> memory(2**30 * 14.5)
Figure(value='14.5', unit='GiB', exact='15,569,256,448 bytes')
>>> memory(0)
Figure(value='0', unit='B', exact='0 bytes')
>>> str(duration(5400))
'1.5 h'
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_THOUSANDS = ((1e18, "e18"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_FLOPS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "KFLOP"))
_BINARY = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DECIMAL = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TIME = ((86400 * 365.25, "years"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass(frozen=True, slots=True)
class Figure:
    """A number for people: ``value`` and ``unit`` to read, ``exact`` on hover."""

    value: str
    unit: str
    exact: str

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".rstrip()


def significant(number: float, digits: int = 3) -> str:
    """``digits`` significant digits, never in exponents: ``7.24``, ``14.5``, ``108``."""
    if number == 0:
        return "0"
    if not math.isfinite(number):
        return "∞" if number > 0 else "−∞"
    places = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{places}f}".replace("-", "−")


def _scaled(number: float, steps: tuple[tuple[float, str], ...], base: str) -> tuple[str, str]:
    for size, unit in steps:
        # 999,999 rounds to 1.00 M, not to 1,000 K
        if abs(number) >= size * (1 - 5e-4):
            return significant(number / size), unit
    return significant(number), base


def count(number: float) -> Figure:
    """Parameters, tokens, layers."""
    value, unit = (f"{number:,.0f}", "") if abs(number) < 1000 else _scaled(number, _THOUSANDS, "")
    return Figure(value, unit, f"{number:,.0f}")


def flops(number: float) -> Figure:
    """Floating-point operations."""
    value, unit = _scaled(number, _FLOPS, "FLOP")
    return Figure(value, unit, f"{number:,.0f} FLOP")


def memory(number: float) -> Figure:
    """Bytes of memory, in powers of two."""
    value, unit = _scaled(number, _BINARY, "B")
    return Figure(value, unit, f"{number:,.0f} bytes")


def disk(number: float) -> Figure:
    """Bytes of disk or network, in powers of ten."""
    value, unit = _scaled(number, _DECIMAL, "B")
    return Figure(value, unit, f"{number:,.0f} bytes")


def duration(seconds: float) -> Figure:
    """A time."""
    if seconds == 0:
        return Figure("0", "s", "0 s")
    for size, unit in _TIME:
        if seconds >= size:
            return Figure(f"{float(f'{seconds / size:.2g}'):,g}", unit, f"{seconds:,.6g} s")
    return Figure(significant(seconds), "s", f"{seconds:.6g} s")


def percent(share: float, digits: int = 1) -> str:
    """A share as ``2.3%``."""
    return f"{share * 100:.{digits}f}%".replace("-", "−")


def signed(text: str, change: float) -> str:
    """``text``, the size of a change, with its sign."""
    return f"+{text}" if change > 0 else f"−{text.lstrip('−')}"


def context(tokens: int) -> str:
    """A context length: ``32K`` where it is a whole number of 1,024s."""
    if tokens >= 1024 and tokens % 1024 == 0:
        return f"{tokens // 1024:,}K" if tokens < 2**20 or tokens % 2**20 else f"{tokens // 2**20:,}M"
    return f"{tokens:,}"
