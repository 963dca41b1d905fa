"""Stored measurements of the very design that is open, beside what the planner predicts for the same shape today.

::

    found = checks.of_design(draft.spec)   # quantity of the key numbers → its measurements
    checks.show(found["cache"])                          # a table: predicted, measured, error, and where

Results are found by the content of the specification, so a design that is not saved under this name has them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pages.widgets import chrome, figures, job_view, theme, words
from planner import (
    ArchitectureSpec,
    PlannerError,
    TrainingPlan,
    VerifyPlan,
    cache_bytes,
    estimate_training,
    flops,
    parse_plan,
    size,
)

if TYPE_CHECKING:
    from db.engine import Store
    from db.records import Result

QUANTITIES = {
    "Parameters": "parameters",
    "FLOPs, forward": "flops_forward",
    "FLOPs, training step": "flops_training",
    "Cache": "cache",
    "Peak training memory": "training_memory",
}
"""Rows of a verification, and the key number that each is the measurement of."""


@dataclass(frozen=True, slots=True)
class Check:
    """One measurement of a quantity; ``predicted`` is what the planner says today for the shape that was measured."""

    shape: str
    """What was measured: ``128 tokens, one sequence``."""
    predicted: float | None
    measured: float
    unit: str
    how: str
    environment: Mapping[str, Any]
    job_id: str

    @property
    def error(self) -> float | None:
        """The prediction's error, as a share of what was measured."""
        if self.predicted is None:
            return None
        return (self.predicted - self.measured) / self.measured if self.measured else float(self.predicted != 0)

    @property
    def words(self) -> str:
        """What the mark beside the number says."""
        error = self.error
        if error is None:
            return f"measured: {job_view.quantity_text(self.measured, self.unit)}, {self.shape}"
        said = "as predicted" if error == 0 else f"the prediction is {figures.percent(abs(error))} too "
        return f"measured: {said}{'' if error == 0 else 'high' if error > 0 else 'low'}, {self.shape}"


def of_design(spec: ArchitectureSpec) -> dict[str, list[Check]]:
    """The newest measurement of each quantity; empty where nothing was verified, or the store cannot be read."""
    from db.errors import StoreError

    store = chrome.store_if_open()
    if store is None:
        return {}
    try:
        found = store.results.list(kind="verify", content_hash=spec.content_hash())
        return _newest(store, spec, sorted(found, key=lambda result: result.id, reverse=True))
    except StoreError:
        return {}


def _newest(store: Store, spec: ArchitectureSpec, results: Sequence[Result]) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    shapes: set[tuple[str, str]] = set()
    for result in results:
        try:
            plan = parse_plan(VerifyPlan, dict(store.jobs.get(result.job_id).plan))
        except PlannerError:  # a plan of an earlier version, whose shape is not known any more
            continue
        for row in result.values.get("rows", ()):
            quantity = QUANTITIES.get(row.get("quantity"))
            if quantity is None or not isinstance(row.get("measured"), (int, float)):
                continue
            shape = shape_of(quantity, plan)
            if (quantity, shape) in shapes:  # an older measurement of the same
                continue
            shapes.add((quantity, shape))
            check = Check(
                shape,
                predicted(spec, quantity, plan),
                row["measured"],
                row.get("unit", ""),
                row.get("how", ""),
                result.environment,
                result.job_id,
            )
            found.setdefault(quantity, []).append(check)
    return found


def shape_of(quantity: str, plan: VerifyPlan) -> str:
    """What a verification measured a quantity at, in words."""
    sequences = "one sequence" if plan.batch_size == 1 else f"{plan.batch_size:,} sequences"
    match quantity:
        case "parameters":
            return "the built model"
        case "cache":
            return f"{sequences} of {plan.context_length:,} tokens, bf16"
        case "training_memory":
            precision = words.setting(plan.precision)
            return f"{sequences} of {plan.sequence_length:,} tokens, AdamW, {precision}, without overhead"
    return f"{sequences} of {plan.sequence_length:,} tokens"


@lru_cache(maxsize=256)
def predicted(spec: ArchitectureSpec, quantity: str, plan: VerifyPlan) -> float | None:
    """What the planner says of a quantity at the shape of a verification; ``None`` where it refuses."""
    try:
        match quantity:
            case "parameters":
                return size(spec).parameters.total
            case "cache":
                return cache_bytes(spec, plan.context_length, plan.batch_size, "bf16")
            case "training_memory":
                training = TrainingPlan(
                    micro_batch_size=plan.batch_size, sequence_length=plan.sequence_length, precision=plan.precision
                )
                memory = estimate_training(spec, training).memory
                return memory.total_bytes - memory.overhead_bytes
        training_step = quantity == "flops_training"
        return flops(spec, plan.sequence_length, plan.batch_size, training=training_step).total
    except PlannerError:
        return None


def show(found: Sequence[Check]) -> None:
    """The measurements of one number as a table, each with a way to the job that took it."""
    if not found:
        return
    rows = "".join(
        f'<tr title="{chrome.escape(check.how)}"><td>{chrome.status_glyph("measured")} {chrome.escape(check.shape)}'
        f'<br><span class="pl-soft">{chrome.escape(job_view.environment_line(check.environment))}</span></td>'
        f'<td class="fig">{job_view.quantity_text(check.predicted, check.unit)}</td>'
        f'<td class="fig">{job_view.quantity_text(check.measured, check.unit)}</td>'
        f'<td class="fig">{job_view.error_html(check.error)}</td></tr>'
        for check in found
    )
    chrome.html(
        '<table class="pl-table pl-checks"><thead><tr><th>Measured on this design</th><th>Predicted</th>'
        f"<th>{theme.STATUS_WORDS['measured'].capitalize()}</th><th>Error</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    for job_id in dict.fromkeys(check.job_id for check in found):
        chrome.link("jobs", "The job that measured it", job=job_id)
