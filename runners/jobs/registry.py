"""The kinds of jobs: which plan each takes and which module runs it. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from planner.errors import UnsupportedPlan
from planner.plans import Plan
from planner.spec import ArchitectureSpec
from runners.events import Event
from runners.jobs.base import JobContext

Run = Callable[[ArchitectureSpec, Any, JobContext], Iterator[Event]]


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of job."""

    plan: str
    """``module:class`` of its plan."""
    module: str
    """Module whose ``run(spec, plan, context)`` does the work."""

    def load_plan(self) -> type[Plan]:
        """The class of the plan."""
        module, _, name = self.plan.partition(":")
        return getattr(importlib.import_module(module), name)

    def load_run(self) -> Run:
        """The function that runs the job; imports torch for most kinds."""
        return importlib.import_module(self.module).run


JOBS: dict[str, JobKind] = {
    "verify": JobKind("planner.plans:VerifyPlan", "runners.jobs.verify"),
    "prototype": JobKind("planner.plans:PrototypePlan", "runners.jobs.prototype"),
    "benchmark": JobKind("planner.plans:BenchmarkPlan", "runners.jobs.benchmark"),
    "calibrate": JobKind("planner.plans:CalibratePlan", "runners.jobs.calibrate"),
    "generate": JobKind("planner.generation:GeneratePlan", "runners.jobs.generate"),
    "kernels": JobKind("planner.plans:KernelsPlan", "runners.jobs.kernels"),
    "reach": JobKind("planner.probes:ReachPlan", "runners.jobs.reach"),
    "attention_cost": JobKind("planner.probes:AttentionCostPlan", "runners.jobs.attention_cost"),
    "gradient_norms": JobKind("planner.probes:GradientNormsPlan", "runners.jobs.gradient_norms"),
    "router_load": JobKind("planner.probes:RouterLoadPlan", "runners.jobs.router_load"),
}


def job_kind(name: str) -> JobKind:
    """The kind of that name; ``UnsupportedPlan`` lists the kinds there are."""
    if name in JOBS:
        return JOBS[name]
    raise UnsupportedPlan.of(
        f"There is no kind of job called {name!r}.",
        path="kind",
        remedy=f"Choose one of {', '.join(JOBS)}.",
        code="unknown_job_kind",
    )
