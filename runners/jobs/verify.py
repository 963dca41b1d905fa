"""Verification: what the planner predicts for a design, beside what is counted or measured on the built model.

The model is built on tensors without data, so that a design of any size can be verified on any machine: parameters are
counted over the module, FLOPs by FlopCounterMode, peak training memory by MemTracker, the cache over its own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from planner.cache import cache_bytes
from planner.compute import flops
from planner.errors import UnsupportedPlan
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
        ("parameters", lambda: _parameters(spec)),
        ("FLOPs", lambda: _flops(spec, plan)),
        ("cache", lambda: _cache(spec, plan)),
        ("training memory", lambda: _memory(spec, plan)),
    ]
    rows: list[dict[str, Any]] = []
    for done, (what, measure) in enumerate(steps):
        yield Progress(done, len(steps), "measurements", f"· {what}")
        found = measure()
        for row in found:
            yield Log(f"{row['quantity']}: predicted {row['predicted']}, measured {row['measured']}")
        rows += found
    yield Progress(len(steps), len(steps), "measurements")
    yield Result("verify", {"rows": rows}, describe("cpu"))


def _parameters(spec: ArchitectureSpec) -> list[dict[str, Any]]:
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


def _flops(spec: ArchitectureSpec, plan: VerifyPlan) -> list[dict[str, Any]]:
    rows = []
    with FakeTensorMode():
        model = build(spec, kernels="reference")
        tokens = torch.zeros(plan.batch_size, plan.sequence_length, dtype=torch.long)
        for quantity, training in (("FLOPs, forward", False), ("FLOPs, training step", True)):
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                if training:
                    loss = model(tokens, labels=tokens).loss
                    assert loss is not None
                    loss.backward()
                else:
                    with torch.no_grad():
                        model(tokens)
            predicted = flops(spec, plan.sequence_length, plan.batch_size, training=training).total
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


def _memory(spec: ArchitectureSpec, plan: VerifyPlan) -> list[dict[str, Any]]:
    training = TrainingPlan(
        micro_batch_size=plan.batch_size, sequence_length=plan.sequence_length, precision=plan.precision
    )
    try:
        memory = estimate_training(spec, training).memory
        total: int | None = memory.total_bytes - memory.overhead_bytes
        reason = ""
    except UnsupportedPlan as refused:
        total, reason = None, f"; no prediction: {refused}"
    measured = measure_training_memory(spec, plan.batch_size, plan.sequence_length, plan.precision)
    how = f"MemTracker over one AdamW step on tensors without data, {plan.precision}{reason}"
    return [prediction("Peak training memory", total, measured.total_bytes, "bytes", how, "modelled")]
