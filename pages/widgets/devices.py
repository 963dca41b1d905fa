"""The devices that a page offers. Added rows that cannot be read cost no page: it says so and shows the catalogue."""

from __future__ import annotations

from pages.widgets import chrome
from planner import Device, PlannerError, hardware, hardware_catalogue


def known_devices(with_here: bool = False) -> tuple[Device, ...]:
    """All devices by usable memory; ``with_here`` this machine before them, where its system tells of its memory."""
    try:
        devices = hardware_catalogue()
    except PlannerError as reason:
        chrome.error(reason)
        devices = hardware_catalogue(with_own=False)
    if with_here:
        try:
            return (hardware("here"), *devices)
        except PlannerError as reason:
            chrome.error(reason)
    return devices
