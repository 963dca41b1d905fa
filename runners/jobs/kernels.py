"""The Triton kernels compiled ahead of time, with what their cubins say of registers, spills and tensor cores."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from planner.plans import KernelsPlan
from planner.spec import ArchitectureSpec
from runners.environment import describe
from runners.events import Event, Log, Progress, Result
from runners.jobs.base import JobContext


def run(spec: ArchitectureSpec, plan: KernelsPlan, context: JobContext) -> Iterator[Event]:
    """Compile every kernel for the plan's architectures; the specification is not read."""
    report = importlib.import_module("runners.kernels.report")
    entries = []
    variants = list(report.compile_tasks(plan.architectures))
    for done, task in enumerate(variants):
        yield Progress(done, len(variants), "kernels", f"· {task.label}")
        entry = report.compile_and_read(task)
        entries.append(entry)
        if entry["spills"]:
            yield Log(f"{task.label}: {entry['spills']} spills", "warning")
    yield Progress(len(variants), len(variants), "kernels")
    yield Result("kernels", {"kernels": entries}, describe("cpu"))
