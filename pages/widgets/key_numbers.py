"""The row of key numbers: name and status, the number, its change, and a way into its terms.

::

    numbers = [KeyNumber("parameters", "Parameters", "7.24", "B", exact="7,241,732,096", status="exact", note="…")]
    key_numbers.show(numbers, key="numbers", on_open=open_terms)     # on_open gets the quantity's name

:func:`rows` draws the same as a small static row, for lists and cards.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass

from pages.widgets import chrome, theme
from pages.widgets.component import BrowserComponent


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """One number of the row."""

    quantity: str
    """Its name in the program, which ``on_open`` gets."""
    label: str
    value: str
    unit: str = ""
    exact: str = ""
    """The whole value, on hover."""
    status: str = "exact"
    """exact, measured, modelled, approximated or unsupported."""
    change: str = ""
    """Change against the baseline, as text."""
    direction: str = ""
    """``good`` or ``bad`` where less or more is better, else empty."""
    note: str = ""
    """Words after the change, or instead of one."""
    measured: str = ""
    """What a measurement of this very design says of it; empty where there is none."""


_component = BrowserComponent("key_numbers")


def show(
    numbers: Sequence[KeyNumber],
    *,
    key: str,
    on_open: Callable[[str], None] | None = None,
    opening: Container[str] | None = None,
) -> None:
    """Draw the row; a click on a number calls ``on_open`` with its quantity before the next run.

    ``opening`` are the quantities that can be clicked; absent: all.
    """
    entries = [
        {
            **asdict(number),
            "words": theme.STATUS_WORDS.get(number.status, number.status),
            "opens": on_open is not None and (opening is None or number.quantity in opening),
        }
        for number in numbers
    ]
    handlers = {"open": on_open} if on_open is not None else {}
    _component.mount({"numbers": entries}, key, handlers)


def rows(numbers: Sequence[KeyNumber]) -> str:
    """HTML of the numbers as a compact static row."""
    cells = "".join(
        f'<div title="{chrome.escape(number.exact)}"><span>{chrome.status_glyph(number.status)}'
        f"{chrome.escape(number.label)}</span><b>{chrome.escape(number.value)}</b> "
        f"<small>{chrome.escape(number.unit)}</small></div>"
        for number in numbers
    )
    return f'<div class="pl-numbers">{cells}</div>'
