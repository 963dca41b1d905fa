"""The serving plan in a real browser: Back leads to where one came from, and every tick says its whole number."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize(
    "name, path, last",
    [("Serving plan", "serving_plan", "serving-roofline"), ("Training plan", "training_plan", "parts")],
)
def test_back_leads_home_from_a_plan(page: Any, server: str, name: str, path: str, last: str) -> None:
    page.goto(f"{server}/")
    verdict = page.locator(".pl-verdict")
    verdict.wait_for()
    page.wait_for_timeout(3000)
    before = page.evaluate("history.length")
    page.get_by_role("link", name=name).first.click()
    page.wait_for_url(f"**/{path}*")
    page.locator(f".st-key-panel-{last}").wait_for()
    page.wait_for_timeout(3000)  # an address that is written anew comes with the end of the run
    assert page.evaluate("history.length") == before + 1
    page.go_back()
    verdict.wait_for()
    assert page.url == f"{server}/"
    assert page.locator(".stException").count() == 0


def test_ticks_of_logarithms_are_whole_numbers_in_order(page: Any, server: str) -> None:
    page.goto(f"{server}/serving_plan?preset=llama-3-8b&hardware=a100")
    for chart in ("latency", "serving-roofline"):
        plot = page.locator(f".st-key-panel-{chart} .js-plotly-plot")
        plot.locator(".xtick text").first.wait_for()
        for axis in ("xtick", "ytick"):
            labels = plot.locator(f".{axis} text").all_text_contents()
            numbers = [_number(label) for label in labels]
            assert 2 <= len(numbers) <= 7
            assert sorted(set(numbers)) == sorted(numbers)


def _number(label: str) -> float:
    letter = label[-1]
    return float(label) if letter.isdigit() else float(label[:-1]) * {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[letter]
