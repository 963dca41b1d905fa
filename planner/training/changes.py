"""What would make a way of training fit a device: changes of a plan, from the one that costs least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from planner.errors import PlannerError
from planner.hardware import hardware
from planner.plans import TrainingPlan
from planner.spec import ArchitectureSpec
from planner.training.checks import check_training_plan
from planner.training.engine import engine_of
from planner.training.records import Change


def _candidates(plan: TrainingPlan) -> Iterator[tuple[dict[str, Any], str]]:
    """Changes that a plan leaves open, from the cheapest: arithmetic first, then exactness, work, and devices."""
    if plan.attention == "eager":
        yield {"attention": "fused"}, "nothing: the fused kernel is faster too"
    if not plan.chunked_loss and engine_of(plan).cross_entropy != "fused":
        yield {"chunked_loss": True}, "nothing in FLOPs: logits of a chunk of positions at a time"
    if plan.tensor_parallel > 1 and not plan.sequence_parallel:
        yield {"sequence_parallel": True}, "nothing: the same bytes are communicated"
    if plan.data_parallel * plan.context_parallel > 1 and plan.zero_stage == 0:
        yield {"zero_stage": 1}, "nothing in volume: gradients are scattered and weights gathered"
    if plan.micro_batch_size > 1:
        half = plan.micro_batch_size // 2
        whole = plan.global_batch_size or plan.micro_batch_size * plan.data_parallel
        yield (
            {"micro_batch_size": half, "global_batch_size": whole},
            "smaller matrices, and gradients that are accumulated",
        )
    if plan.attention == "eager" and plan.recompute == "none":
        yield {"recompute": "selective"}, "scores once more, a few percent of the FLOPs"
    if plan.data_parallel * plan.context_parallel > 1 and 0 < plan.zero_stage < 3 and plan.pipeline_parallel == 1:
        yield {"zero_stage": 3}, "half as much again to communicate: weights are gathered twice a step"
    if plan.recompute != "full":
        yield {"recompute": "full"}, "a forward pass more: a third more FLOPs"
    if plan.optimizer == "adamw":
        yield {"optimizer": "adamw_8bit"}, "moments in 8 bits: not the same arithmetic"
    if plan.precision == "fp32":
        yield {"precision": "bf16_mixed"}, "products in bf16: not the same arithmetic"
    yield {"tensor_parallel": 2 * plan.tensor_parallel}, "twice the devices, and communication in every layer"
    yield {"pipeline_parallel": 2 * plan.pipeline_parallel}, "twice the devices, and a bubble in every step"
    yield {"data_parallel": 2 * plan.data_parallel, "zero_stage": max(plan.zero_stage, 1)}, "twice the devices"
    if plan.offload == "none" and plan.pipeline_parallel == 1:
        yield {"offload": "optimizer"}, "the optimizer's state crosses the bus to the host in every step"


def changes_that_fit(
    spec: ArchitectureSpec, plan: TrainingPlan, total: int, needed: Callable[[TrainingPlan], int]
) -> tuple[Change, ...]:
    """Changes in the order of their cost, until with all of them the plan fits its hardware; none where it fits.

    ``total`` is what the plan needs, ``needed`` what another one does. A change that the specification does not allow,
    or that saves nothing, is left out. Where no change is left and the plan still does not fit, the last one says so.
    """
    if plan.hardware is None:
        return ()
    usable = hardware(plan.hardware).usable_memory_bytes
    return tuple(_until_it_fits(spec, plan, usable, total, needed))


def _until_it_fits(
    spec: ArchitectureSpec, plan: TrainingPlan, usable: int, total: int, needed: Callable[[TrainingPlan], int]
) -> Iterator[Change]:
    together, current = total, plan
    for fields, cost in _candidates(plan):
        if together <= usable:
            return
        alone, combined = plan.model_copy(update=fields), current.model_copy(update=fields)
        try:
            check_training_plan(alone, spec)
            check_training_plan(combined, spec)
        except PlannerError:
            continue
        with_all = needed(combined)
        if with_all >= together:
            continue
        alone_bytes = needed(alone)
        current, together = combined, with_all
        yield Change(fields, cost, alone_bytes, together, together <= usable)
