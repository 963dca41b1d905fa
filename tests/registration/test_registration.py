"""A component is registered by being in the union: a toy goes through all of the planner and its model with no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_component_is_registered_by_its_file_its_twin_and_one_entry_in_the_union() -> None:
    """In a process of its own: see ``run.py``."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "registration" / "run.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "went round"
