"""What a job will take before it is sent: time, disk and memory, and what the estimate rests on.

The time is the job's FLOPs over the machine's measured rate of matrix multiplication, at a share that small models
reach of it. Where the machine has not been measured, a nominal rate stands in and the estimate says so. All of it is
``approximated``: an order of magnitude, to choose between waiting and coming back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.compute import flops
from planner.errors import UnsupportedPlan
from planner.hardware import MachineProfile
from planner.plans import BenchmarkPlan, CalibratePlan, KernelsPlan, Plan, PrototypePlan, TrainingPlan, VerifyPlan
from planner.probes import (
    AttentionCostPlan,
    GradientNormsPlan,
    ReachPlan,
    RouterLoadPlan,
    attention_layer,
    expert_layers,
    held_scores_bytes,
    narrowed_for_gradients,
    narrowed_layer,
    sequence_mixers,
)
from planner.prototype import scale_down
from planner.reach import held_bytes, narrowed_for_reach
from planner.routing import check_routing
from planner.sizing import size
from planner.spec import ArchitectureSpec
from planner.training import estimate_training
from planner.units import count_text

NOMINAL_FLOPS_PER_SECOND = 5e10
"""Stands in for an unmeasured machine: two cores of a server processor in fp32."""
SMALL_MODEL_SHARE = 0.3
"""Share of the rate of a large matrix multiplication that a small model's step reaches: much of it is elementwise."""
START_SECONDS = 8.0
"""Starting a process, loading PyTorch and building the model."""
STEP_SECONDS = 0.01
"""What a step takes beside its matrix multiplications, however small the model: launching a few hundred operations."""


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """What a job will take."""

    seconds: float
    disk_bytes: int
    memory_bytes: int
    basis: str
    """What the estimate rests on, in a sentence or two."""
    status: Literal["approximated"] = "approximated"


def estimate_job(kind: str, spec: ArchitectureSpec, plan: Plan, profile: MachineProfile | None = None) -> JobEstimate:
    """Time, disk and memory of a job of ``kind`` (``verify prototype benchmark kernels``, or a probe).

    Raises
    ------
    UnsupportedPlan
        where the kind is not known, the plan is of another kind, or the budget is too small for the structure.
    """
    match kind, plan:
        case "prototype", PrototypePlan():
            return _prototype(spec, plan, profile)
        case "benchmark", BenchmarkPlan():
            return _benchmark(spec, plan, profile)
        case "verify", VerifyPlan():
            return _verify(spec, plan)
        case "kernels", KernelsPlan():
            return _kernels(plan)
        case "calibrate", CalibratePlan():
            return _calibrate(plan)
        case "reach", ReachPlan():
            return _reach(spec, plan, profile)
        case "attention_cost", AttentionCostPlan():
            return _attention_cost(spec, plan, profile)
        case "gradient_norms", GradientNormsPlan():
            return _gradient_norms(spec, plan, profile)
        case "router_load", RouterLoadPlan():
            return _router_load(spec, plan, profile)
    raise UnsupportedPlan.of(
        f"No estimate for a job of kind {kind!r} with a {type(plan).__name__}.",
        path="kind",
        remedy="Choose a kind of job that there is, with its own plan.",
        code="unknown_job",
    )


def _rate(profile: MachineProfile | None, dtype: str) -> tuple[float, str]:
    """FLOPs a second that a small model is assumed to reach, and where the figure comes from."""
    measured = profile.matmul_flops_per_second.get(dtype) if profile is not None else None
    if measured is None or profile is None:
        return NOMINAL_FLOPS_PER_SECOND * SMALL_MODEL_SHARE, (
            f"this machine has not been measured in {dtype}: a nominal {count_text(NOMINAL_FLOPS_PER_SECOND)} FLOP/s "
            "stands in"
        )
    return measured * SMALL_MODEL_SHARE, (
        f"{SMALL_MODEL_SHARE:.0%} of the {count_text(measured)} FLOP/s in {dtype} measured on "
        f"{profile.measured_at.date().isoformat()}"
    )


Precision = Literal["fp32", "bf16_autocast"]
DTYPES: dict[Precision, str] = {"fp32": "fp32", "bf16_autocast": "bf16"}
"""What matrices are multiplied in."""


def _precision(asked: Literal["auto", "fp32", "bf16_autocast"], profile: MachineProfile | None) -> Precision:
    """The precision that a job will choose; fp32 on a machine that has not been measured."""
    if asked != "auto":
        return asked
    return "fp32" if profile is None else profile.fastest_precision


def _prototype(spec: ArchitectureSpec, plan: PrototypePlan, profile: MachineProfile | None) -> JobEstimate:
    check_routing(spec, plan)
    scaled = scale_down(spec, plan.parameter_budget, vocab_size=plan.vocab_size, sequence_length=plan.sequence_length)
    step = flops(scaled.spec, plan.sequence_length, plan.batch_size, training=True).total
    precision = _precision(plan.precision, profile)
    rate, source = _rate(profile, DTYPES[precision])
    seconds = START_SECONDS + plan.steps * (step / rate + STEP_SECONDS)
    training = TrainingPlan(
        micro_batch_size=plan.batch_size,
        sequence_length=plan.sequence_length,
        precision=precision,
        gradient_dtype="fp32",
    )
    # Weights and both moments in fp32; the old checkpoint goes when the new one is whole.
    disk = 2 * 12 * scaled.parameters
    return JobEstimate(
        seconds,
        disk,
        estimate_training(scaled.spec, training).memory.total_bytes,
        f"{count_text(scaled.parameters)} parameters, {plan.steps:,} steps of {count_text(step)} FLOPs; {source}",
    )


def _benchmark(spec: ArchitectureSpec, plan: BenchmarkPlan, profile: MachineProfile | None) -> JobEstimate:
    measured = spec
    if plan.parameter_budget is not None:
        measured = scale_down(spec, plan.parameter_budget, sequence_length=plan.sequence_length).spec
    forward = flops(measured, plan.sequence_length, plan.batch_size).total
    one_token = flops(measured, 1, plan.batch_size).total
    precision = _precision(plan.precision, profile)
    rate, source = _rate(profile, DTYPES[precision])
    work = {"prefill": forward, "decode": plan.decode_tokens * one_token, "training": 3 * forward}
    launches = {"prefill": 1, "decode": plan.decode_tokens, "training": 3}
    # Repetitions end when the interval is narrow enough; the bound is what is certain.
    repetitions = plan.warmups + plan.max_repetitions
    seconds = START_SECONDS + repetitions * sum(
        work[phase] / rate + launches[phase] * STEP_SECONDS for phase in plan.phases
    )
    training = TrainingPlan(micro_batch_size=plan.batch_size, sequence_length=plan.sequence_length, precision=precision)
    return JobEstimate(
        seconds,
        0,
        estimate_training(measured, training).memory.total_bytes,
        f"at most {repetitions:,} repetitions of {', '.join(plan.phases)} of "
        f"{count_text(size(measured).parameters.total)} parameters; {source}",
    )


def _verify(spec: ArchitectureSpec, plan: VerifyPlan) -> JobEstimate:
    # Counting and weighing run on tensors without data: the time is that of tracing each layer a few times.
    seconds = START_SECONDS + 0.25 * spec.num_layers
    return JobEstimate(
        seconds,
        0,
        2 * 2**30,
        f"{spec.num_layers:,} layers traced on tensors without data, about a quarter of a second each",
    )


def _kernels(plan: KernelsPlan) -> JobEstimate:
    seconds = START_SECONDS + 15.0 * len(plan.architectures)
    return JobEstimate(
        seconds,
        50_000_000,
        2 * 2**30,
        f"compiling for {len(plan.architectures)} architectures, some 15 seconds each",
    )


def _calibrate(plan: CalibratePlan) -> JobEstimate:
    seconds = START_SECONDS + len(plan.precisions) * (170.0 + 6.0 * len(plan.models))
    return JobEstimate(
        seconds,
        1_000_000,
        2**30,
        f"minutes for each of {len(plan.precisions)} precisions, and seconds for each of {len(plan.models)} models",
    )


FP64_SHARE = 0.25
"""Rate of fp64 over that of fp32: half the width of a vector, and twice the bytes, of matrices that are small."""

LAYERS_A_STEP = 4
"""Layers whose operations take about :data:`STEP_SECONDS` to launch, forward and backward."""


def _reach(spec: ArchitectureSpec, plan: ReachPlan, profile: MachineProfile | None) -> JobEstimate:
    small = narrowed_for_reach(spec, plan.hidden_size, plan.sequence_length, plan.keep_windows).spec
    forward = flops(small, plan.sequence_length, 1).total
    depths = plan.probed_depths(small.num_layers)
    layers = sum(depths)
    rate, source = _rate(profile, "fp32")
    if plan.precision == "fp64":
        rate *= FP64_SHARE
    # Backward from each depth over the layers below it, twice the FLOPs of forward, and each mixer row by row.
    mixers = len(sequence_mixers(small))
    passes = 1 + 2 * layers / small.num_layers + 3 * mixers * plan.sequence_length / small.num_layers
    seconds = START_SECONDS + passes * forward / rate + (small.num_layers + layers) * STEP_SECONDS
    return JobEstimate(
        seconds,
        0,
        held_bytes(small, plan.sequence_length, plan.element_bytes),
        f"{small.num_layers:,} layers, {count_text(size(small).parameters.total)} parameters, followed back from "
        f"{len(depths)} depths over {plan.sequence_length:,} positions; {source}",
    )


SCORE_SECONDS = 1e-8
"""Forward and backward pass of a score beside its products: mask, softmax and their gradients, on a processor."""
LONGEST_WAYS = 3
"""Ways of computing attention, each as slow as the square of scores at the most."""


def _attention_cost(spec: ArchitectureSpec, plan: AttentionCostPlan, profile: MachineProfile | None) -> JobEstimate:
    index, _ = attention_layer(spec, plan)
    small = narrowed_layer(spec, index, plan).spec
    mixer = small.layer_groups[0].layers[0].sequence_mixer
    heads: int = getattr(mixer, "num_attention_heads", 1)
    rate, source = _rate(profile, "fp32")
    seconds, held = START_SECONDS, 0
    for context in plan.contexts:
        scores = plan.batch_size * heads * context**2
        products = flops(small, context, plan.batch_size, training=True).total
        a_pass = products / rate + scores * SCORE_SECONDS + STEP_SECONDS
        if a_pass > plan.seconds_limit and held:
            break
        held = held_scores_bytes(small, plan, context)
        seconds += LONGEST_WAYS * (plan.repetitions + 2) * a_pass
    # Crossovers are looked for below the longest context that all ways reach.
    seconds *= 2
    return JobEstimate(
        seconds,
        0,
        held,
        f"at most {plan.repetitions:,} repetitions of each way at {len(plan.contexts)} contexts up to "
        f"{plan.contexts[-1]:,}, and as long again to find the crossovers; {source}",
    )


VALIDATION_PASSES = 8
"""Forward passes over held-out text at the end of a training."""


def _gradient_norms(spec: ArchitectureSpec, plan: GradientNormsPlan, profile: MachineProfile | None) -> JobEstimate:
    small = narrowed_for_gradients(spec, plan).spec
    step = flops(small, plan.sequence_length, plan.batch_size, training=True).total
    rate, source = _rate(profile, "fp32")
    models = len(set(plan.placements)) * plan.seeds
    steps = 1 + (plan.steps + 1 + VALIDATION_PASSES / 3 if plan.steps else 0)
    # A stack of many narrow layers takes longer to launch than to multiply.
    a_step = step / rate + STEP_SECONDS * (1 + small.num_layers / LAYERS_A_STEP)
    training = TrainingPlan(
        micro_batch_size=plan.batch_size, sequence_length=plan.sequence_length, precision="fp32", gradient_dtype="fp32"
    )
    return JobEstimate(
        START_SECONDS + models * steps * a_step,
        2 * 12 * size(small).parameters.total,
        estimate_training(small, training).memory.total_bytes,
        f"{models:,} models of {small.num_layers:,} layers, {count_text(size(small).parameters.total)} parameters, "
        f"{plan.steps:,} steps each; {source}",
    )


def _router_load(spec: ArchitectureSpec, plan: RouterLoadPlan, profile: MachineProfile | None) -> JobEstimate:
    expert_layers(spec)
    scaled = scale_down(spec, plan.parameter_budget, sequence_length=plan.sequence_length)
    step = flops(scaled.spec, plan.sequence_length, plan.batch_size, training=True).total
    rate, source = _rate(profile, "fp32")
    steps = plan.steps + VALIDATION_PASSES / 3 if plan.steps and plan.prototype is None else 0
    steps += 2 * plan.batches / 3
    training = TrainingPlan(
        micro_batch_size=plan.batch_size, sequence_length=plan.sequence_length, precision="fp32", gradient_dtype="fp32"
    )
    return JobEstimate(
        START_SECONDS + steps * (step / rate + STEP_SECONDS * (1 + scaled.spec.num_layers / LAYERS_A_STEP)),
        2 * 12 * scaled.parameters,
        estimate_training(scaled.spec, training).memory.total_bytes,
        f"{count_text(scaled.parameters)} parameters, {plan.steps if plan.prototype is None else 0:,} steps and "
        f"{plan.batches:,} batches counted; {source}",
    )
