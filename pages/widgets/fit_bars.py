"""Whether a design runs: bars of what it needs, by part, against each device's usable memory."""

from __future__ import annotations

from collections.abc import Sequence

from pages.widgets import chrome, figures, theme
from planner import Fit

_WORDS = {"cache": "cache in an engine's blocks"}
"""Where a part is not what the key number of the same name says."""


def html_of(fits: Sequence[Fit]) -> str:
    """HTML of one bar a device, and what the colours are."""
    rows = "".join(_row(fit) for fit in fits)
    parts = fits[0].parts if fits else {}
    legend = "".join(
        chrome.swatch(theme.MEMORY_TOKENS.get(name, "other"), f"{_WORDS.get(name, name)} {figures.memory(value)}")
        for name, value in parts.items()
        if value
    )
    return f'<div class="pl-fit">{rows}</div><p class="pl-legend">{legend}</p>'


def _row(fit: Fit) -> str:
    needed, usable = figures.memory(fit.needed_bytes), figures.memory(fit.usable_bytes)
    whole = max(fit.needed_bytes, fit.usable_bytes)
    bars = "".join(
        f'<i style="width:{100 * value / whole:.3f}%;background:var(--{theme.MEMORY_TOKENS.get(name, "other")})" '
        f'title="{chrome.escape(f"{name}: {figures.memory(value)}")}"></i>'
        for name, value in fit.parts.items()
        if value
    )
    limit = ""
    if not fit.fits:
        limit = f'<u style="left:{100 * fit.usable_bytes / whole:.3f}%"></u>'
    mark, tone = ("✓", "pl-good") if fit.fits else ("✕", "pl-bad")
    same = needed.unit == usable.unit
    text = f"{mark} {needed.value if same else needed} of {usable}"
    hover = f"needs {needed.exact}, usable {usable.exact}: {fit.device.usable_reason}"
    name = "This machine" if fit.device.id == "here" else fit.device.name
    name = name.removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("AMD Instinct ")
    return (
        f'<div title="{chrome.escape(fit.device.name)}">{chrome.escape(name)}</div>'
        f'<div class="pl-bar" title="{chrome.escape(hover)}">{bars}{limit}</div>'
        f'<div class="{tone}" title="{chrome.escape(hover)}">{chrome.escape(text)}</div>'
    )
