"""How layers are dealt out to pipeline stages: Megatron's and DeepSpeed's ways by hand, and runs that were measured."""

from __future__ import annotations

from typing import Any

import pytest

from planner import PlannerError, TrainingPlan, estimate_training, load
from planner.measured import training_rows
from planner.measured.predicted import memory_of
from planner.plans import parse_plan
from planner.stages import layers_of_chunks
from planner.step_time import step_time
from planner.training.estimate import stage_memories
from tests.planner.published import LLAMA_2_7B
from tests.planner.test_training_parallel import gpt

WITH_ENDS = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}


@pytest.mark.parametrize(
    "layers, fields, expected",
    [
        (32, {"pipeline_parallel": 4}, (8, 8, 8, 8)),
        # BLOOM: 70 layers, embedding and head are 72 (``type:transformer|embedding``); 12 stages of 6.
        (70, {"pipeline_parallel": 12}, (5, *[6] * 10, 5)),
        (70, {"pipeline_parallel": 12, **WITH_ENDS}, (5, *[6] * 10, 5)),
        (10, {"pipeline_parallel": 4, **WITH_ENDS}, (2, 3, 3, 2)),
        (11, {"pipeline_parallel": 4, "account_for_loss_in_pipeline_split": True}, (3, 3, 3, 2)),
        (15, {"pipeline_parallel": 4, "account_for_embedding_in_pipeline_split": True}, (3, 4, 4, 4)),
        # Megatron's own test: 6 layers on 4 stages of 2 chunks, the first and the last of which have none.
        (
            6,
            {"pipeline_parallel": 4, "virtual_stages": 2, "pipeline_schedule": "interleaved", **WITH_ENDS},
            (0, 1, 1, 1, 1, 1, 1, 0),
        ),
        (
            12,
            {"pipeline_parallel": 4, "decoder_first_pipeline_num_layers": 2, "decoder_last_pipeline_num_layers": 2},
            (2, 4, 4, 2),
        ),
        (61, {"pipeline_parallel": 16, "decoder_last_pipeline_num_layers": 1}, (*[4] * 15, 1)),
        (11, {"pipeline_parallel": 4}, (3, 3, 3, 2)),
        (13, {"pipeline_parallel": 4}, (4, 3, 3, 3)),
        (7, {"pipeline_parallel": 3, "pipeline_layers": (1, 2, 4)}, (1, 2, 4)),
    ],
)
def test_layers_are_dealt_out_as_the_plan_says(layers: int, fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert layers_of_chunks(layers, parse_plan(TrainingPlan, fields)) == expected


def test_each_stage_has_the_parameters_of_its_layers() -> None:
    spec = gpt(5, 512, 8, vocabulary=50_304)
    layer, table, positions = 12 * 512**2 + 13 * 512, 50_304 * 512, 2048 * 512
    plan = TrainingPlan(pipeline_parallel=2, precision="fp32", global_batch_size=8)
    first, last = stage_memories(spec, plan, 2048, 1)
    assert (first.num_layers, last.num_layers) == (3, 2)
    assert first.parameters_bytes == 4 * (3 * layer + table + positions)
    assert last.parameters_bytes == 4 * (2 * layer + table + 2 * 512)
    # The first stage keeps one micro batch more than the last, so three layers twice against two once.
    shifted = plan.model_copy(update={"pipeline_layers": (2, 3)})
    again, behind = stage_memories(spec, shifted, 2048, 1)
    assert (again.num_layers, behind.num_layers) == (2, 3)
    assert behind.parameters_bytes - last.parameters_bytes == 4 * layer
    kept = 4 * 34 / 2 * 2048 * 512  # Korthikanti et al. 2022, equation 1 in fp32, without scores and masks
    difference = first.activations_bytes - again.activations_bytes
    assert difference == pytest.approx(2 * kept, rel=0.1)


def test_a_stage_without_layers_has_the_embedding_or_the_head() -> None:
    plan = TrainingPlan(precision="fp32", pipeline_parallel=4, pipeline_layers=(0, 16, 16, 0), global_batch_size=4)
    first, *_, last = stage_memories(LLAMA_2_7B, plan, 2048, 1)
    assert first.parameters_bytes == 4 * 32_000 * 4096
    assert last.parameters_bytes == 4 * (32_000 + 1) * 4096
    assert estimate_training(LLAMA_2_7B, plan).memory.pipeline_rank in (1, 2)


def test_the_slowest_stage_decides_the_time() -> None:
    plan = TrainingPlan(
        pipeline_parallel=2, global_batch_size=64, sequence_length=4096, hardware="h100", pipeline_layers=(16, 16)
    )
    even, uneven = (
        step_time(LLAMA_2_7B, each) for each in (plan, plan.model_copy(update={"pipeline_layers": (24, 8)}))
    )
    assert even.seconds is not None
    assert uneven.seconds is not None
    # 24 of 32 layers in place of 16 and half a head: the matrices' part grows by somewhat less than a half.
    assert 1.3 < uneven.parts["matmul"] / even.parts["matmul"] < 1.5
    assert uneven.parts["bubble"] < even.parts["bubble"]


def test_megatron_s_own_tests_of_uneven_pipelines_come_out() -> None:
    """Golden values of the last rank: 2, 4, 4 and 2 layers; and 8 chunks whose first and last have no layers."""
    errors = []
    for row in training_rows():
        if "uneven_pipeline" in row.source or "account_for_embedding_loss" in row.source:
            reading = memory_of(row)
            assert reading is not None
            assert reading.error is not None
            errors.append(reading.error)
    assert len(errors) == 6
    assert max(map(abs, errors)) < 0.01


def test_stages_of_published_runs_are_read_as_their_sources_say() -> None:
    depths = {
        (row.repository.split("/")[1], row.spec.num_layers, row.plan.pipeline_parallel): layers_of_chunks(
            row.spec.num_layers, row.plan
        )
        for row in training_rows()
        if row.plan.pipeline_parallel > 1
    }
    # "the last stage has 1 block, while the rest have 7" (tr11-176B-ml/chronicles-prequel.md, section "Re-do").
    assert depths["bigscience", 78, 12] == (*[7] * 11, 1)
    assert depths["bigscience", 106, 12] == (8, *[9] * 10, 8)
    # 32 layers of 243 million elements and a head of 537: 17.1 of 34.2 layers' cost are full with the eighteenth.
    assert depths["nanotron", 32, 2] == (18, 14)
    assert sum(depths["nanotron", 80, 32]) == 80


@pytest.mark.parametrize(
    "fields, path",
    [
        ({"pipeline_layers": (32,)}, "pipeline_layers"),
        ({"pipeline_parallel": 2, "pipeline_layers": (16, 15)}, "pipeline_layers"),
        ({"pipeline_parallel": 2, "pipeline_layers": (16, 8, 8)}, "pipeline_layers"),
        ({"pipeline_parallel": 3, "pipeline_layers": (16, 0, 16)}, "pipeline_layers"),
        ({"pipeline_parallel": 3, "account_for_loss_in_pipeline_split": True, "decoder_last_pipeline_num_layers": 2},
         "decoder_last_pipeline_num_layers"),
        ({"pipeline_parallel": 4, "account_for_loss_in_pipeline_split": True}, "account_for_loss_in_pipeline_split"),
        ({"pipeline_parallel": 4, "decoder_first_pipeline_num_layers": 3}, "decoder_first_pipeline_num_layers"),
        ({"pipeline_parallel": 2, "decoder_first_pipeline_num_layers": 33}, "decoder_first_pipeline_num_layers"),
        ({"decoder_first_pipeline_num_layers": 3}, "decoder_first_pipeline_num_layers"),
        ({"pipeline_parallel": 64}, "pipeline_parallel"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_layers_is_refused_by_name(fields: dict[str, Any], path: str) -> None:
    plan = TrainingPlan(**fields)
    with pytest.raises(PlannerError) as caught:
        estimate_training(LLAMA_2_7B, plan)
    assert caught.value.path == path
    assert caught.value.remedy
    with pytest.raises(PlannerError) as caught:
        step_time(LLAMA_2_7B, plan.model_copy(update={"hardware": "h100"}))
    assert caught.value.path == path


def test_a_list_of_layers_holds_whole_numbers() -> None:
    with pytest.raises(PlannerError) as caught:
        parse_plan(TrainingPlan, {"pipeline_parallel": 2, "pipeline_layers": [33, -1]})
    assert caught.value.path.startswith("pipeline_layers")
    assert load("bloom-176b").num_layers == 70
