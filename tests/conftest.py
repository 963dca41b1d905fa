"""What every test shares: a data directory of its own, and a summary that says why GPU tests did not run."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile

import pytest

NO_CUDA = "no CUDA device"


def pytest_configure(config: pytest.Config) -> None:
    """Point the application at an empty directory before any test module is imported.

    A test must reach neither a person's own designs nor a team's database, so a `PLUMBLINE_DATABASE_URL` from the
    shell is dropped. Each pytest-xdist worker comes through here and gets a directory of its own.
    """
    directory = tempfile.mkdtemp(prefix="plumbline-tests-")
    config.add_cleanup(functools.partial(shutil.rmtree, directory, ignore_errors=True))
    os.environ["PLUMBLINE_DATA_DIR"] = directory
    os.environ.pop("PLUMBLINE_DATABASE_URL", None)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process would else take every core for its matmuls


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a server in one process, and skip those marked `gpu` where there is no CUDA device.

    Torch is imported only if there is a `gpu` test.
    """
    for item in items:
        for shared in ("browser", "postgres"):
            if item.get_closest_marker(shared) and not item.get_closest_marker("xdist_group"):
                item.add_marker(pytest.mark.xdist_group(shared))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=NO_CUDA))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many GPU tests were left out: a green run without a GPU must not look like one with it."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report, pytest.TestReport) and "gpu" in report.keywords and NO_CUDA in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} gpu tests skipped: {NO_CUDA}", yellow=True)


@functools.cache
def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
