"""What the planner says of measured runs: the prediction beside the reading, or why there is none."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from planner.errors import PlannerError
from planner.measured.rows import TrainingRow
from planner.step_time import step_time
from planner.training import check_training_plan
from planner.training.estimate import stage_memories


@dataclass(frozen=True, slots=True)
class Reading:
    """One quantity of one run."""

    row: TrainingRow
    measured: float
    predicted: float | None
    reason: str
    """Why nothing is predicted; else empty."""
    profile: str = ""
    """The efficiencies that a time was predicted with."""

    @property
    def error(self) -> float | None:
        """The prediction's error as a share of what was measured."""
        return None if self.predicted is None else self.predicted / self.measured - 1


def _refusal(error: PlannerError) -> str:
    return f"{error.problems[0].path}: {error.problems[0].message}"


@functools.cache
def memory_of(row: TrainingRow) -> Reading | None:
    """Peak memory in bytes of the device that was read; ``None`` where none was, or it is not used.

    What is allocated is held against the peak without the process's own overhead, what an allocator reserved against
    what it reserves at least, and what the source read beside the process against that with the overhead.
    """
    if row.memory is None:
        return None
    measured = float(row.memory.peak_bytes)
    try:
        check_training_plan(row.plan, row.spec)
        ranks = list(stage_memories(row.spec, row.plan, row.plan.sequence_length, row.plan.micro_batch_size))
    except PlannerError as error:
        return Reading(row, measured, None, _refusal(error))
    found = ranks[-1] if row.memory.rank == "last_stage" else max(ranks, key=lambda memory: memory.allocated_bytes)
    if row.memory.kind == "allocated":
        return Reading(row, measured, float(found.allocated_bytes), "")
    beside = 0
    if row.memory.kind == "printed":
        beside = found.overhead_bytes if row.memory.beside_bytes is None else row.memory.beside_bytes
    return Reading(row, measured, float(found.reserved_bytes + beside), "")


@functools.cache
def time_of(row: TrainingRow) -> Reading | None:
    """Seconds of a step; ``None`` where none was measured, or it is not used."""
    if row.step_seconds is None:
        return None
    try:
        found = step_time(row.spec, row.plan)
    except PlannerError as error:
        return Reading(row, row.step_seconds, None, _refusal(error))
    if found.seconds is None:
        return Reading(row, row.step_seconds, None, found.text)
    return Reading(row, row.step_seconds, float(found.seconds), "", found.profile or "")
