"""Numbers as people read them: 7.24 B, 14.5 GiB, 21 h. The exact value belongs on hover and in exports.

Memory is counted in powers of 1024 and says GiB; disk and network in powers of 1000 and say GB.
"""

from __future__ import annotations

import math

_COUNT_STEPS = ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_FLOP_STEPS = (
    (1e24, "YFLOPs"),
    (1e21, "ZFLOPs"),
    (1e18, "EFLOPs"),
    (1e15, "PFLOPs"),
    (1e12, "TFLOPs"),
    (1e9, "GFLOPs"),
    (1e6, "MFLOPs"),
    (1e3, "KFLOPs"),
)
_BINARY_STEPS = ((2.0**50, "PiB"), (2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_DECIMAL_STEPS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TIME_STEPS = (
    (365.25 * 86400.0, "years"),
    (2 * 86400.0, "days"),
    (3600.0, "h"),
    (60.0, "min"),
    (1.0, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
)
_TIME_UNITS = {"days": 86400.0}


def three_digits(value: float) -> str:
    """``value`` to three significant digits, without an exponent and without trailing zeros."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def digits_text(value: float, digits: int = 4) -> str:
    """``value`` to so many significant digits, without an exponent: a loss of ``2.417``, a rate of ``12,480``.

    >>> digits_text(2.41689), digits_text(12480.3), digits_text(0.00123456, 2)
    ('2.417', '12,480', '0.0012')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def _scaled(value: float, steps: tuple[tuple[float, str], ...], unit: str) -> str:
    """``value`` in the largest step that leaves at least one, after rounding to three digits."""
    magnitude = abs(value)
    for step, name in steps:
        # 999,600 rounds to 1,000 K: it is read as 1 M.
        if magnitude >= step * 0.9995:
            return f"{three_digits(value / step)} {name}"
    rounded = three_digits(value)
    return f"{rounded} {unit}" if unit else rounded


def count_text(count: float) -> str:
    """A count: ``7.24 B``, ``512``. B is 10⁹ and T is 10¹², as the field writes parameters and tokens."""
    return _scaled(count, _COUNT_STEPS, "")


def bytes_text(size_bytes: float, *, disk: bool = False) -> str:
    """Memory in GiB (``14.5 GiB``) or, with ``disk``, storage in GB (``15.6 GB``)."""
    return _scaled(size_bytes, _DECIMAL_STEPS if disk else _BINARY_STEPS, "B")


def seconds_text(seconds: float) -> str:
    """A duration: ``340 ms``, ``21 h``, ``12 days``, ``3.2 years``."""
    if seconds == 0:
        return "0 s"
    magnitude = abs(seconds)
    for step, name in _TIME_STEPS:
        if magnitude >= step * 0.9995:
            return f"{three_digits(seconds / _TIME_UNITS.get(name, step))} {name}"
    return f"{three_digits(seconds * 1e9)} ns"


def flops_text(operations: float) -> str:
    """Floating-point operations (not a rate): ``13.9 GFLOPs``."""
    return _scaled(operations, _FLOP_STEPS, "FLOPs")


def money_text(dollars: float) -> str:
    """US dollars: ``$0.42``, ``$340``, ``$1.2 M``."""
    sign = "-" if dollars < 0 else ""
    magnitude = abs(dollars)
    if magnitude >= 999_500:
        return f"{sign}${count_text(magnitude)}"
    if magnitude < 100:
        return f"{sign}${magnitude:,.2f}"
    return f"{sign}${magnitude:,.0f}"
