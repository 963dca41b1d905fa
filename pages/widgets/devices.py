"""The devices that a page offers. Added rows that cannot be read cost no page: it says so and shows the catalogue."""

from __future__ import annotations

from pages.widgets import chrome
from planner import Device, PlannerError, hardware_catalogue


def known_devices() -> tuple[Device, ...]:
    """All devices by usable memory."""
    try:
        return hardware_catalogue()
    except PlannerError as reason:
        chrome.error(reason)
        return hardware_catalogue(with_own=False)
