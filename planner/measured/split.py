"""Which measured rows efficiencies are calibrated on, and which they are only held against.

Rows that repeat a setting (a container's next release, another submitter) go to the same half, so that a row of the
second half has no twin in the first. Of the settings of one source, device and precision every second one is held out,
in an order that is as good as random.
"""

from __future__ import annotations

import collections
import functools
import hashlib

from planner.measured.rows import TrainingRow
from planner.measured.training import training_rows


def setting(row: TrainingRow) -> str:
    """What rows that repeat each other have in common."""
    plan = row.plan
    numbers = (
        plan.tensor_parallel,
        plan.pipeline_parallel,
        plan.context_parallel,
        plan.expert_parallel,
        plan.micro_batch_size,
        plan.sequence_length,
    )
    return "|".join([row.repository, row.model, str(plan.hardware), plan.precision, plan.recompute, *map(str, numbers)])


@functools.cache
def _held_out() -> frozenset[str]:
    settings: dict[tuple[str, str | None, str], set[str]] = collections.defaultdict(set)
    for row in training_rows():
        if row.step_seconds is not None:
            settings[row.repository, row.plan.hardware, row.plan.precision].add(setting(row))
    found: set[str] = set()
    for alike in settings.values():
        found.update(sorted(alike, key=lambda text: hashlib.sha256(text.encode()).digest())[1::2])
    return frozenset(found)


def is_held_out(row: TrainingRow) -> bool:
    """Whether a row belongs to the half that nothing is calibrated on."""
    return setting(row) in _held_out()
