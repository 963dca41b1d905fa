"""Stored measurements of the designs under comparison, grouped so that only like is held beside like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planner.comparison import Spread

if TYPE_CHECKING:
    from db.engine import Store
    from db.records import Result, Revision

SEED_FIELDS = ("seed", "checkpoint_every", "sample_tokens")
"""Fields of a plan that do not make two prototypes incomparable."""


@dataclass(frozen=True)
class Prototypes:
    """The prototypes of one revision under one plan, a seed each."""

    plan: Mapping[str, Any]
    results: tuple[Result, ...]

    def spread(self, name: str) -> Spread | None:
        """The values of one number over the seeds."""
        values = [result.values[name] for result in self.results if isinstance(result.values.get(name), (int, float))]
        return Spread(tuple(float(value) for value in values)) if values else None

    def first(self, name: str) -> Any:
        """A value that all seeds share."""
        return next((result.values[name] for result in self.results if name in result.values), None)


@dataclass(frozen=True)
class Measured:
    """What was measured of one revision."""

    prototypes: Prototypes | None = None
    benchmark: Result | None = None
    others: tuple[str, ...] = field(default=())
    """Prototypes that were left out, and why."""


def plan_key(plan: Mapping[str, Any]) -> str:
    """What makes two prototypes comparable: everything of the plan but the seed and what changes no result.

    A field that is absent is one that is empty: plans are stored with the fields that there were at the time.
    """
    said = {name: value for name, value in plan.items() if name not in SEED_FIELDS and value is not None}
    return json.dumps(said, sort_keys=True)


def of_revisions(
    store: Store, revisions: Sequence[Revision], chosen_results: Sequence[int] = ()
) -> tuple[list[Measured], list[str]]:
    """The measurements of each revision, and the plans under which prototypes of them exist (the most shared first).

    With ``chosen_results``, only those results are read.
    """
    prototypes: list[list[tuple[str, Mapping[str, Any], Result]]] = []
    benchmarks: list[Result | None] = []
    for revision in revisions:
        results = store.results.list(content_hash=revision.content_hash)
        if chosen_results:
            results = tuple(result for result in results if result.id in chosen_results)
        mine = []
        for result in results:
            if result.kind == "prototype":
                plan = store.jobs.get(result.job_id).plan
                mine.append((plan_key(plan), plan, result))
        prototypes.append(mine)
        benchmarks.append(next((result for result in results if result.kind == "benchmark"), None))
    shared: dict[str, int] = {}
    for mine in prototypes:
        for key in {key for key, _, _ in mine}:
            shared[key] = shared.get(key, 0) + 1
    if not shared:
        return [Measured(None, benchmark) for benchmark in benchmarks], []
    plans = sorted(shared, key=lambda key: -shared[key])
    found = []
    for mine, benchmark in zip(prototypes, benchmarks, strict=True):
        fitting = {
            result.values.get("seed", result.id): (plan, result) for key, plan, result in mine if key == plans[0]
        }
        left_out = [result.name for key, _, result in mine if key != plans[0]]
        group = None
        if fitting:
            seeds = [fitting[seed] for seed in sorted(fitting)]
            group = Prototypes(seeds[0][0], tuple(result for _, result in seeds))
        found.append(Measured(group, benchmark, tuple(left_out)))
    return found, plans
