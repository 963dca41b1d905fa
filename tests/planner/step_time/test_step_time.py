"""The time of a step: hand calculations, what holds of every plan, and measured runs."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from planner.compute import flops
from planner.efficiency import SHARES, Efficiency, Profile, profile_of, profiles
from planner.errors import UnsupportedPlan
from planner.hardware import hardware
from planner.measured import TrainingRow, training_rows
from planner.measured.split import is_held_out, setting
from planner.nodes import nodes
from planner.plans import TrainingPlan
from planner.presets import preset, preset_ids
from planner.sizing import count_parameters
from planner.spec import parse_spec
from planner.step_time import StepTime, step_time
from planner.symbolic import candidates
from scripts.left_out import read_left_out
from tests.planner.strategies import specs

BILLION = 1_000_000_000
LLAMA = preset("llama-3-8b").spec
PLAN = TrainingPlan(micro_batch_size=1, sequence_length=8192, precision="bf16_mixed", hardware="h100")


def _profile(**shares: float) -> Profile:
    """A profile of which everything is reached, but for what is told."""
    whole = dict.fromkeys(SHARES, 1.0) | {name: value for name, value in shares.items() if name in SHARES}
    return Profile(
        id="whole",
        family="hopper",
        devices=("h100",),
        borrowed_by=(),
        launch_seconds=shares.get("launch_seconds", 1e-12),
        latency_seconds=shares.get("latency_seconds", 1e-12),
        relative_interval=(1.0, 1.0),
        borrowed_interval=(1.0, 1.0),
        calibrated_on="nothing",
        **{name: Efficiency(value=value, low=value, high=value) for name, value in whole.items()},
    )


def test_matrices_take_three_passes_at_the_peak() -> None:
    found = step_time(LLAMA, PLAN, _profile())
    # Six FLOPs an element and token; rows, columns and inputs of a matrix each cost 137 of their number more.
    shapes = {(4096, 4096): 2 * 32, (1024, 4096): 2 * 32, (14336, 4096): 3 * 32, (128_256, 4096): 1}
    elements = sum(
        number * width * height * (1 + 137 * (1 / width + 1 / height + 1 / 8192))
        for (width, height), number in shapes.items()
    )
    assert found.parts["matmul"] == pytest.approx(6 * elements * 8192 / 989.4e12, rel=1e-3)
    # Attention: 4 · s²/2 · 4,096 forward in each of 32 layers, two and a half times that backward, of heads with 128
    # channels, at s / (s + 700) of its rate.
    scores = 3.5 * 32 * 4 * 8192 * 8193 / 2 * 4096
    assert found.parts["attention"] == pytest.approx(scores / 989.4e12 * (8193 + 700) / 8193, rel=1e-3)


def test_attention_is_slower_over_few_keys_and_with_narrow_heads() -> None:
    def seconds(length: int, head_dim: int, batch: int) -> float:
        data = LLAMA.to_dict()
        mixer = data["layer_groups"][0]["layers"][0]["sequence_mixer"]
        heads = 4096 // head_dim
        mixer |= {"head_dim": head_dim, "num_attention_heads": heads, "num_key_value_heads": heads}
        plan = PLAN.model_copy(update={"sequence_length": length, "micro_batch_size": batch})
        return float(step_time(parse_spec(data), plan, _profile()).parts["attention"])

    # On an H100, cuDNN's kernel reached (forward, and backward by 2.5 times the FLOPs) 556 and 407 TFLOP/s over 2,048
    # positions, 639 and 515 over 8,192, with heads of 128 channels; 481 and 414 over 8,192 with heads of 64.
    def rate(forward: float, backward: float) -> float:
        return 3.5 / (1 / forward + 2.5 / backward)

    longer = 4 * rate(556, 407) / rate(639, 515)  # four times the FLOPs a token
    assert seconds(8192, 128, 1) / seconds(2048, 128, 4) == pytest.approx(longer, rel=0.05)
    assert seconds(8192, 64, 1) / seconds(8192, 128, 1) == pytest.approx(rate(639, 515) / rate(481, 414), rel=0.05)


def test_utilization_is_of_needed_flops_over_the_peak() -> None:
    found = step_time(LLAMA, PLAN)
    needed = 3 * flops(LLAMA, 8192).needed_total
    assert found.seconds is not None
    assert found.model_flops_utilization == pytest.approx(needed / found.seconds / 989.4e12)
    full = step_time(LLAMA, PLAN.model_copy(update={"recompute": "full"}))
    assert full.hardware_flops_utilization == pytest.approx(full.model_flops_utilization * 4 / 3)
    assert full.parts["recomputation"] > 0
    assert full.seconds > found.seconds


def test_sharded_data_parallel_ranks_exchange_gradients_and_parameters() -> None:
    plan = PLAN.model_copy(update={"data_parallel": 8, "zero_stage": 1, "gradient_dtype": "fp32"})
    found = step_time(LLAMA, plan, _profile(overlap=0.01))
    # 7/8 of four bytes and of two a parameter, at 450 GB/s.
    elements = 8_030_261_248
    assert found.parts["data_parallel"] == pytest.approx(7 / 8 * 6 * elements / 450e9, rel=0.02)
    # A rank's eighth: gradients read twice, two moments and the master copy read and written, weights written.
    assert found.parts["optimizer"] == pytest.approx(elements / 8 * (8 + 16 + 8 + 2) / 3.35e12, rel=0.01)


def test_a_pipeline_spreads_gradients_once_and_keeps_weights_that_are_not_let_go() -> None:
    plan = PLAN.model_copy(
        update={"pipeline_parallel": 2, "data_parallel": 4, "zero_stage": 3, "fsdp_reshard": False, "engine": "torch"}
    )
    # 16 layers and the head with its norm; 3/4 of two bytes at 450 GB/s, once for weights and once for gradients.
    elements = 16 * 218_112_000 + 128_256 * 4096 + 4096
    once = 3 / 4 * 2 * elements / 450e9
    for count in (4, 8):
        fields = {"global_batch_size": 4 * count}
        found = step_time(LLAMA, plan.model_copy(update=fields), _profile(overlap=1e-9))
        assert found.parts["data_parallel"] == pytest.approx(2 * once, rel=0.001)
        fetched = step_time(LLAMA, plan.model_copy(update={**fields, "fsdp_reshard": True}), _profile(overlap=1e-9))
        # m + 1 times: each backward pass that follows a forward pass, and the first forward pass.
        assert fetched.parts["data_parallel"] == pytest.approx((count + 2) * once, rel=0.001)


def test_tensor_parallel_ranks_exchange_the_stream_twice_a_mixer() -> None:
    plan = PLAN.model_copy(update={"tensor_parallel": 8, "sequence_parallel": True})
    found = step_time(LLAMA, plan, _profile(overlap=1e-9))
    stream = 2 * 8192 * 4096
    once = 7 / 8 * stream / 450e9
    # 64 mixers, each a gather and a scatter forward and backward; the head gathers twice, the embedding scatters once.
    assert found.parts["tensor_parallel"] == pytest.approx((64 * 4 + 3) * once, rel=0.01)
    # Of two ranks half of what is exchanged at the mixers runs beside their longer products, if the plan has it so;
    # without sequence parallelism none does.
    two = plan.model_copy(update={"tensor_parallel": 2})
    once = stream / 2 / 450e9
    waiting = step_time(LLAMA, two, _profile(overlap=0.5))
    assert waiting.parts["tensor_parallel"] == pytest.approx((64 * 4 + 3) * once, rel=0.01)
    half = step_time(LLAMA, two.model_copy(update={"tp_comm_overlap": True}), _profile(overlap=0.5))
    assert half.parts["tensor_parallel"] == pytest.approx((64 * 2 + 3) * once, rel=0.01)
    summed = step_time(LLAMA, two.model_copy(update={"sequence_parallel": False}), _profile(overlap=0.5))
    assert summed.parts["tensor_parallel"] == pytest.approx((64 * 4 + 3) * once, rel=0.01)


def test_mamba_1_sums_what_time_steps_and_states_are_made_from_over_its_channels() -> None:
    spec = preset("mamba-2.8b").spec
    plan = PLAN.model_copy(update={"tensor_parallel": 8})

    def exchanged(rank: int) -> float:
        layer = spec.layer_groups[0].layers[0]
        assert layer.sequence_mixer is not None
        mixer = layer.sequence_mixer.model_copy(update={"time_step_rank": rank})
        other = spec.with_layers([layer.model_copy(update={"sequence_mixer": mixer})] * spec.num_layers)
        return float(step_time(other, plan, _profile(overlap=1e-9)).parts["tensor_parallel"])

    # A ring sends 2 × 7/8 of two bytes an element and token at 450 GB/s, forward and backward, in each of 64 layers.
    once = 2 * 7 / 8 * 2 * 8192 / 450e9
    assert exchanged(1160) - exchanged(160) == pytest.approx(64 * 2 * 1000 * once, rel=1e-3)


def test_experts_send_their_tokens_there_and_back() -> None:
    spec = preset("mixtral-8x7b").spec
    plan = PLAN.model_copy(update={"expert_parallel": 8, "data_parallel": 8, "sequence_length": 4096})
    found = step_time(spec, plan, _profile())
    # A token's two experts are on 8 (1 − (7/8)²) of eight ranks, and it goes to each of these once.
    rows = 2 * 4096 * 8 * (1 - (7 / 8) ** 2) * 4096
    assert found.parts["expert_parallel"] == pytest.approx(32 * 4 * 7 / 8 * rows / 450e9, rel=0.01)


def test_adapters_leave_out_the_gradients_of_frozen_weights() -> None:
    whole = step_time(LLAMA, PLAN, _profile())
    frozen = step_time(LLAMA, PLAN.model_copy(update={"adapter_rank": 16}), _profile())
    # Two products of three, and thin matrices that read and write what the wide ones beside them do, three times.
    ends = 4096 + 4096 + 2 * (4096 + 1024) + 4096 + 4096
    thin = 3 * 32 * 2 * 8192 * ends / 3.35e12
    assert frozen.parts["matmul"] == pytest.approx(whole.parts["matmul"] * 2 / 3 + thin, rel=1e-3)
    # 16 (inputs + outputs) of each of 128 matrices have states.
    assert frozen.parts["optimizer"] == pytest.approx(32 * 16 * ends * (4 + 16 + 8 + 2) / 3.35e12, rel=1e-3)
    assert frozen.model_flops == pytest.approx(whole.model_flops * 2 / 3)


def test_fp4_multiplies_at_its_own_rate() -> None:
    plan = PLAN.model_copy(update={"hardware": "gb200", "precision": "nvfp4"})
    four, eight = (step_time(LLAMA, plan.model_copy(update={"precision": name})) for name in ("nvfp4", "fp8"))
    assert four.seconds is not None
    assert eight.seconds is not None
    assert four.seconds < eight.seconds
    assert four.ideal_seconds == pytest.approx(eight.ideal_seconds / 2)


def test_a_pipeline_s_bubble_is_that_of_its_stages() -> None:
    plan = PLAN.model_copy(update={"pipeline_parallel": 4, "global_batch_size": 8})
    found = step_time(LLAMA, plan)
    waiting = ("bubble", "pipeline", "optimizer", "data_parallel")
    slowest = sum(seconds for part, seconds in found.parts.items() if part not in waiting) / 8
    # On one device a micro batch takes what all stages take together: the others' time fills and drains the pipeline.
    alone = step_time(LLAMA, PLAN).parts
    whole = sum(seconds for part, seconds in alone.items() if part not in waiting)
    assert found.parts["bubble"] == pytest.approx(whole - slowest, rel=1e-6)
    halved = step_time(LLAMA, plan.model_copy(update={"pipeline_schedule": "interleaved", "virtual_stages": 2}))
    assert halved.parts["bubble"] == pytest.approx(found.parts["bubble"] / 2, rel=0.01)
    filled = step_time(LLAMA, plan.model_copy(update={"pipeline_schedule": "zero_bubble"}))
    assert filled.parts["bubble"] < found.parts["bubble"]


def test_without_a_device_there_is_a_note_in_place_of_a_time() -> None:
    found = step_time(LLAMA, PLAN.model_copy(update={"hardware": None}))
    assert (found.seconds, found.tokens_per_second, found.model_flops_utilization) == (None, None, None)
    assert "hardware" in found.text


def test_a_plan_s_own_network_is_used_in_place_of_the_usual_one() -> None:
    plan = PLAN.model_copy(update={"data_parallel": 16, "gradient_dtype": "fp32"})
    slow = plan.model_copy(update={"network_gb_per_second": 6.25})
    # Two passes over 16 ranks in two nodes; each has eight cards.
    size = 2 * 15 / 16 * 4 * 8_030_261_248
    for each, rate in ((plan, 8 * 50e9), (slow, 8 * 6.25e9)):
        found = step_time(LLAMA, each, _profile(overlap=1e-9))
        assert found.parts["data_parallel"] == pytest.approx(size / rate, rel=0.01)


@pytest.mark.parametrize("device", ["mi300x", "l40s", "rtx5090", "h20"])
def test_a_device_that_was_not_measured_borrows_of_its_relatives_and_says_so(device: str) -> None:
    known = {"mi300x": "mi355x", "l40s": "a100", "rtx5090": "b200", "h20": "h100"}[device]
    found = step_time(LLAMA, PLAN.model_copy(update={"hardware": device}))
    assert found.seconds is not None
    assert hardware(device).name in found.text
    assert "borrowed" in found.text
    relative = step_time(LLAMA, PLAN.model_copy(update={"hardware": known}))
    assert "borrowed" not in relative.text
    wide, narrow = (
        float(each.high_seconds) / float(each.low_seconds)  # type: ignore[arg-type]
        for each in (found, relative)
    )
    assert wide >= narrow


def test_the_interval_of_a_borrowed_profile_holds_what_was_published_of_mi300x() -> None:
    """torchao's Llama 3 8B on eight MI300X (docs/source/workflows/training.md, 36027d82): 5,376.5 tokens a second and
    device in bf16, 6,166 in fp8, with a part of the operators computed again: between none and all."""
    plan = PLAN.model_copy(update={"hardware": "mi300x", "data_parallel": 8, "zero_stage": 3, "gradient_dtype": "fp32"})
    for precision, rate in (("bf16_mixed", 5376.5), ("fp8", 6166.0)):
        seconds = 8192 / rate
        fields = {"precision": precision, "recompute": "none"}
        fastest = step_time(LLAMA, plan.model_copy(update=fields)).low_seconds
        slowest = step_time(LLAMA, plan.model_copy(update=fields | {"recompute": "full"})).high_seconds
        assert fastest is not None
        assert slowest is not None
        assert fastest < seconds < slowest


@pytest.mark.parametrize("device", ["m4_max", "tpu_v5p"])
def test_a_device_of_which_no_run_is_known_has_no_time(device: str) -> None:
    found = step_time(LLAMA, PLAN.model_copy(update={"hardware": device}))
    assert found.seconds is None
    assert hardware(device).name in found.text


def test_fp8_where_there_is_none_has_no_time() -> None:
    found = step_time(LLAMA, PLAN.model_copy(update={"hardware": "a100", "precision": "fp8"}))
    assert found.seconds is None
    assert "fp8" in found.text


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"offload": "optimizer"}, "offload"),
        ({"virtual_stages": 2}, "virtual_stages"),
        ({"pipeline_parallel": 2, "virtual_stages": 2}, "virtual_stages"),
        ({"expert_parallel": 3, "data_parallel": 4}, "expert_parallel"),
        ({"global_batch_size": 3, "data_parallel": 2}, "global_batch_size"),
        ({"pipeline_parallel": 64}, "pipeline_parallel"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        step_time(LLAMA, PLAN.model_copy(update=fields))
    assert [problem.path for problem in caught.value.problems] == [path]


PLANS = st.builds(
    lambda device, precision, sizes, recompute, attention, zero, batches: TrainingPlan(
        micro_batch_size=1,
        sequence_length=1024,
        hardware=device,
        precision=precision,
        recompute=recompute,
        attention=attention,
        zero_stage=zero,
        tensor_parallel=sizes[0],
        sequence_parallel=sizes[0] > 1,
        context_parallel=sizes[1],
        data_parallel=sizes[2],
        global_batch_size=batches * sizes[2],
    ),
    st.sampled_from(["a100", "h100", "b200", "gb200"]),
    st.sampled_from(["bf16_mixed", "bf16", "bf16_autocast"]),
    st.tuples(st.sampled_from([1, 2, 8]), st.sampled_from([1, 2]), st.sampled_from([1, 4, 32])),
    st.sampled_from(["none", "selective", "full"]),
    st.sampled_from(["eager", "fused"]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([1, 4]),
)


@settings(max_examples=60, deadline=None)
@given(spec=specs(), plan=PLANS, better=st.sampled_from(SHARES))
def test_no_step_is_faster_than_its_arithmetic_and_better_rates_are_never_slower(
    spec: Any, plan: TrainingPlan, better: str
) -> None:
    assert plan.hardware is not None
    profile = profile_of(plan.hardware)
    assert profile is not None
    try:
        before = step_time(spec, plan, profile)
    except UnsupportedPlan:
        reject()
    assert before.seconds is not None
    assert before.ideal_seconds is not None
    assert before.seconds >= before.ideal_seconds
    assert before.seconds == pytest.approx(sum(before.parts.values()))
    assert all(seconds >= 0 for seconds in before.parts.values())
    whole = Efficiency(value=1.0, low=1.0, high=1.0)
    after = step_time(spec, plan, profile.model_copy(update={better: whole}))
    assert after.seconds is not None
    assert after.seconds <= before.seconds * (1 + 1e-9)


def test_arrays_in_a_specification_give_the_times_of_each() -> None:
    path = "layer_groups[0].layers[0].channel_mixer.intermediate_size"
    many = candidates(LLAMA, {"layer_groups[0].repeats": np.array([8.0, 32.0]), path: np.array([4096.0, 14336.0])})
    found = step_time(many, PLAN.model_copy(update={"data_parallel": 8, "zero_stage": 3})).seconds
    assert found is not None
    for index, (layers, width) in enumerate([(8, 4096), (32, 14336)]):
        data = LLAMA.to_dict()
        data["layer_groups"][0]["repeats"] = layers
        data["layer_groups"][0]["layers"][0]["channel_mixer"]["intermediate_size"] = width
        alone = step_time(parse_spec(data), PLAN.model_copy(update={"data_parallel": 8, "zero_stage": 3})).seconds
        assert found[index] == pytest.approx(alone)


@pytest.mark.parametrize(
    ("model", "fields", "path"),
    [
        ("mamba2-2.7b", {"context_parallel": 2}, "context_parallel"),
        ("llama-3-8b", {"context_parallel": 2, "attention": "eager"}, "context_parallel"),
        ("mixtral-8x7b", {"tensor_parallel": 2}, "sequence_parallel"),
    ],
)
def test_what_a_model_cannot_be_split_by_is_refused_by_name(model: str, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        step_time(preset(model).spec, PLAN.model_copy(update=fields))
    assert caught.value.problems[0].path == path


@pytest.mark.parametrize("model", preset_ids())
def test_every_known_model_has_a_time(model: str) -> None:
    spec = preset(model).spec
    plan = PLAN.model_copy(update={"sequence_length": 2048, "data_parallel": 8, "zero_stage": 3, "hardware": "gb200"})
    found = step_time(spec, plan)
    assert found.seconds is not None
    assert found.ideal_seconds is not None
    assert found.seconds > found.ideal_seconds


def _errors(rows: list[TrainingRow]) -> list[float]:
    found = []
    for row in rows:
        try:
            seconds = step_time(row.spec, row.plan).seconds
        except UnsupportedPlan:
            continue
        if seconds is not None and row.step_seconds is not None:
            found.append(seconds / row.step_seconds - 1)
    return found


def _timed() -> list[TrainingRow]:
    return [row for row in training_rows() if row.step_seconds is not None]


def test_steps_on_eight_b200_are_predicted_within_8_percent_in_the_mean() -> None:
    errors = _errors([row for row in _timed() if "SimuMax" in row.source])
    assert len(errors) == 22
    assert statistics.mean(map(abs, errors)) <= 0.08


def test_half_of_the_published_steps_of_large_models_are_predicted_within_7_percent() -> None:
    rows = [row for row in _timed() if "SimuMax" not in row.source and count_parameters(row.spec).total >= BILLION]
    errors = _errors(rows)
    assert len(errors) >= 420
    assert statistics.median(map(abs, errors)) <= 0.07
    assert statistics.mean(map(abs, errors)) <= 0.1
    held = _errors([row for row in rows if is_held_out(row)])
    known = _errors([row for row in rows if not is_held_out(row)])
    assert min(len(held), len(known)) >= 150
    assert statistics.median(map(abs, held)) <= 0.075
    assert statistics.median(map(abs, held)) <= 1.3 * statistics.median(map(abs, known))


def test_a_source_that_the_calibration_never_saw_is_predicted_within_15_percent_in_the_median() -> None:
    """All rows of each source, by profiles that were calibrated without it."""
    without = read_left_out()
    errors = []
    for row in _timed():
        if count_parameters(row.spec).total < BILLION:
            continue
        (profile,) = [each for each in without[row.repository].values() if row.plan.hardware in each.devices]
        seconds = step_time(row.spec, row.plan, profile).seconds
        assert seconds is not None
        assert row.step_seconds is not None
        errors.append(seconds / row.step_seconds - 1)
    assert len(errors) >= 440
    assert statistics.median(map(abs, errors)) <= 0.15
    assert abs(statistics.median(errors)) <= 0.05


def test_what_was_left_out_is_not_in_the_calibration() -> None:
    for without, made in read_left_out().items():
        for identifier, left in made.items():
            if without in profiles()[identifier].calibrated_on:
                whole = profiles()[identifier]
                assert any(getattr(left, name) != getattr(whole, name) for name in (*SHARES, "launch_seconds"))


@pytest.mark.parametrize(("data_parallel", "utilization"), [(64, 0.43), (128, 0.41)])
def test_llama_3_s_own_utilization_comes_out_within_a_tenth(data_parallel: int, utilization: float) -> None:
    """Llama 3 405B on 8,192 and 16,384 H100 (arXiv:2407.21783, table 4); no row of ours is from there."""
    plan = TrainingPlan(
        tensor_parallel=8,
        sequence_parallel=True,
        pipeline_parallel=16,
        pipeline_schedule="interleaved",
        virtual_stages=8,  # 126 layers, one less on the first and the last stage
        data_parallel=data_parallel,
        zero_stage=1,
        sequence_length=8192,
        global_batch_size=2048,
        gradient_dtype="fp32",
        hardware="h100",
    )
    found = step_time(preset("llama-3.1-405b").spec, plan)
    assert found.model_flops_utilization == pytest.approx(utilization, rel=0.1)


GPT = ((48, 6144, 64, 8, 1, 1, 4, 4), (96, 12288, 96, 8, 8, 3, 64, 1), (105, 20480, 128, 8, 35, 3, 280, 1),
       (128, 25600, 160, 8, 64, 1, 512, 1))  # fmt: skip
"""Layers, width, heads, tensor and pipeline parallel, virtual stages, sequences a step and a micro batch of the GPT
models with 22, 175, 530 and 1,000 billion parameters in arXiv:2205.05198, table 3."""
SECONDS = ((1.42, 1.10), (18.13, 13.75), (49.05, 37.83), (94.42, 71.49))
"""Of their steps on A100, table 5: all computed again without sequence parallelism, and attention alone with it."""


@pytest.mark.parametrize(("sizes", "measured"), list(zip(GPT, SECONDS, strict=True)))
def test_tensor_parallelism_without_sequence_parallelism_takes_as_long_as_megatron_s(
    sizes: tuple[int, ...], measured: tuple[float, float]
) -> None:
    """No row of ours is from there, and those of ours without sequence parallelism are from another network."""
    layers, width, heads, tensor, pipeline, virtual, batch, micro = sizes
    data = preset("gpt2").spec.to_dict()
    data |= {"hidden_size": width, "vocab_size": 51_200}
    data["layer_groups"][0]["repeats"] = layers
    layer = data["layer_groups"][0]["layers"][0]
    layer["sequence_mixer"] |= {
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": width // heads,
    }  # fmt: skip
    layer["channel_mixer"]["intermediate_size"] = 4 * width
    data["positions"]["num_positions"] = 2048
    plan = TrainingPlan(
        tensor_parallel=tensor, pipeline_parallel=pipeline, virtual_stages=virtual,
        pipeline_schedule="interleaved" if virtual > 1 else "1f1b", global_batch_size=batch, micro_batch_size=micro,
        sequence_length=2048, gradient_dtype="fp32", attention="eager", dropout=0.1, hardware="a100",
    )  # fmt: skip
    ways = ({"recompute": "full"}, {"recompute": "selective", "sequence_parallel": True})
    for fields, seconds in zip(ways, measured, strict=True):
        found = step_time(parse_spec(data), plan.model_copy(update=fields)).seconds
        assert found == pytest.approx(seconds, rel=0.25)


def test_rows_of_one_setting_are_in_one_half() -> None:
    halves: dict[str, set[bool]] = {}
    for row in _timed():
        halves.setdefault(setting(row), set()).add(is_held_out(row))
    assert all(len(half) == 1 for half in halves.values())


def test_every_profile_has_devices_of_the_catalogue_that_are_wired() -> None:
    for profile in profiles().values():
        for device in profile.devices:
            assert hardware(device).peak_flops["bf16"] > 0
            assert device in nodes()
        for name in SHARES:
            share = getattr(profile, name)
            if share is not None:
                assert share.low <= share.value <= share.high


def test_a_prediction_names_its_profile_and_its_interval() -> None:
    found: StepTime = step_time(LLAMA, PLAN)
    assert found.profile == "hopper"
    assert found.low_seconds < found.seconds < found.high_seconds
    assert "hopper" in found.text


def test_states_at_the_ends_of_chunks_are_written_and_read() -> None:
    spec = preset("mamba2-2.7b").spec
    mixer: Any = spec.layer_groups[0].layers[0].sequence_mixer
    plan = PLAN.model_copy(update={"sequence_length": 4096})
    elements = mixer.num_heads * mixer.head_dim * mixer.state_size * 4096 / mixer.chunk_size
    # Twelve passes over fp32: with memory at half its bandwidth they take twice as long, and the scan as long.
    passes = 12 * 4 * elements * spec.num_layers / 3.35e12
    whole, half = (step_time(spec, plan, _profile(memory=share)).parts["attention"] for share in (1.0, 0.5))
    assert half - whole == pytest.approx(passes, rel=1e-6)


def test_linear_biases_are_added_to_scores_that_are_kept() -> None:
    """Of a causal model with eager attention: three passes more over its scores in each of 70 layers, forward."""
    spec = preset("bloom-176b").spec
    data = spec.to_dict()
    plan = PLAN.model_copy(update={"sequence_length": 2048, "attention": "eager"})
    plain = {**data, "positions": {"kind": "learned", "num_positions": 2048}}
    with_biases, without = (
        float(step_time(parse_spec(each), plan, _profile()).parts["attention"]) for each in (data, plain)
    )
    assert with_biases - without == pytest.approx(70 * 3 * 2 * 112 * 2048**2 / 3.35e12, rel=1e-3)
