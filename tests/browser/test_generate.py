"""A prompt in a real browser with a real worker: tokens of two prototypes stream in side by side."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import ROOT, free_port, running_dashboard

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(600),
]
SMALL = ("steps=6", "parameter_budget=60000", "batch_size=2", "sequence_length=32", "sample_tokens=0")


@pytest.fixture
def served(tmp_path: pathlib.Path) -> Iterator[str]:
    """The dashboard and a worker over a data directory with two trained prototypes."""
    environment = {**os.environ, "PLUMBLINE_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("PLUMBLINE_DATABASE_URL", None)
    runners = [sys.executable, "-m", "runners"]
    for name, spec in (("Attention", "llama-2-7b"), ("Hybrid", "tiny-hybrid")):
        settings = [part for setting in SMALL for part in ("--set", setting)]
        command = [*runners, "run", "prototype", "--spec", spec, "--name", name, *settings]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    with running_dashboard(tmp_path, free_port()) as address:
        worker = subprocess.Popen([*runners, "worker"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        try:
            yield address
        finally:
            worker.terminate()
            worker.wait(timeout=30)


def test_tokens_stream_side_by_side(page: Any, served: str) -> None:
    page.goto(f"{served}/jobs")
    page.get_by_role("button", name="Hybrid").click()
    page.get_by_role("button", name="Try a prompt").click()
    page.wait_for_url("**/generate?prototypes=*")
    page.get_by_role("combobox", name="Prototypes").fill("Attention")
    page.keyboard.press("ArrowDown")  # past the choice of all
    page.keyboard.press("Enter")
    page.get_by_text("Attention · ").first.wait_for()
    page.locator(".pl-head h1").click()
    page.get_by_role("textbox", name="Prompt: text").fill("def ")
    count = page.get_by_role("textbox", name="New tokens")
    count.fill("1500")
    count.press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url("**/generate?job=*")

    # Both grow while the job still runs: what is seen is no single delivery at its end.
    columns = page.locator(".pl-written")
    counts: list[tuple[int, ...]] = []
    deadline = time.monotonic() + 200
    while page.get_by_text("Measured side by side").count() == 0:
        assert time.monotonic() < deadline, page.locator("body").inner_text()
        made = tuple(columns.nth(index).locator(".pl-token").count() for index in range(columns.count()))
        if len(made) == 2 and (not counts or made != counts[-1]):
            counts.append(made)
        page.wait_for_timeout(100)
    assert len({made for made in counts if min(made) > 0 and max(made) < 1500}) >= 2, counts
    assert [columns.nth(index).locator(".pl-token").count() for index in (0, 1)] == [1500, 1500]

    token = columns.nth(1).locator(".pl-token").nth(40)
    details = token.get_attribute("data-tip")
    assert details.count("%") >= 6  # its own probability and five alternatives
    token.hover()
    assert details[:8] in token.evaluate("node => getComputedStyle(node, '::after').content").replace("\\a", "\n")
    facts = page.locator(".pl-written-facts")
    assert "tokens a second" in facts.first.inner_text()
    assert "log-probability" in facts.last.inner_text()
