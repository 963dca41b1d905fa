"""A benchmark: prefill, decoding and a training step of a design, timed until the interval of the median is narrow."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from planner.calibration import PHASE_LABELS, as_phase, predict_time, stored_calibration
from planner.compute import flops
from planner.errors import UnsupportedPlan
from planner.plans import BenchmarkPlan, TrainingPlan
from planner.prototype import scale_down
from planner.sizing import size
from planner.spec import ArchitectureSpec, LearnedPositions
from planner.training import estimate_training
from runners.environment import default_device, describe
from runners.events import Event, Log, Metric, Progress, Result
from runners.jobs.base import JobContext, JobFailure
from runners.jobs.fitting import refuse_what_does_not_fit
from runners.jobs.verify import prediction
from runners.models import Decoder, build
from runners.models.decoder import next_tokens
from runners.profile import current
from runners.training.timing import Timing, time_until_narrow

STATE_BYTES = 16
"""fp32 weights, gradients and two moments: the least that a training step holds a parameter."""


def run(spec: ArchitectureSpec, plan: BenchmarkPlan, context: JobContext) -> Iterator[Event]:
    """Time each phase of the plan; every repetition is a metric."""
    rules: list[str] = []
    if plan.parameter_budget is not None:
        scaled = scale_down(spec, plan.parameter_budget, sequence_length=plan.sequence_length + plan.decode_tokens)
        spec, rules = scaled.spec, scaled.rules
    longest = plan.sequence_length + plan.decode_tokens
    if isinstance(spec.positions, LearnedPositions) and longest > spec.positions.num_positions:
        raise JobFailure(
            f"sequence_length: with the decoded tokens {longest:,} positions are read, and the model knows "
            f"{spec.positions.num_positions:,}; choose a shorter one"
        )
    device = default_device()
    profile = current()  # measures the machine once, for later estimates
    reason = profile.why_fastest if plan.precision == "auto" else "as given"
    precision = profile.fastest_precision if plan.precision == "auto" else plan.precision
    if plan.precision == "auto":
        plan = plan.model_copy(update={"precision": precision})
        yield Log(f"{precision}: {reason}")
    _refuse_what_does_not_fit(spec, plan, device)
    environment = describe(device)
    model = build(spec, device=device, kernels=plan.kernels)
    tokens = torch.randint(0, spec.vocab_size, (plan.batch_size, plan.sequence_length), device=device)
    timings: dict[str, dict[str, Any]] = {}
    total = len(plan.phases) * (plan.warmups + plan.max_repetitions)
    for index, phase in enumerate(plan.phases):
        call = _phase(phase, model, tokens, plan)
        timing: Timing | None = None
        repetitions = time_until_narrow(call, device, plan.warmups, plan.max_repetitions, plan.relative_interval)
        for count, measured in enumerate(repetitions):
            timing = measured
            if count % 10 == 0:
                done = index * (plan.warmups + plan.max_repetitions) + count
                yield Progress(done, total, "repetitions at most", f"· {phase}")
        assert timing is not None
        if not timing.narrow:
            yield Log(
                f"{phase}: the interval was still wider than {plan.relative_interval:.0%} of the median after "
                f"{timing.repetitions} repetitions",
                "warning",
            )
        yield Metric(f"{phase}_seconds", 0, timing.median_seconds)
        counted = plan.decode_tokens if phase == "decode" else plan.sequence_length
        timings[phase] = {
            **dataclasses.asdict(timing),
            "tokens_per_second": plan.batch_size * counted / timing.median_seconds,
        }
        yield Log(f"{phase}: {timing.median_seconds:.4g} s, median of {timing.repetitions}")
    yield Progress(total, total, "repetitions at most")
    values = {
        "timings": timings,
        "parameters": size(spec).parameters.total,
        "forward_flops": flops(spec, plan.sequence_length, plan.batch_size).total,
        "batch_size": plan.batch_size,
        "sequence_length": plan.sequence_length,
        "decode_tokens": plan.decode_tokens,
        "precision": precision,
        "precision_reason": reason,
        "kernels": plan.kernels if plan.kernels != "auto" else ("triton" if device == "cuda" else "eager"),
        "rules": rules,
        "rows": list(_predictions(spec, plan, precision, timings)),
        "spec": spec.to_dict(),
    }
    yield Result("benchmark", values, environment)


def _predictions(
    spec: ArchitectureSpec,
    plan: BenchmarkPlan,
    precision: Literal["fp32", "bf16_autocast"],
    timings: dict[str, dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """What the machine's calibration says of each phase, beside what was timed; nothing where there is none."""
    try:
        calibration = stored_calibration()
    except UnsupportedPlan:
        return
    if calibration is None or plan.kernels not in ("auto", "eager"):
        return
    for phase, timing in timings.items():
        tokens = plan.decode_tokens if phase == "decode" else 1
        length = plan.sequence_length + (plan.decode_tokens // 2 if phase == "decode" else 0)
        try:
            predicted = predict_time(
                spec, calibration, as_phase(phase), batch_size=plan.batch_size, length=length, precision=precision
            )
        except UnsupportedPlan:
            continue
        how = f"median of {timing['repetitions']} repetitions, {precision}"
        measured = timing["median_seconds"] / tokens
        row = prediction(PHASE_LABELS[as_phase(phase)], predicted.seconds, measured, "seconds", how, "modelled")
        yield {**row, "profile": predicted.profile}


def _refuse_what_does_not_fit(spec: ArchitectureSpec, plan: BenchmarkPlan, device: str) -> None:
    needed = (STATE_BYTES if "training" in plan.phases else 4) * size(spec).parameters.total
    if "training" in plan.phases:
        training = TrainingPlan(
            micro_batch_size=plan.batch_size, sequence_length=plan.sequence_length, precision=plan.precision
        )
        with contextlib.suppress(UnsupportedPlan):
            needed = estimate_training(spec, training).memory.total_bytes
    remedy = "choose a smaller budget, a smaller batch or a shorter sequence"
    refuse_what_does_not_fit(needed, device, "parameter_budget", remedy)


def _phase(phase: str, model: Decoder, tokens: torch.Tensor, plan: BenchmarkPlan) -> Callable[[], object]:
    """One repetition.

    Each enters its precision anew, as a training loop does: autocast keeps what it cast until it ends, and weights that
    a step has changed would not be cast again.
    """
    precision = functools.partial(_precision, plan, tokens.device.type)
    if phase == "prefill":

        @torch.no_grad()
        def prefill() -> object:
            with precision():
                return model(tokens, cache=model.new_cache(plan.batch_size, plan.sequence_length)).logits

        return prefill
    if phase == "decode":
        with torch.no_grad(), precision():
            cache = model.new_cache(plan.batch_size, plan.sequence_length + plan.decode_tokens)
            model(tokens, cache=cache)

        @torch.no_grad()
        def decode() -> object:
            cache.length = plan.sequence_length
            with precision():
                for _ in range(plan.decode_tokens):
                    logits = model(tokens[:, :1], cache=cache).logits
            return logits

        return decode
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def training() -> object:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = model.loss(tokens, next_tokens(tokens))
        loss.backward()
        optimizer.step()
        return loss

    return training


def _precision(plan: BenchmarkPlan, device: str) -> contextlib.AbstractContextManager[object]:
    if plan.precision == "bf16_autocast":
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()
