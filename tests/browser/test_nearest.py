"""Errors and terms in a browser: the line comes by itself, a time opens into its terms, a link narrows the ledger."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]


def test_the_studio_tells_its_error_once_the_runs_are_predicted(page: Any, server: str) -> None:
    page.goto(f"{server}/studio")
    line = page.locator(".st-key-studio-nearest")
    # Without a click: the page is drawn again by itself.
    line.get_by_text("median error").first.wait_for(timeout=120_000)
    line.get_by_role("link", name="Peak training memory").click()
    page.wait_for_url("**/ledger?quantity=Peak+training+memory*")
    page.get_by_text("Error over time").wait_for(timeout=60_000)
    page.locator(".js-plotly-plot").nth(1).wait_for()
    assert page.locator(".stException").count() == 0


@pytest.mark.parametrize(
    ("path", "number", "name"),
    [
        ("training_plan?preset=gpt2", "step", "step time, modelled"),
        ("serving_plan?preset=gpt2", "first", "time to first token, modelled"),
    ],
)
def test_a_time_opens_into_its_terms(page: Any, server: str, path: str, number: str, name: str) -> None:
    page.goto(f"{server}/{path}")
    page.locator(f".key[data-quantity='{number}']").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(name).wait_for(timeout=60_000)
    dialog.get_by_text("doi:10.1145/1498765.1498785").first.wait_for()
    assert dialog.locator(".pl-terms tr").count() > 4
    assert page.locator(".stException").count() == 0


def test_what_is_counted_does_not_open_where_it_has_no_terms(page: Any, server: str) -> None:
    page.goto(f"{server}/training_plan?preset=gpt2")
    page.locator(".key[data-quantity='memory']:enabled").wait_for()
    assert page.locator(".key[data-quantity='devices']").is_disabled()
