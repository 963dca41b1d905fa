"""Memory of training with Megatron-DeepSpeed: its states and pipeline by hand, and BLOOM's trials."""

from __future__ import annotations

import statistics

import pytest

from planner import TrainingPlan, estimate_training
from planner.measured import training_rows
from planner.measured.predicted import memory_of
from planner.training.estimate import stage_memories
from tests.planner.test_training_parallel import gpt

SPEC = gpt(4, 512, 8, vocabulary=50_304)
LAYER, TABLE = 12 * 512**2 + 13 * 512, 50_304 * 512
WHOLE = 4 * LAYER + TABLE + 2048 * 512 + 2 * 512


def test_bf16_keeps_gradients_in_16_bits_beside_those_in_fp32() -> None:
    """ "The additional memory usage is 4bytes x params and it's not sharded": 2 + 4 in place of 2."""
    plan = TrainingPlan(engine="deepspeed", gradient_dtype="fp32", zero_stage=1, data_parallel=4, global_batch_size=16)
    memory = estimate_training(SPEC, plan).memory
    assert memory.parameters_bytes == 2 * WHOLE
    assert {moment.gradients_bytes for moment in memory.moments} == {6 * WHOLE}
    assert memory.optimizer_bytes == 12 * WHOLE // 4
    # Widened for a moment: a bucket of half a billion elements would hold all of them.
    assert memory.apart_bytes == 4 * WHOLE
    assert memory.reserved_bytes == memory.allocated_bytes + 4 * WHOLE


@pytest.mark.parametrize("replicas", [1, 4])
def test_zero_1_in_fp16_flattens_and_widens_a_rank_s_gradients(replicas: int) -> None:
    plan = TrainingPlan(engine="deepspeed", zero_stage=1, data_parallel=replicas, global_batch_size=4 * replicas)
    memory = estimate_training(SPEC, plan).memory
    *passes, step = memory.moments
    assert {moment.gradients_bytes for moment in passes} == {2 * WHOLE}
    assert step.gradients_bytes == 8 * WHOLE // replicas
    assert memory.apart_bytes == 2 * WHOLE + 6 * WHOLE // replicas
    most = max(moment.total_bytes for moment in passes)
    assert memory.reserved_bytes == most + memory.apart_bytes


def test_a_stage_holds_what_it_sent_until_its_backward_pass() -> None:
    plan = TrainingPlan(pipeline_parallel=2, engine="megatron", global_batch_size=8, gradient_dtype="fp32")
    plans = (plan, plan.model_copy(update={"engine": "deepspeed"}))
    megatron, deepspeed = (next(iter(stage_memories(SPEC, each, 2048, 1))) for each in plans)
    assert deepspeed.activations_bytes - megatron.activations_bytes == 2 * 2 * 2048 * 512  # of two micro batches


def test_bloom_s_trials_on_one_node_come_out() -> None:
    """18 and 30 billion parameters on eight A100, without a pipeline: what ``nvidia-smi`` showed."""
    readings = [memory_of(row) for row in training_rows() if row.plan.engine == "deepspeed"]
    errors = {reading.row.id: reading.error for reading in readings if reading is not None}
    alone = [
        errors[row.id]
        for row in training_rows()
        if row.id in errors and row.plan.pipeline_parallel == 1 and errors[row.id] is not None
    ]
    assert len(alone) == 3
    assert max(abs(error) for error in alone if error is not None) < 0.06
    # Pipelines come out low: blocks that do not fit each other, and NCCL's buffers, are not counted.
    every = [error for error in errors.values() if error is not None]
    assert len(every) == 34
    assert -0.17 < statistics.median(every) < 0
    assert all(-0.25 < error < 0 for error in every)
