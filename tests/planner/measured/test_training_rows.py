"""Measured runs as plans: rows read by hand from their sources, and every row accounted for."""

from __future__ import annotations

import csv
import re

import pytest

from planner import size
from planner.measured import TrainingRow, skipped_rows, summary, training_rows
from planner.measured.megatron import GPT2_VOCABULARY, specification, vocabulary
from planner.measured.rows import MEASURED, read_asset


def _one(text: str, **plan: object) -> TrainingRow:
    found = [
        row
        for row in training_rows()
        if text in row.source + row.model + row.notes
        and all(getattr(row.plan, name) == value for name, value in plan.items())
    ]
    assert len(found) == 1, [row.id for row in found]
    return found[0]


def test_a_step_on_eight_b200_is_read_as_its_case_says() -> None:
    row = _one("llama3_70b_l12_tp2_cp4_pp1_dp1_seq32768_mbc4_cef")
    plan = row.plan
    assert (plan.tensor_parallel, plan.context_parallel, plan.pipeline_parallel, plan.data_parallel) == (2, 4, 1, 1)
    assert (plan.sequence_length, plan.micro_batch_size, plan.global_batch_size) == (32768, 1, 4)
    assert (plan.precision, plan.gradient_dtype, plan.zero_stage, plan.hardware) == ("bf16_mixed", "fp32", 1, "b200")
    assert plan.sequence_parallel
    # 12 layers of 855,654,400 and 8,192 for the last norm, two matrices of 128,256 by 8,192.
    assert size(row.spec).parameters.total == 12 * 855_654_400 + 8_192 + 2 * 128_256 * 8_192
    assert row.memory is not None
    assert row.memory.peak_bytes == round(68.43 * 2**30)
    assert row.step_seconds == 1.758
    assert row.devices == 8


def test_deepseek_v3_is_cut_to_one_dense_layer() -> None:
    row = _one("deepseekv3_l4_tp1_ep4_pp2_dp4_mbc8_cef")
    kinds = [getattr(layer.channel_mixer, "kind", None) for _, layer in row.spec.iterate_layers()]
    assert kinds == ["mlp", "moe", "moe", "moe"]
    assert row.spec.vocab_size == 129_280
    assert row.plan.global_batch_size == 8 * 4
    assert row.plan.expert_parallel == 4


def test_a_megatron_test_is_read_from_its_arguments() -> None:
    row = _one("gpt3_mcore_te_tp1_pp4_vp1/golden_values_dev_dgx_a100.json")
    plan = row.plan
    assert (plan.pipeline_parallel, plan.virtual_stages, plan.pipeline_schedule) == (4, 3, "interleaved")
    assert (plan.attention, plan.dropout, plan.zero_stage, plan.gradient_dtype) == ("eager", 0.1, 0, "fp32")
    assert (plan.micro_batch_size, plan.global_batch_size, plan.sequence_length) == (4, 32, 1024)
    assert row.memory is not None
    assert row.memory.rank == "last_stage"
    assert row.memory.kind == "allocated"
    assert row.memory.between_steps_bytes is not None
    # GPT of 12 layers of 512: each 12 h² + 13 h, two tables and a last norm; the vocabulary is padded to 50,304.
    layer = 12 * 512**2 + 13 * 512
    assert size(row.spec).parameters.total == 12 * layer + (50_304 + 1_024) * 512 + 2 * 512
    assert row.time_reason == "a test's step time, of a model too small to tell"
    assert row.step_seconds is None


def test_megatron_pads_the_vocabulary_to_its_ranks() -> None:
    assert [vocabulary({"tensor-model-parallel-size": ranks}) for ranks in (1, 2, 4)] == [50_304, 50_432, 50_688]
    assert GPT2_VOCABULARY == 50_257


def test_megatron_sets_the_width_of_a_gated_mlp_by_two_thirds() -> None:
    given = {
        "num-layers": 1,
        "hidden-size": 512,
        "num-attention-heads": 8,
        "swiglu": True,
        "max-position-embeddings": 8,
    }
    mixer = specification("gated", given).layer_groups[0].layers[0].channel_mixer
    assert mixer is not None
    assert mixer.intermediate_size == 1344  # 8/3 of 512 is 1365.3, rounded down to a multiple of 64


def test_megatron_patterns_of_experts_are_read() -> None:
    given = {
        "num-layers": 3,
        "hidden-size": 64,
        "num-attention-heads": 4,
        "num-experts": 8,
        "moe-layer-freq": "([0]*1+[1]*2)",
        "max-position-embeddings": 8,
        "disable-bias-linear": True,
    }
    kinds = [getattr(layer.channel_mixer, "kind", "") for _, layer in specification("x", given).iterate_layers()]
    assert kinds == ["mlp", "moe", "moe"]


def test_adapters_and_four_bits_are_read() -> None:
    row = next(row for row in training_rows() if row.gpu.startswith("MI355X"))
    # MLPerf's LoRA of rank 16 on eight devices: eight sequences of 8,192 in 1.36 s or a little more.
    assert (row.plan.adapter_rank, row.plan.precision, row.plan.hardware) == (16, "fp8", "mi355x")
    assert row.step_seconds == pytest.approx(1.37, abs=0.03)
    assert size(row.spec).parameters.total == 68_976_648_192
    row = next(row for row in training_rows() if row.model == "LLAMA3_70B" and row.plan.precision == "nvfp4")
    assert row.plan.adapter_rank is None


def test_bridge_rows_carry_what_their_recipes_compute_again() -> None:
    row = next(row for row in training_rows() if row.model == "GPT OSS 120B" and row.gpu == "B200")
    assert row.plan.recompute == "selective"
    assert row.plan.recompute_modules == ("layernorm", "moe_act")
    assert (row.plan.data_parallel, row.plan.zero_stage, row.plan.precision) == (64, 1, "bf16_mixed")
    # 1,280 sequences of 4,096 over 64 devices at 13,568 tokens a second: 6.038 seconds.
    row = next(row for row in training_rows() if row.model == "GPT OSS 120B" and "13568" in _raw(row)["notes_rate"])
    assert row.step_seconds == pytest.approx(1280 * 4096 / 64 / 13568)


def _raw(row: TrainingRow) -> dict[str, str]:
    raw = dict(read_asset("training_world.csv"))[row.id] if row.id.startswith("training_world") else {}
    return {**raw, "notes_rate": str(raw.get("tokens_per_second_per_gpu", ""))}


def test_parameters_of_mpt_come_out_as_llm_foundry_prints_them() -> None:
    checked = 0
    for row in training_rows():
        stated = re.search(r"n_params (\d+)", row.notes)
        if stated is not None and "llm-foundry" in row.source:
            assert size(row.spec).parameters.total == int(stated.group(1)), row.id
            checked += 1
    assert checked == 82


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Llama-3.1-405B", 405.85),
        ("DeepSeekV3 (w/o MTP)", 671.03),
        ("GPT OSS 120B", 116.83),
        ("Nemotron_3_Nano", 31.58),
        ("Nemotron-H-56B", 56.3),
        ("Llama-4-Maverick-400B", 400.7),
        ("GPT-3-175B", 174.6),
        ("Nemotron-4-15B", 15.6),
    ],
)
def test_models_are_as_large_as_published(model: str, billions: float) -> None:
    row = next(row for row in training_rows() if row.model == model)
    assert size(row.spec).parameters.total / 1e9 == pytest.approx(billions, abs=0.06)


def test_every_row_is_used_or_skipped_for_a_reason() -> None:
    lines = 0
    for name in ("training_b200.csv", "training_world.csv"):
        with (MEASURED / name).open(encoding="utf-8") as file:
            lines += sum(1 for _ in csv.DictReader(file))
    found = summary()
    assert found.rows == len(training_rows()) + len(skipped_rows()) == lines == 913
    assert not [row for row in skipped_rows() if row.reason.startswith("refused")]
    assert found.used_for_memory >= 200
    assert found.used_for_time >= 480
    assert sum(found.skipped.values()) == len(skipped_rows())


def test_a_row_says_where_it_is_from() -> None:
    for row in training_rows():
        assert row.source in row.hover
        assert row.license
        assert row.as_of
        assert row.devices >= 1
