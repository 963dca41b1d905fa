"""Mechanics in a real browser: a probe is sent, a worker runs it, and the page draws what it found."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from db.engine import open_store
from planner import load

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]


def test_a_probe_is_sent_followed_and_drawn(
    page: Any, served: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))  # that of the server
    monkeypatch.delenv("PLUMBLINE_DATABASE_URL", raising=False)
    with open_store() as store:
        store.designs.create("Windows", load("mistral-7b").model_dump(mode="json"))
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{served}/mechanics?measure=reach")
    page.get_by_text("Nothing is measured yet").wait_for()
    page.get_by_role("button", name="Measure the reach").click()
    page.get_by_text("On the way").wait_for()
    # The page draws itself anew when the job has ended.
    page.get_by_text("Gradient of one position's stream").wait_for(timeout=180_000)
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .hm').length >= 2")
    page.get_by_text("On the way").wait_for(state="detached")
    assert "just the positions that were predicted" in page.locator("[data-testid=stMain]").inner_text()
    page.set_viewport_size({"width": 1024, "height": 1200})
    page.wait_for_timeout(1000)
    width = page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert width <= page.evaluate("document.querySelector('[data-testid=stMain]').clientWidth")
    page.get_by_text("Router load").click()
    page.get_by_text("No layer of this design has experts to route to").wait_for()
    assert page.locator(".stException").all_inner_texts() == []
    assert errors == []
