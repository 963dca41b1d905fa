"""What a way of serving takes, and what fits a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from planner.calibration import time_here
from planner.hardware import Device, hardware
from planner.plans import ServingPlan, TrainingPlan
from planner.serving.devices import check_devices, devices_of, stages_of
from planner.serving.engines import memory_kind, profile_of
from planner.serving.formats import engine_of
from planner.serving.memory import ServingMemory, check_serving_plan, device_weights, serving_memory
from planner.serving.speculative import check_draft, speculation
from planner.serving.times import decode_work, inter_token_seconds, peak_of, prompt_passes, time_pass
from planner.spec import ArchitectureSpec, LearnedPositions
from planner.training import estimate_training

LONGEST_CONTEXT = 2**30
"""Where the search for the longest context ends."""

NO_HARDWARE = "Choose hardware to see times."
NO_PEAK = "No peak is known of this device: reading a prompt has no time, and a token takes longer at large batches."
NO_BANDWIDTH = "Times need the memory's bandwidth, and none is known of this device."


@dataclass(frozen=True, slots=True)
class InferenceEstimate:
    """What a way of serving takes."""

    memory: ServingMemory
    max_context_length: int | None
    """Longest context at the plan's batch; ``None`` without hardware, or where ``max_context_note`` says why."""
    max_batch_size: int | None
    """Most sequences of the plan's context; ``None`` without hardware. Zero where not even one fits."""
    max_context_note: str
    time_to_first_token_seconds: float | None
    """Until all prompts of the batch have been read, by a draft too; they come at once. ``None`` without hardware."""
    inter_token_latency_seconds: float | None
    """From a token to the next one of the same sequence; ``None`` without hardware."""
    tokens_per_second: float | None
    """Of all sequences and devices together, while they decode."""
    energy_per_token_joules: float | None
    """Of all devices at their rated power, while they decode: an upper bound."""
    decode_parts: dict[str, float]
    """Seconds of a pass that decodes alone, by what they go to."""
    prefill_parts: dict[str, float]
    """The same of reading all prompts."""
    time_note: str
    relative_interval: tuple[float, float] | None = None
    """Between which multiples of the times measured ones lay, of rows that the profile was not calibrated on."""
    status: str = "modelled"
    time_status: str = "unsupported"


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a way of running fits a device, by usable memory."""

    device: Device
    needed_bytes: int
    usable_bytes: int
    parts: dict[str, int]
    """They sum to ``needed_bytes``."""

    @property
    def fits(self) -> bool:
        """Whether what is needed is usable."""
        return self.needed_bytes <= self.usable_bytes

    @property
    def share(self) -> float:
        """Needed over usable: 1 is full."""
        return self.needed_bytes / self.usable_bytes


def check_serving(spec: ArchitectureSpec, plan: ServingPlan) -> None:
    """Refuse a plan that is not modelled, or that does not go with a specification in numbers."""
    check_serving_plan(plan)
    check_devices(spec, plan)
    check_draft(spec, speculation(plan.speculative))


def estimate_inference(spec: ArchitectureSpec, plan: ServingPlan) -> InferenceEstimate:
    """Memory of serving, and with hardware the longest context, the largest batch and the times.

    Raises
    ------
    UnsupportedPlan
        naming every field of the plan that is not modelled, or does not go with the specification.
    """
    check_serving(spec, plan)
    longest = batch = None
    note = "Choose hardware to see the longest context."
    times = _Times(NO_HARDWARE)
    if plan.hardware is not None:
        device = hardware(plan.hardware)
        usable, times = device.usable_memory_bytes, _times(spec, plan, device)
        longest, note = longest_context(spec, plan, usable)
        fit = _holds(spec, plan, usable)
        batch = largest_true(lambda size: fit(plan.context_length, size), LONGEST_CONTEXT)
    return InferenceEstimate(
        memory=serving_memory(spec, plan, plan.context_length, plan.batch_size),
        max_context_length=longest,
        max_batch_size=batch,
        max_context_note=note,
        time_to_first_token_seconds=times.first_token,
        inter_token_latency_seconds=times.token,
        tokens_per_second=None if times.token is None else plan.batch_size / times.token,
        energy_per_token_joules=times.energy,
        decode_parts=times.decode,
        prefill_parts=times.prefill,
        time_note=times.note,
        relative_interval=times.interval,
        time_status="unsupported" if times.token is None else "modelled",
    )


def _holds(spec: ArchitectureSpec, plan: ServingPlan, usable_bytes: int) -> Callable[[int, int], bool]:
    """Whether every stage has room for a context and a batch; weights are summed up once."""
    stages = [(stage, device_weights(spec, stage)) for stage in stages_of(plan)]
    return lambda length, size: all(
        serving_memory(spec, stage, length, size, weights).total_bytes <= usable_bytes for stage, weights in stages
    )


@dataclass(frozen=True, slots=True)
class _Times:
    note: str
    first_token: float | None = None
    token: float | None = None
    energy: float | None = None
    decode: dict[str, float] = field(default_factory=dict)
    prefill: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None


def _here(spec: ArchitectureSpec, plan: ServingPlan) -> _Times:
    """Times on this machine, from its calibration: of models as this software runs them, in fp32."""
    plain = devices_of(plan) == 1 and not plan.offload_layers
    if plan.weight_format != "fp32" or plan.speculative is not None or not plain:
        return _Times("On this machine plain serving in fp32 alone is calibrated: choose it to see times.")
    length, batch = plan.context_length, plan.batch_size
    token, interval, note = time_here(spec, "decode", batch_size=batch, length=length, precision="fp32")
    prompt, _, _ = time_here(spec, "prefill", batch_size=batch, length=length, precision="fp32")
    if token is None or prompt is None:
        return _Times(note)
    return _Times(
        note=note,
        first_token=prompt.seconds,
        token=token.seconds,
        decode=token.parts,
        prefill=prompt.parts,
        interval=interval,
    )


def _times(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> _Times:
    if device.id == "here":
        return _here(spec, plan)
    if device.memory_bandwidth_bytes_per_second is None:
        return _Times(NO_BANDWIDTH)
    engine = engine_of(plan)
    profile = profile_of(engine, device)
    token = inter_token_seconds(spec, plan, device)
    low, high = profile.relative_interval
    note = f"Times by a roofline at what {engine} reached on devices with {profile.memory_text} memory. "
    if profile.memory_kind != memory_kind(device):
        note += f"Of {memory_kind(device)} memory nothing was measured. "
    note += (
        f"Of the runs held out, nine in ten took more than {low:.2f} and nine in ten less than {high:.2f} times as long"
    )
    has_peak = peak_of(device, "bf16") is not None
    reading = prompt_passes(spec, plan, device) if has_peak else []
    return _Times(
        note=f"{note}." if has_peak else f"{note}. {NO_PEAK}",
        first_token=sum(each.seconds for each in reading) if has_peak else None,
        token=token,
        energy=None if device.power_watts is None else device.power_watts * devices_of(plan) * token / plan.batch_size,
        decode=time_pass(spec, plan, device, decode_work(spec, plan)).parts,
        prefill={name: sum(each.parts[name] for each in reading) for name in reading[0].parts} if reading else {},
        interval=profile.relative_interval,
    )


def longest_context(spec: ArchitectureSpec, plan: ServingPlan, usable_bytes: int) -> tuple[int | None, str]:
    """The longest context that fits, and what bounds it. Zero where not even one token fits."""
    bound, note = LONGEST_CONTEXT, "bounded by memory"
    if isinstance(spec.positions, LearnedPositions):
        bound = spec.positions.num_positions
    fit = _holds(spec, plan, usable_bytes)
    longest = largest_true(lambda length: fit(length, plan.batch_size), bound)
    if longest == 0 and all(device_weights(spec, stage) <= usable_bytes for stage in stages_of(plan)):
        return 0, "the weights fit, but not with one token a sequence and what a pass takes"
    if longest == 0:
        return 0, "the weights alone do not fit"
    if longest == LONGEST_CONTEXT:
        return None, "memory stops growing with the context, so it sets no bound"
    if isinstance(spec.positions, LearnedPositions) and longest == bound:
        note = "bounded by the learned positions"
    return longest, note


def largest_true(holds: Callable[[int], bool], bound: int) -> int:
    """The largest whole number up to ``bound`` for which ``holds``, given that it holds up to some number; else 0."""
    if not holds(1):
        return 0
    low, high = 1, 2
    while high <= bound and holds(high):
        low, high = high, high * 2
    high = min(high, bound + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def fits(spec: ArchitectureSpec, plan: ServingPlan | TrainingPlan, device: Device | str) -> Fit:
    """Whether serving or training under ``plan`` fits ``device``, by usable memory."""
    if isinstance(device, str):
        device = hardware(device)
    if isinstance(plan, TrainingPlan):
        training = estimate_training(spec, plan).memory
        return Fit(device, training.total_bytes, device.usable_memory_bytes, training.parts)
    check_serving(spec, plan)
    serving = serving_memory(spec, plan, plan.context_length, plan.batch_size)
    return Fit(device, serving.total_bytes, device.usable_memory_bytes, serving.parts)
