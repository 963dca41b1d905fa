"""A real server and a real Chromium. ``server`` gives the address, ``page`` a fresh tab."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHROMIUM_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def free_port() -> int:
    """A port that nothing listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_dashboard(folder: pathlib.Path, port: int) -> Iterator[str]:
    """The dashboard over a data directory; its address."""
    environment = {**os.environ, "PLUMBLINE_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("PLUMBLINE_DATABASE_URL", None)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "streamlit", "run", "app.py"),
                *("--server.address", "127.0.0.1", "--server.port", str(port), "--server.headless", "true"),
                *("--server.fileWatcherType", "none", "--browser.gatherUsageStats", "false"),
            ],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard with a data directory of its own, shared by the tests of one run."""
    with running_dashboard(tmp_path_factory.mktemp("data"), free_port()) as address:
        yield address


@pytest.fixture
def served(tmp_path: pathlib.Path) -> Iterator[str]:
    """The dashboard and a worker over one new data directory."""
    environment = {**os.environ, "PLUMBLINE_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("PLUMBLINE_DATABASE_URL", None)
    with running_dashboard(tmp_path, free_port()) as address:
        worker = subprocess.Popen(
            [sys.executable, "-m", "runners", "worker"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        )
        try:
            yield address
        finally:
            worker.terminate()
            worker.wait(timeout=30)


def _wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(address)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("These tests need Chromium: `make test` installs it, or apt-get install chromium.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab in a context of its own, 1440 by 1200."""
    context = browser.new_context(viewport={"width": 1440, "height": 1200}, color_scheme="light")
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    yield tab
    context.close()
