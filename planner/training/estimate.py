"""Memory of a training step under a plan: the entry to what the other modules of this package count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.errors import UnsupportedPlan
from planner.hardware import hardware
from planner.plans import TrainingPlan
from planner.quantities import Quantity, largest
from planner.spec import ArchitectureSpec
from planner.step_time import StepTime, step_time
from planner.training.changes import changes_that_fit
from planner.training.checks import check_training_plan
from planner.training.engine import divided
from planner.training.layers import Shape
from planner.training.pipeline import Stage, stages
from planner.training.records import TrainingEstimate, TrainingMemory
from planner.training.timeline import Seen, stage_memory


def estimate_training(spec: ArchitectureSpec, plan: TrainingPlan) -> TrainingEstimate:
    """Memory of a training step, on the device that needs most, and its time on the plan's ``hardware``.

    Raises
    ------
    UnsupportedPlan
        naming every field of the plan that is not modelled, or does not fit the specification.
    """
    check_training_plan(plan, spec)
    time = _time_if_modelled(spec, plan)

    def memory_under(other: TrainingPlan) -> TrainingMemory:
        return training_memory(spec, other, other.sequence_length, other.micro_batch_size)

    memory = memory_under(plan)
    return TrainingEstimate(
        memory=memory,
        step_seconds=time.seconds,
        tokens_per_second=time.tokens_per_second,
        model_flops_utilization=time.model_flops_utilization,
        time=time,
        time_note=time.text,
        find_changes=lambda: changes_that_fit(
            spec, plan, memory.total_bytes, lambda other: int(memory_under(other).total_bytes)
        ),
    )


def _time_if_modelled(spec: ArchitectureSpec, plan: TrainingPlan) -> StepTime:
    """The time of a step; where a field stands in its way the memory is known all the same, and a note says which."""
    if plan.hardware is not None:
        hardware(plan.hardware)  # one that is not known is refused
    try:
        return step_time(spec, plan)
    except UnsupportedPlan as error:
        without = step_time(spec, plan.model_copy(update={"hardware": None}))
        return replace(without, notes=tuple(f"No time: {problem}" for problem in error.problems))


def shape_of(plan: TrainingPlan, sequence_length: Quantity, micro_batch_size: Quantity) -> Shape:
    """Tokens of a micro batch as one device sees them."""
    return Shape(sequence_length, divided(sequence_length, plan.context_parallel), micro_batch_size)


def memory_of_stage(
    spec: ArchitectureSpec,
    plan: TrainingPlan,
    stage: Stage,
    sequence_length: Quantity,
    micro_batch_size: Quantity,
) -> TrainingMemory:
    """Memory of one pipeline rank, whose layers are those of ``spec`` in whichever reading it is."""
    return stage_memory(spec, plan, stage, shape_of(plan, sequence_length, micro_batch_size), Seen())


def stage_memories(
    spec: ArchitectureSpec, plan: TrainingPlan, sequence_length: Quantity, micro_batch_size: Quantity
) -> Iterator[TrainingMemory]:
    """Memory of every pipeline rank, in order; layers that are alike are counted once."""
    shape = shape_of(plan, sequence_length, micro_batch_size)
    seen = Seen()
    for stage in stages(spec, plan):
        yield stage_memory(spec, plan, stage, shape, seen)


def training_memory(
    spec: ArchitectureSpec, plan: TrainingPlan, sequence_length: Quantity, micro_batch_size: Quantity
) -> TrainingMemory:
    """The same with quantities in place of the plan's numbers: works on all three readings.

    Which stage of a pipeline needs most is a matter of numbers: with several, see :func:`allocated_bytes`.
    """
    found = list(stage_memories(spec, plan, sequence_length, micro_batch_size))
    if len(found) == 1:
        return found[0]
    peaks = tuple(memory.allocated_bytes for memory in found)
    return replace(found[peaks.index(max(peaks))], stage_bytes=peaks)


def worst_stage(spec: ArchitectureSpec, plan: TrainingPlan) -> Stage:
    """The stage of the pipeline rank that needs most, in numbers."""
    whole = training_memory(spec, plan, plan.sequence_length, plan.micro_batch_size)
    return next(stage for stage in stages(spec, plan) if stage.rank == whole.pipeline_rank)


def allocated_bytes(spec: ArchitectureSpec, plan: TrainingPlan) -> Quantity:
    """The peak that an allocator reports on the rank that needs most, also of arrays.

    ``float64`` arrays may stand in the plan's micro and global batch size, length, and degrees of data, tensor, context
    and expert parallelism, and in the specification's fields; all else, pipelines among it, is structure. Nothing is
    checked: see :func:`check_training_plan`.
    """
    most: Quantity = 0
    for memory in stage_memories(spec, plan, plan.sequence_length, plan.micro_batch_size):
        most = largest(most, memory.allocated_bytes)
    return most
