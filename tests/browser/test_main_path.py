"""The main path in a real browser with a real worker: edit, save, verify, prototype, benchmark, compare, decide."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from tests.browser.settled import box_of, wait_for_count, wait_for_nearest_runs

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(600),
]


def wait_for_studio(page: Any) -> None:
    page.wait_for_selector(".st-key-panel-strip .cell")
    page.wait_for_selector(".st-key-panel-diagram .block")
    page.wait_for_selector(".js-plotly-plot")
    wait_for_nearest_runs(page)


def save_as_new_design(page: Any, number: int) -> None:
    """Save, and wait until the address names the design of that number."""
    page.get_by_role("button", name="Save revision").first.click()
    page.get_by_role("button", name="Save as a new design").click()
    page.wait_for_function(f"new URLSearchParams(location.search).get('design') === '{number}'")
    page.keyboard.press("Escape")


def send(page: Any, address: str, design: str, kind: str, **settings: int) -> None:
    """Send a job from the jobs page, and wait until it has succeeded."""
    page.goto(f"{address}/jobs")
    page.get_by_role("combobox", name="Design").fill(design)
    page.keyboard.press("Enter")
    page.get_by_role("combobox", name="Kind of job").fill(kind)
    page.keyboard.press("Enter")
    page.get_by_text("Settings").click()
    for name, value in settings.items():
        box = page.get_by_role("textbox", name=name.replace("_", " ").capitalize(), exact=True)
        box.fill(str(value))
        box.press("Enter")
        page.wait_for_timeout(300)
    page.get_by_text(re.compile("^About .* · ")).wait_for()
    page.get_by_role("button", name="Send", exact=True).click()
    page.wait_for_url("**/jobs?job=*")
    ended = re.compile(f"{kind} · (succeeded|failed)", re.IGNORECASE)
    page.locator(".pl-head span", has_text=ended).wait_for(timeout=240_000)
    assert "succeeded" in page.locator(".pl-head span").inner_text(), page.locator("body").inner_text()


def test_from_an_edit_to_a_decision_with_evidence(page: Any, served: str) -> None:
    page.goto(f"{served}/studio")
    wait_for_studio(page)
    save_as_new_design(page, 1)  # the baseline: full attention everywhere

    # Paint a window over layers 0 to 15.
    page.wait_for_timeout(1000)  # saving draws the page anew
    box = box_of(page.locator(".lanes"))
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5 / 32, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 15.5 / 32, middle, steps=6)
    page.mouse.up()
    page.wait_for_function(
        "document.querySelector('.st-key-panel-inspector .pl-heading')?.innerText.includes('layers 0–15')"
    )
    page.locator(".chip[data-paint='sequence_mixer:attention:window']").click()
    # 16 layers of 4,096 tokens and 16 of 32,768: 2 · 8 · 128 · 2 bytes a token and layer, in GiB.
    assert (16 * 4096 + 16 * 32768) * 4096 / 2**30 == 2.25
    page.locator(".key[data-quantity='cache'] .value", has_text="2.25").wait_for()
    save_as_new_design(page, 2)

    page.goto(f"{served}/jobs?job=nothing")
    page.get_by_text("there is no job nothing").wait_for()

    send(page, served, "New design", "verify", sequence_length=16, context_length=16)
    page.get_by_text("Predicted and measured").wait_for()
    assert page.locator(".pl-good", has_text="exact").count() >= 5
    small = {"parameter_budget": 60_000, "sequence_length": 32, "batch_size": 2}
    send(page, served, "New design", "prototype", steps=12, **small)
    page.get_by_text("Generated text").first.wait_for()
    page.get_by_text("How it was scaled down").wait_for()
    send(page, served, "New design", "benchmark", decode_tokens=2, max_repetitions=12, **small)
    page.get_by_text("95% interval").wait_for()

    page.goto(f"{served}/compare?revisions=1,2&baseline=0")
    page.get_by_text("Cache at 32,768").wait_for()
    page.get_by_text("−43.8%").first.wait_for()  # 2.25 of 4 GiB
    page.get_by_text("one seed").first.wait_for()
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV").click()
    assert "Cache at 32,768" in pathlib.Path(csv.value.path()).read_text()

    with page.expect_download() as html:
        page.get_by_role("button", name="Page, self-contained").click()
    exported = pathlib.Path(html.value.path()).read_text()
    assert "Cache at 32,768" in exported
    assert not re.search(r"<(script|link)[^>]+(src|href)=.http", exported)  # nothing is fetched
    page.wait_for_timeout(1500)

    page.get_by_role("button", name="Draft a decision").click()
    page.get_by_text("kept with the value it has now").wait_for()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("A decision needs a title").wait_for()
    title = page.get_by_role("textbox", name="Title")
    title.fill("Window the lower half")
    title.press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="Markdown").wait_for()
    assert "Window the lower half" in page.locator(".pl-head h1").inner_text()
    wait_for_count(page.locator(".pl-table tr", has_text="cache at 32,768 tokens"), 2)
    assert page.locator(".stException").count() == 0
