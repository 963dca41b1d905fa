"""The command line tells a step's time and what a run takes."""

from __future__ import annotations

import json

import pytest

from planner.__main__ import main

PLAN = ["--set", "hardware=h100", "--set", "micro_batch_size=2"]


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["train", "llama-3-8b", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_run_is_told_beside_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, *PLAN, "--tokens", "1e9", "--checkpoint-seconds", "30", "--restart-seconds", "600")
    assert status == 0
    for words in ("a step (", "matmul", "time of the run", "between checkpoints", "kWh", "price"):
        assert words in out


def test_as_json_the_parts_sum_to_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _run(capsys, *PLAN, "--tokens", "1e9", "--json")
    data = json.loads(out)
    assert sum(data["time"]["parts"].values()) == pytest.approx(data["step_seconds"])
    # Steps of two sequences of 2,048.
    assert data["run"]["steps"] == -(-1_000_000_000 // 4096)
    assert data["run"]["total_seconds"] == pytest.approx(data["run"]["steps"] * data["step_seconds"])


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["--tokens", "-1", *PLAN], "--tokens"),
        (["--tokens", "nan", *PLAN], "--tokens"),
        (["--tokens", "1e9"], "hardware"),
        (["--tokens", "1e9", *PLAN, "--set", "offload=optimizer"], "offload"),
        (["--checkpoint-seconds", "30", "--restart-seconds", "600", *PLAN], "--tokens"),
        (["--tokens", "1e9", "--checkpoint-seconds", "30", *PLAN], "--checkpoint-seconds"),
    ],
)
def test_what_a_run_needs_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], path: str) -> None:
    status, _, err = _run(capsys, *arguments)
    assert status == 2
    assert path in err
    assert err.count("\n") == 1
