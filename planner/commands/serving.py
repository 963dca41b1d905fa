"""``serve`` and ``fit``: what serving takes, and which devices hold it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from planner.commands.common import Rows, plain_data, plan_from, read_spec, rows_of_parts, say_too_long, table
from planner.plans import ServingPlan, TrainingPlan
from planner.units import bytes_text

if TYPE_CHECKING:
    from planner.serving import InferenceEstimate
    from planner.serving.times import RooflinePoint

OPERATORS = 8
"""Operators that are printed."""


def serve(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.serving import estimate_inference
    from planner.serving.times import roofline
    from planner.uncertainty import of_serving

    plan = plan_from(ServingPlan, options.settings)
    spec = read_spec(options.spec).spec
    say_too_long(spec, plan.context_length)
    estimate = estimate_inference(spec, plan)
    rows = rows_of_parts(estimate.memory.parts)
    ideal = estimate.memory.ideal_cache_bytes
    rows.append(("of the cache, filled", bytes_text(ideal), f"{ideal:,} bytes"))
    if plan.hardware is not None:
        longest = estimate.max_context_length
        rows.append(("longest context", "no bound" if longest is None else f"{longest:,}", estimate.max_context_note))
        rows.append(("largest batch", f"{estimate.max_batch_size:,}", f"at {plan.context_length:,} tokens"))
    data = plain_data(estimate)
    data["memory"]["total_bytes"] = estimate.memory.total_bytes
    bounds = of_serving(spec, plan, estimate.memory)
    lines = [table(rows), bounds.text]
    if estimate.inter_token_latency_seconds is not None:
        points = roofline(spec, plan)
        data["roofline"] = plain_data(points)
        lines += ["", table(_time_rows(estimate)), "", table(_roofline_rows(points))]
    return {**data, "uncertainty": plain_data(bounds)}, "\n".join([*lines, estimate.time_note])


def _time_rows(estimate: InferenceEstimate) -> Rows:
    first, token, rate = (
        estimate.time_to_first_token_seconds,
        estimate.inter_token_latency_seconds,
        estimate.tokens_per_second,
    )
    assert token is not None
    assert rate is not None
    rows: Rows = [
        ("", "seconds", ""),
        ("time to first token", "not known" if first is None else f"{first:.4g}", ""),
        ("inter-token latency", f"{token:.4g}", f"{rate:,.4g} tokens a second in all"),
    ]
    rows += [(f"  {name}", f"{seconds:.4g}", "") for name, seconds in estimate.decode_parts.items() if seconds]
    if estimate.energy_per_token_joules is not None:
        rows.append(("energy a token, at most", "", f"{estimate.energy_per_token_joules:,.3g} J"))
    return rows


def _roofline_rows(points: Sequence[RooflinePoint]) -> Rows:
    """The operators of a pass that decodes, those that take longest first."""
    rows: Rows = [("decoding, by operator", "of the time", "FLOPs a byte", "bound by")]
    decoded = sorted((each for each in points if each.phase == "decode"), key=lambda each: -each.seconds)
    whole = sum(each.seconds for each in decoded)
    for each in decoded[:OPERATORS]:
        name = f"{each.component.replace('_', ' ')}: {each.name}"
        rows.append((name, f"{each.seconds / whole:.0%}", f"{each.intensity:,.1f}", each.bound))
    return rows


def fit(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.hardware import hardware, hardware_catalogue
    from planner.serving import fits

    plan: TrainingPlan | ServingPlan
    if options.training:
        plan = plan_from(TrainingPlan, options.settings)
    else:
        plan = plan_from(ServingPlan, options.settings)
    spec = read_spec(options.spec).spec
    devices = [hardware(options.device)] if options.device else list(hardware_catalogue())
    found = [fits(spec, plan, device) for device in devices]
    rows: Rows = [("device", "usable", "needed", "share", "")]
    data = []
    for each in found:
        verdict = "fits" if each.fits else "does not fit"
        rows.append(
            (each.device.id, bytes_text(each.usable_bytes), bytes_text(each.needed_bytes), f"{each.share:.0%}", verdict)
        )
        data.append(
            {
                "device": each.device.id,
                "usable_bytes": each.usable_bytes,
                "needed_bytes": each.needed_bytes,
                "fits": each.fits,
                "parts": each.parts,
            }
        )
    return data, table(rows)
