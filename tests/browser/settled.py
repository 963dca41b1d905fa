"""What a page shows once it has been drawn: while it is drawn anew an element may be there twice, or not at all."""

from __future__ import annotations

import time
from typing import Any


def wait_for_count(locator: Any, count: int) -> None:
    """Until so many elements are there."""
    from playwright.sync_api import expect

    expect(locator).to_have_count(count, timeout=20_000)


def box_of(locator: Any, seconds: float = 20) -> dict[str, float]:
    """Where an element stands in the window, once it is there and has stopped moving."""
    last, deadline = None, time.monotonic() + seconds
    while time.monotonic() < deadline:
        locator.first.wait_for()
        box: dict[str, float] | None = locator.first.bounding_box()
        if box is not None and box == last:
            return box
        last = box
        locator.page.wait_for_timeout(50)
    raise TimeoutError(f"{locator} does not come to rest")


def wait_for_nearest_runs(page: Any) -> None:
    """Until the published runs are predicted, once a server, at which the page is drawn once more."""
    page.get_by_text("predicting the published ones").wait_for(state="detached", timeout=60_000)
    page.get_by_text("Nearest measured runs").first.wait_for(timeout=60_000)
    page.wait_for_timeout(300)
