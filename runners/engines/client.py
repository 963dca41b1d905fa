"""Submitting and cancelling jobs: all that the web process imports of the runners. Knows no torch and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.errors import UnsupportedPlan
from planner.generation import GeneratePlan
from planner.plans import BenchmarkPlan, CalibratePlan, KernelsPlan, Plan, PrototypePlan, VerifyPlan, parse_plan
from planner.probes import AttentionCostPlan, GradientNormsPlan, ReachPlan, RouterLoadPlan

if TYPE_CHECKING:
    from db.engine import Store
    from db.records import Job, Worker

PLANS: Mapping[str, type[Plan]] = {
    "verify": VerifyPlan,
    "prototype": PrototypePlan,
    "benchmark": BenchmarkPlan,
    "calibrate": CalibratePlan,
    "generate": GeneratePlan,
    "kernels": KernelsPlan,
    "reach": ReachPlan,
    "attention_cost": AttentionCostPlan,
    "gradient_norms": GradientNormsPlan,
    "router_load": RouterLoadPlan,
}
HOW_TO_START = "make app starts one; alone: .venv/bin/python -m runners worker"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Whether anyone takes jobs."""

    workers: tuple[Worker, ...]
    how_to_start: str = HOW_TO_START

    @property
    def alive(self) -> bool:
        """Whether at least one worker was heard of lately."""
        return bool(self.workers)


def submit(store: Store, kind: str, revision_id: int, plan: Plan | Mapping[str, Any], name: str | None = None) -> Job:
    """Queue a job on a saved revision, after its plan was checked; ``UnsupportedPlan`` names the fields."""
    plan_class = PLANS.get(kind)
    if plan_class is None:
        raise UnsupportedPlan.of(
            f"There is no kind of job called {kind!r}.",
            path="kind",
            remedy=f"Choose one of {', '.join(PLANS)}.",
            code="unknown_job_kind",
        )
    checked = plan if isinstance(plan, plan_class) else parse_plan(plan_class, dict(plan))
    return store.jobs.enqueue(kind, revision_id, checked.model_dump(mode="json"), name)


def cancel(store: Store, job_id: str) -> Job:
    """Ask that a job end; it is cancelled once its processes are gone."""
    return store.jobs.request_cancel(job_id)


def worker_status(store: Store) -> WorkerStatus:
    """The workers that were heard of within the last seconds."""
    return WorkerStatus(store.workers.alive())
