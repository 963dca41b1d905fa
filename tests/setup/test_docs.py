"""What the documentation says to type is typed here, each command with an empty data directory of its own."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scripts.environment import ROOT
from tests.postgres import running_server

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PYTHON = ".venv/bin/python"
DATABASE = "export PLUMBLINE_DATABASE_URL="


def shell_lines(page: pathlib.Path) -> list[str]:
    """The lines of fenced blocks that name no language, and commands within a sentence."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(text) if not language]
    within = re.findall(rf"`({re.escape(PYTHON)} [^`]+)`", FENCE.sub("", text))
    return [line.strip() for block in blocks for line in block.splitlines()] + within


def commands() -> Iterator[tuple[str, bool]]:
    """Each command line of Python, and whether its page points it at PostgreSQL."""
    for page in PAGES:
        lines = shell_lines(page)
        on_postgres = any(line.startswith(DATABASE) for line in lines)
        for line in lines:
            if line.startswith(PYTHON):
                yield line, on_postgres


COMMANDS = [
    pytest.param(line, on_postgres, id=line.removeprefix(PYTHON), marks=[pytest.mark.postgres] if on_postgres else [])
    for line, on_postgres in dict(commands()).items()
]


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize(("line", "on_postgres"), COMMANDS)
def test_a_command_of_the_documentation_works(
    line: str, on_postgres: bool, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    environment = {**os.environ, "PLUMBLINE_DATA_DIR": str(tmp_path)}
    if on_postgres:
        environment["PLUMBLINE_DATABASE_URL"] = request.getfixturevalue("server_url")
    words = [sys.executable, *shlex.split(line, comments=True)[1:]]
    running = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        if words[-1] == "worker":  # it works until it is told to stop
            assert running.stderr is not None
            assert "takes jobs from" in running.stderr.readline()
            running.send_signal(signal.SIGTERM)
        output, errors = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert words[-1] in ("worker", "upgrade") or output.strip()


def test_commands_are_found_in_the_documentation() -> None:
    lines = [line for line, _ in commands()]
    assert any("runners run verify" in line for line in lines)
    assert any("db upgrade" in line for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_files_and_targets_that_a_page_names_exist(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert {name for name in modules if importlib.util.find_spec(name) is None} == set()
    rooms = r"(?:pages|planner|runners|db|assets|tests|docs|scripts|benchmarks)"
    files = set(re.findall(rf"`({rooms}/[\w./-]+)`", text))
    assert {name for name in files if "NAME" not in name and not (ROOT / name).exists()} == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert {name for name in targets if f"\n{name}:" not in makefile} == set()
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", text))
    assert {link for link in links if not (page.parent / link).exists()} == set()
