"""How fast the Studio answers: the script alone, and a click in a real browser to redrawn numbers.

usage: python -m benchmarks.studio [--json] [--rounds N]

Limits (p95): 150 ms for a run of the script after an edit, 300 ms from a click to the redrawn numbers. The exit status
is 1 where one is passed. Times depend on the machine; its cores are printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT_LIMIT_MS = 150.0
BROWSER_LIMIT_MS = 300.0


def summary(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest, in milliseconds."""
    ordered = sorted(1000 * each for each in times)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(statistics.quantiles(ordered, n=20)[-1], 1),
        "max_ms": round(ordered[-1], 1),
        "rounds": len(ordered),
    }


def script_times(rounds: int) -> list[float]:
    """Seconds of one run of the script after an edit, a different one each time, with an attention block open."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(ROOT / "pages" / "studio.py"), default_timeout=60).run()
    draft = app.session_state["draft"]
    draft.select("sequence_mixer", tuple(range(32)))
    app.run()
    times = []
    for index in range(rounds):
        # A width never seen before, so that no cached number helps.
        key = f"sequence_mixer:{draft.generation}:head_dim"
        box = next(box for box in app.text_input if box.key == key)
        box.set_value(str(64 + 2 * index))
        start = time.perf_counter()
        app.run()
        times.append(time.perf_counter() - start)
        if app.exception:
            raise RuntimeError(str(app.exception))
    return times


def browser_times(rounds: int) -> dict[str, list[float]]:
    """Seconds in the browser, from a click or a key press to what it changes on the page."""
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import CHROMIUM_ARGUMENTS, free_port

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PLUMBLINE_DATA_DIR": folder}
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.address", "127.0.0.1"]
        command += ["--server.port", str(port), "--server.headless", "true", "--server.fileWatcherType", "none"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=list(CHROMIUM_ARGUMENTS)
                )
                page = chromium.new_page(viewport={"width": 1440, "height": 1200})
                page.goto(f"http://127.0.0.1:{port}/studio")
                page.wait_for_selector(".js-plotly-plot")
                page.wait_for_timeout(1500)
                return {"paint": _paint_times(page, rounds), "select": _select_times(page, rounds)}
        finally:
            server.terminate()
            server.wait(timeout=20)


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(address)


_TIMED = """([selector, watched, index]) => new Promise((resolve, reject) => {
  const deep = (root, css) => {
    const own = root.querySelectorAll(css);
    if (own.length) return own;
    for (const host of root.querySelectorAll('*')) {
      if (host.shadowRoot) { const found = host.shadowRoot.querySelectorAll(css); if (found.length) return found; }
    }
    return [];
  };
  const text = () => deep(document, watched)[0]?.textContent;
  const before = text();
  const start = performance.now();
  deep(document, selector)[index].click();
  const look = () => {
    if (text() !== before) return resolve((performance.now() - start) / 1000);
    if (performance.now() - start > 8000) return reject(new Error('nothing changed'));
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})"""


def _paint_times(page: Any, rounds: int) -> list[float]:
    """From a click on a paint to the redrawn cache number: the whole edit."""
    page.locator(".lanes").focus()
    page.keyboard.press("Control+a")
    page.wait_for_selector(".chip:enabled")
    page.wait_for_timeout(1000)
    times = []
    for index in range(rounds):
        reach = "window" if index % 2 == 0 else "full"
        chip = f".chip[data-paint='sequence_mixer:attention:{reach}']"
        times.append(page.evaluate(_TIMED, [chip, ".key[data-quantity='cache'] .value", 0]))
        page.wait_for_timeout(250)
    return times


def _select_times(page: Any, rounds: int) -> list[float]:
    """From a click on a block of the diagram to the inspector that shows it."""
    times = []
    for index in range(rounds):
        # In the open group: norm, sequence mixer, norm, channel mixer.
        block = 1 if index % 2 == 0 else 3
        times.append(page.evaluate(_TIMED, [".frame .block", ".st-key-panel-inspector .pl-heading", block]))
        page.wait_for_timeout(250)
    return times


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLUMBLINE_DATA_DIR"] = folder
        found["script after an edit"] = summary(script_times(chosen.rounds))
    for name, times in browser_times(chosen.rounds).items():
        found[f"browser: {name}"] = summary(times)
    limits = {name: BROWSER_LIMIT_MS if name.startswith("browser") else SCRIPT_LIMIT_MS for name in found}
    if chosen.json:
        print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "times": found}))
    else:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for name, values in found.items():
            verdict = "ok" if values["p95_ms"] <= limits[name] else f"above {limits[name]:.0f}"
            print(f"{name:24} median {values['median_ms']:7.1f}  p95 {values['p95_ms']:7.1f} ms  {verdict}")
    return int(any(values["p95_ms"] > limits[name] for name, values in found.items()))


if __name__ == "__main__":
    sys.exit(main())
