"""Calibration: what this machine takes for matrices, components and the rest, held against models that it then runs.

The profile is a file that the planner reads (:mod:`planner.calibration`); the result has it too, with each prediction
made from it beside what was measured of small models of known designs, none of which it was made from.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from typing import Any

from planner.calibration import PHASE_LABELS, PHASES, Calibration, calibration_path, predict_time
from planner.errors import PlannerError
from planner.plans import CalibratePlan
from planner.presets import preset
from planner.prototype import scale_down
from planner.spec import ArchitectureSpec
from runners.environment import default_device, describe
from runners.events import Event, Log, Progress, Result
from runners.jobs.base import JobContext
from runners.jobs.verify import prediction
from runners.training.calibration import Held, Measured, measure


def run(spec: ArchitectureSpec, plan: CalibratePlan, context: JobContext) -> Iterator[Event]:
    """Measure the machine, then the models of the plan; the specification is not read."""
    held = [_held(name, plan) for name in plan.models]
    measured: Measured | None = None
    total = 0
    for said in measure(plan.precisions, held):
        if isinstance(said, Measured):
            measured = said
        else:
            yield Progress(said.done, said.total, "measurements", f"· {said.message}")
            total = said.total
    assert measured is not None
    calibration = measured.calibration
    store(calibration)
    rows: list[dict[str, Any]] = []
    for each in held:
        for row in _rows(each, measured, plan):
            yield Log(f"{row['quantity']}: predicted {row['predicted']:.4g} s, measured {row['measured']:.4g} s")
            rows.append(row)
    if rows:
        ratios = sorted(row["measured"] / row["predicted"] for row in rows)
        tenth = len(ratios) // 10
        calibration = calibration.model_copy(update={"relative_interval": (ratios[tenth], ratios[-1 - tenth])})
        store(calibration)
        yield Log(f"median error of {len(rows)} times: {statistics.median(abs(row['error']) for row in rows):.1%}")
    yield Progress(total, total, "measurements")
    yield Result(
        "calibrate", {"rows": rows, "calibration": calibration.model_dump(mode="json")}, describe(default_device())
    )


def store(calibration: Calibration) -> None:
    """Leave the profile where the planner finds it; a reader sees the old one or the new one whole."""
    path = calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(calibration.model_dump_json(indent=1))
    temporary.replace(path)


def _held(name: str, plan: CalibratePlan) -> Held:
    # One position more than a prompt has, for the token after it.
    small = scale_down(preset(name).spec, plan.parameter_budget, sequence_length=plan.sequence_length + 1).spec
    return Held(name, small, plan.batch_size, plan.sequence_length)


def _rows(held: Held, measured: Measured, plan: CalibratePlan) -> Iterator[dict[str, Any]]:
    """Each phase of a small model of a known design, predicted and measured."""
    for precision in plan.precisions:
        for phase in PHASES:
            try:
                predicted = predict_time(
                    held.spec, measured.calibration, phase, batch_size=held.batch_size, length=held.length,
                    precision=precision,
                )  # fmt: skip
            except PlannerError:
                continue
            seconds = measured.passes[held.label, precision, phase]
            how = f"{held.label} with {plan.parameter_budget:,} parameters, {precision}, median of repetitions"
            row = prediction(PHASE_LABELS[phase], predicted.seconds, seconds, "seconds", how, "modelled")
            yield {**row, "label": held.label, "profile": predicted.profile, "spec": held.spec.to_dict()}
