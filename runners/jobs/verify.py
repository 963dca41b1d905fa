"""Verification: what the planner predicts for a design, beside what is counted or measured on the built model.

The model is built on tensors without data, so that a design of any size can be verified on any machine: parameters are
counted over the module, FLOPs by FlopCounterMode, peak training memory by MemTracker, the cache over its own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from planner.cache import cache_bytes
from planner.compute import flops
from planner.errors import PlannerError, UnsupportedPlan
from planner.plans import TrainingPlan, VerifyPlan
from planner.sizing import size
from planner.spec import ArchitectureSpec, LearnedPositions
from planner.training import estimate_training
from runners.environment import describe
from runners.events import Event, Log, Progress, Result
from runners.jobs.base import JobContext, JobFailure
from runners.models import build
from runners.training.memory import measure_training_memory

CACHE_DTYPE = torch.bfloat16


def prediction(
    quantity: str, predicted: float | None, measured: float | None, unit: str, how: str, status: str = "exact"
) -> dict[str, Any]:
    """A row of predicted and measured; the error is the prediction's, as a share of what was measured."""
    error = None
    if predicted is not None and measured is not None:
        error = (predicted - measured) / measured if measured else float(predicted != measured)
    return {
        "quantity": quantity,
        "predicted": predicted,
        "measured": measured,
        "error": error,
        "unit": unit,
        "status": status,
        "how": how,
    }


def run(spec: ArchitectureSpec, plan: VerifyPlan, context: JobContext) -> Iterator[Event]:
    """Measure each prediction; what cannot be measured has a row that says why."""
    longest = max(plan.sequence_length, plan.context_length)
    if isinstance(spec.positions, LearnedPositions) and longest > spec.positions.num_positions:
        raise JobFailure(
            f"sequence_length: the model reads {spec.positions.num_positions:,} positions, not {longest:,}; "
            "choose a shorter one"
        )
    steps: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        ("parameters", lambda: parameter_rows(spec)),
        ("FLOPs", lambda: flops_rows(spec, plan.sequence_length, plan.batch_size)),
        ("cache", lambda: _cache(spec, plan)),
        ("training memory", lambda: memory_rows(spec, plan.sequence_length, plan.batch_size, plan.precision)),
    ]
    rows: list[dict[str, Any]] = []
    for done, (what, measure) in enumerate(steps):
        yield Progress(done, len(steps), "measurements", f"· {what}")
        for row in measured_rows(what, measure):
            yield Log(f"{row['quantity']}: predicted {row['predicted']}, measured {row['measured']}")
            rows.append(row)
    yield Progress(len(steps), len(steps), "measurements")
    yield Result("verify", {"rows": rows}, describe("cpu"))


def measured_rows(what: str, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of one measurement, or one row that says why it could not be taken: the others still count."""
    try:
        return measure()
    except (PlannerError, RuntimeError, NotImplementedError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return [prediction(what, None, None, "", f"not measured: {reason}", "unsupported")]


def parameter_rows(spec: ArchitectureSpec) -> list[dict[str, Any]]:
    """Parameters in total, and name by name."""
    model = build(spec, device="meta")
    measured = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sized = size(spec)
    predicted = {tensor.name: tensor.shape for tensor in sized.tensors}
    differing = sorted(name for name in measured.keys() | predicted.keys() if measured.get(name) != predicted.get(name))
    how = "elements of the built module's parameters"
    rows = [
        prediction("Parameters", sized.parameters.total, sum(p.numel() for p in model.parameters()), "parameters", how),
        prediction(
            "Tensors with the predicted name and shape",
            len(predicted),
            len(predicted) - len(differing),
            "count",
            f"differing: {', '.join(differing[:5])}" if differing else "name by name, shape by shape",
        ),
    ]
    return rows


def flops_rows(spec: ArchitectureSpec, sequence_length: int, batch_size: int) -> list[dict[str, Any]]:
    """FLOPs of a forward pass and of a training step."""
    rows = []
    with FakeTensorMode():
        model = build(spec, kernels="reference")
        tokens = torch.zeros(batch_size, sequence_length, dtype=torch.long)
        for quantity, training in (("FLOPs, forward", False), ("FLOPs, training step", True)):
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                if training:
                    loss = model(tokens, labels=tokens).loss
                    assert loss is not None
                    loss.backward()
                else:
                    with torch.no_grad():
                        model(tokens)
            predicted = flops(spec, sequence_length, batch_size, training=training).total
            rows.append(
                prediction(quantity, predicted, counter.get_total_flops(), "FLOP", "FlopCounterMode, plain PyTorch")
            )
    return rows


def _cache(spec: ArchitectureSpec, plan: VerifyPlan) -> list[dict[str, Any]]:
    model = build(spec, device="meta", dtype=CACHE_DTYPE)
    measured = model.new_cache(plan.batch_size, plan.context_length).bytes
    predicted = cache_bytes(spec, plan.context_length, plan.batch_size, "bf16")
    how = f"bytes of the cache's own tensors, bf16, {plan.context_length:,} tokens"
    return [prediction("Cache", predicted, measured, "bytes", how)]


def memory_rows(
    spec: ArchitectureSpec, sequence_length: int, batch_size: int, precision: Literal["fp32", "bf16_autocast"]
) -> list[dict[str, Any]]:
    """Peak memory of one training step with AdamW."""
    training = TrainingPlan(micro_batch_size=batch_size, sequence_length=sequence_length, precision=precision)
    try:
        memory = estimate_training(spec, training).memory
        total: int | None = memory.total_bytes - memory.overhead_bytes
        reason = ""
    except UnsupportedPlan as refused:
        total, reason = None, f"; no prediction: {refused}"
    measured = measure_training_memory(spec, batch_size, sequence_length, precision)
    how = f"MemTracker over one AdamW step on tensors without data, {precision}{reason}"
    return [prediction("Peak training memory", total, measured.total_bytes, "bytes", how, "modelled")]
