"""The Makefile's targets, read without being run."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from scripts.environment import ROOT

# `make test` itself runs these tests, and hands its own flags to every make below it.
OUTSIDE_MAKE = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=OUTSIDE_MAKE, capture_output=True, text=True, check=False)


def test_make_alone_lists_the_targets() -> None:
    outcome = make()
    assert outcome.returncode == 0
    for target in ("app", "test", "check", "format", "example"):
        assert f"make {target}" in outcome.stdout


def test_app_starts_the_launcher() -> None:
    assert "-m scripts.launch" in make("-n", "app").stdout


def test_test_installs_what_it_needs_and_leaves_no_test_out() -> None:
    commands = make("-n", "test").stdout
    order = ["requirements-dev.txt", "ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"]
    places = [commands.index(step) for step in order]
    assert places == sorted(places)
    assert commands.index("scripts.system_packages") < commands.index("-m pytest")
    assert ' -m "' not in commands


def test_check_leaves_out_what_takes_long_or_needs_a_service() -> None:
    commands = make("-n", "check").stdout
    for marker in ("slow", "browser", "postgres", "gpu"):
        assert f"not {marker}" in commands
    assert "system_packages" not in commands


@pytest.mark.parametrize("target", ["app", "test", "check", "example"])
def test_a_missing_python_is_one_line(target: str) -> None:
    outcome = make(target, "PYTHON=python-that-is-nowhere")
    first, *rest = outcome.stderr.splitlines()
    assert outcome.returncode != 0
    assert "there is no python-that-is-nowhere" in first
    assert all(line.startswith("make: ***") for line in rest)
    assert outcome.stdout == ""


def test_continuous_integration_calls_make_test_without_input() -> None:
    script = pathlib.Path(ROOT / ".ci" / "run")
    assert script.stat().st_mode & 0o111, "has to be executable"
    text = script.read_text()
    assert "make --keep-going test </dev/null" in text
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


SUMMARIES = {
    "1 passed in 0.01s": (0, "1 passed in 0.01s"),
    "==== 1 failed, 3 passed in 2.00s ====": (2, "1 failed, 3 passed in 2.00s"),
}


@pytest.mark.parametrize("line", SUMMARIES)
def test_continuous_integration_ends_with_pytests_own_line_and_its_status(line: str, tmp_path: pathlib.Path) -> None:
    status, expected = SUMMARIES[line]
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    script.chmod(0o755)
    (tmp_path / "Makefile").write_text(f"test:\n\t@echo '{line}'; echo 'make: leaving'; exit {1 if status else 0}\n")
    outcome = subprocess.run([script], env=OUTSIDE_MAKE, capture_output=True, text=True, check=False)
    assert outcome.returncode == status
    assert outcome.stdout.splitlines()[-1] == expected
