"""Will it run, and with which settings: what a device holds of a way of running, and what would make it fit.

Every suggestion is exact by search: it is the widest format, the longest context or the most requests that fits, and
the next one no longer does. Each stands by itself; only where none does are two changes taken together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from planner.cache import formats_for
from planner.calibration import Precision
from planner.errors import PlannerError, UnsupportedPlan
from planner.hardware import Device
from planner.plans import ServingPlan, TrainingPlan, VerifyPlan
from planner.sensitivity import largest, smallest_device
from planner.serving import WEIGHT_FORMATS, Fit, fits
from planner.serving.formats import GGUF_FORMATS, PLAIN_FORMATS
from planner.spec import ArchitectureSpec, LearnedPositions

MOST_DEVICES = 8
"""Devices that a suggestion divides one model over: those of one node."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change with which it fits."""

    fields: dict[str, Any]
    """Fields of the plan and their new values; empty where the device alone is another."""
    device: Device
    fit: Fit
    cost: str
    """What it costs, in words."""


def most_positions(spec: ArchitectureSpec) -> int | None:
    """Positions that a design with learned ones has; ``None`` where nothing bounds the length."""
    return spec.positions.num_positions if isinstance(spec.positions, LearnedPositions) else None


def usual_length(spec: ArchitectureSpec, wanted: int) -> int:
    """``wanted`` tokens, or as many as a design has positions."""
    return min(wanted, most_positions(spec) or wanted)


def check_length(spec: ArchitectureSpec, field_name: str, length: int) -> None:
    """Refuse a length for which a design has no positions."""
    most = most_positions(spec)
    if most is not None and length > most:
        raise UnsupportedPlan.of(
            f"{spec.name} has {most:,} learned positions, and none for {length:,} tokens.",
            path=field_name,
            remedy=f"Choose at most {most:,}.",
            code="no_such_position",
        )


# --- formats of weights ---


def formats_on(device: Device) -> tuple[str, ...]:
    """Formats that engines run on a device: on a processor the plain types and GGUF's."""
    return (*PLAIN_FORMATS, *GGUF_FORMATS) if device.kind == "cpu" else WEIGHT_FORMATS


def widest_format(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> tuple[str, Fit] | None:
    """The widest weights that fit at the plan's context and batch, and the fit; ``None`` where none fit.

    None wider than 16 bits is looked at, as weights are published in these, unless the plan itself asks for wider.
    """
    asked = [fits(spec, plan, device), _with(spec, plan, device, {"weight_format": "bf16"})]
    widest = max(fit.needed_bytes for fit in asked)
    tried = _tried(spec, plan, device, "weight_format", formats_on(device))
    return next(((name, fit) for name, fit in tried if fit.fits and fit.needed_bytes <= widest), None)


def _with(spec: ArchitectureSpec, plan: ServingPlan | TrainingPlan, device: Device, fields: dict[str, Any]) -> Fit:
    return fits(spec, plan.model_copy(update=fields), device)


def _tried(
    spec: ArchitectureSpec, plan: ServingPlan, device: Device, name: str, values: Iterable[str]
) -> list[tuple[str, Fit]]:
    """The fit of each value of a field that goes with the rest, the widest first."""
    found = []
    for value in values:
        try:
            found.append((value, _with(spec, plan, device, {name: value})))
        except PlannerError:  # a format that does not go with this design or plan
            continue
    return sorted(found, key=lambda pair: -pair[1].needed_bytes)  # stable: of equals the first named


# --- what would make it fit ---


def serving_suggestions(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> tuple[Suggestion, ...]:
    """Changes with which serving fits, from the one that costs least; empty where it fits, or nothing helps."""
    if fits(spec, plan, device).fits:
        return ()
    found = list(_alone(spec, plan, device))
    if not any(each.device == device for each in found):
        found[:0] = _together(spec, plan, device)
    smallest = smallest_device(spec, plan)
    if smallest is not None:
        found.append(Suggestion({}, smallest, fits(spec, plan, smallest), "another device: the smallest that holds it"))
    return tuple(found)


def _alone(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> Iterator[Suggestion]:
    def suggestion(fields: dict[str, Any], cost: str) -> Suggestion:
        return Suggestion(fields, device, _with(spec, plan, device, fields), cost)

    format_fit = widest_format(spec, plan, device)
    if format_fit is not None:
        yield suggestion({"weight_format": format_fit[0]}, "weights are rounded: not the same arithmetic")
    for name, fit in _tried(spec, plan, device, "cache_dtype", formats_for(spec)):
        if fit.fits:
            yield suggestion({"cache_dtype": name}, "keys and values are rounded: not the same arithmetic")
            break
    for name, cost in (("batch_size", "fewer requests at a time"), ("context_length", "shorter prompts and answers")):
        most = largest(spec, f"plan.{name}", plan, device=device).value
        if most is not None and most < getattr(plan, name):
            yield suggestion({name: most}, cost)
    if device.kind == "gpu":
        layers = _least(lambda count: _with(spec, plan, device, {"offload_layers": count}).fits, spec.num_layers)
        if layers is not None:
            yield suggestion({"offload_layers": layers}, "these layers lie in the host's memory: slower by far")
    if device.kind in ("gpu", "tpu") and device.id != "here":
        for count in (2**exponent for exponent in range(1, MOST_DEVICES.bit_length())):
            try:
                if _with(spec, plan, device, {"tensor_parallel": count}).fits:
                    yield suggestion({"tensor_parallel": count}, f"{count} of these devices, joined in every layer")
                    break
            except PlannerError:  # heads that do not divide
                continue


def _least(holds: Callable[[int], bool], bound: int) -> int | None:
    """The least number from 1 to ``bound`` for which ``holds``, given that it holds from some number on."""
    try:
        if not holds(bound):
            return None
        low, high = 0, bound
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
    except PlannerError:  # a plan under which none can be moved
        return None
    return high


def _together(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> Iterator[Suggestion]:
    """Two changes at once: one request in the widest weights that fit; else the narrowest, and a shorter context."""
    alone = plan.model_copy(update={"batch_size": 1})
    one: dict[str, Any] = {"batch_size": 1} if plan.batch_size > 1 else {}
    found = widest_format(spec, alone, device)
    if found is not None:
        fields = {"weight_format": found[0], **one}
        yield Suggestion(fields, device, found[1], "rounded weights, and one request at a time")
        return
    narrowest = _tried(spec, alone, device, "weight_format", formats_on(device))[-1][0]
    narrow = alone.model_copy(update={"weight_format": narrowest})
    most = largest(spec, "plan.context_length", narrow, device=device).value
    if most is not None:
        fields = {"weight_format": narrowest, "context_length": most, **one}
        yield Suggestion(
            fields, device, _with(spec, plan, device, fields), "the narrowest weights, and a short context"
        )


def training_suggestions(spec: ArchitectureSpec, plan: TrainingPlan, device: Device) -> tuple[Suggestion, ...]:
    """A smaller batch, shorter sequences or another device with which training fits; empty where it does anyway.

    What else a step could do without is :attr:`planner.training.TrainingEstimate.changes`.
    """
    if fits(spec, plan, device).fits:
        return ()
    found = []
    for name, cost in (
        ("micro_batch_size", "smaller matrices"),
        ("sequence_length", "the model sees no further than this"),
    ):
        most = largest(spec, f"plan.{name}", plan, device=device).value
        if most is not None and most < getattr(plan, name):
            found.append(Suggestion({name: most}, device, _with(spec, plan, device, {name: most}), cost))
    smallest = smallest_device(spec, plan)
    if smallest is not None:
        found.append(Suggestion({}, smallest, fits(spec, plan, smallest), "another device: the smallest that holds it"))
    return tuple(found)


# --- times on this machine ---

SERVED_BY_JOBS = {"weight_format": "fp32", "cache_dtype": "fp32"}
"""Fields of a serving plan as jobs run models: what the calibration of this machine times."""
TRAINED_BY_JOBS = {"precision": "fp32"}
"""The same of a training plan."""


# --- the job that verifies it ---


def verification_of(spec: ArchitectureSpec, plan: ServingPlan | TrainingPlan) -> VerifyPlan:
    """The verification at the shape of a plan, or as near to it as a job and the design's positions go."""
    if isinstance(plan, ServingPlan):
        batch, length = plan.batch_size, plan.context_length
        precision: Precision = "bf16_autocast"
    else:
        batch, length = plan.micro_batch_size, plan.sequence_length
        precision = "fp32" if plan.precision == "fp32" else "bf16_autocast"
    bounds = (_bound("sequence_length"), _bound("context_length"), most_positions(spec) or length)
    length = min(length, *bounds)
    return VerifyPlan(
        batch_size=min(batch, _bound("batch_size")), sequence_length=length, context_length=length, precision=precision
    )


def _bound(name: str) -> int:
    """The most that a verification takes of a field."""
    return next(each.le for each in VerifyPlan.model_fields[name].metadata if hasattr(each, "le"))
