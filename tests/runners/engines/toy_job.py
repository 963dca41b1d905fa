"""A job for the engine's tests: counts, checkpoints, and does what its plan asks for."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

from planner.plans import Plan
from planner.spec import ArchitectureSpec
from runners.events import Artifact, Event, Log, Metric, Progress, Result
from runners.jobs.base import JobContext, JobFailure

ENTRY = {"plan": "tests.runners.engines.toy_job:ToyPlan", "module": "tests.runners.engines.toy_job"}


class ToyPlan(Plan):
    steps: int = 5
    seconds_per_step: float = 0.0
    grandchild: bool = False
    grandchild_in_own_session: bool = False
    fail: str | None = None
    ignore_sigterm: bool = False


def run(spec: ArchitectureSpec, plan: ToyPlan, context: JobContext) -> Iterator[Event]:
    if plan.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    checkpoint = context.directory / "checkpoint.txt"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    yield Log(f"pid {os.getpid()} starts at {first}")
    if plan.grandchild:
        child = subprocess.Popen(["sleep", "600"], start_new_session=plan.grandchild_in_own_session)
        (context.directory / "grandchild.txt").write_text(str(child.pid))
    for step in range(first, plan.steps):
        yield Metric("value", step, float(step * step))
        _replace(checkpoint, str(step + 1))
        yield Progress(step + 1, plan.steps, "steps")
        time.sleep(plan.seconds_per_step)
    match plan.fail:
        case "refusal":
            raise JobFailure("learning_rate: too high")
        case "error":
            raise RuntimeError("boom")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill with a fork":
            if os.fork() == 0:
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        case "unstorable":
            yield Metric("value", 0, None)  # type: ignore[arg-type]
    yield Artifact("checkpoint", "checkpoint.txt", "text/plain")
    yield Result("toy", {"steps": plan.steps, "resumed_at": first, "name": spec.name}, {"machine": "test"})


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)
