"""Times of serving: rooflines by hand, what more bandwidth and more devices do, and measured runs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import (
    PlannerError,
    Problem,
    ServingPlan,
    TrainingPlan,
    estimate_inference,
    explain,
    hardware,
    load,
    parse_plan,
)
from planner.hardware import Device, hardware_catalogue
from planner.measured.inference import (
    counted_reasons,
    inference_rows,
    is_foreign,
    is_held_out,
    skipped_inference,
)
from planner.measured.served import error_of
from planner.presets import preset_ids
from planner.serving import WEIGHT_FORMATS
from planner.serving.engines import EngineTerms, engine_profiles, memory_kind, profile_of
from planner.serving.explained import TIME_QUANTITIES
from planner.serving.times import (
    decode_work,
    exchange_seconds,
    first_token_seconds,
    inter_token_seconds,
    pass_seconds,
    passes_with_prompts,
    peak_of,
    prompt_work,
    roofline,
    time_pass,
)
from tests.planner.published import LLAMA_2_7B, LLAMA_2_70B

H100 = hardware("h100")
SHARES = ("memory", "memory_packed", "cache", "arithmetic", "attention", "network", "overlap")
SECONDS = ("launch_seconds", "host_seconds", "pass_seconds", "between_seconds", "latency_seconds")
PERFECT = EngineTerms.model_validate(
    {
        "engine": "serving",
        "memory_kind": "hbm",
        **{name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in SHARES},
        **{name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in SECONDS},
        "relative_interval": (1, 1),
        "left_out": [],
        "calibrated_on": "nothing",
    }
)


def test_decoding_alone_reads_every_weight_once_by_hand() -> None:
    """Llama 2 7B on an H100: matrices and head in bf16, keys and values of 1,000 tokens, 3.35 TB/s."""
    plan = ServingPlan(context_length=1000, hardware="h100")
    done = time_pass(LLAMA_2_7B, plan, H100, decode_work(LLAMA_2_7B, plan), PERFECT)
    read = 2 * (32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008) + 32_000 * 4096) + 1000 * 32 * 2 * 4096 * 2
    assert done.seconds == pytest.approx(read / 3350e9, rel=0.01)  # what activations move is less than a hundredth
    assert {each.bound for each in done.operators} == {"memory"}


def test_a_long_prompt_is_bound_by_arithmetic_by_hand() -> None:
    plan = ServingPlan(context_length=2048, hardware="h100")
    work, passes = prompt_work(LLAMA_2_7B, plan)
    done = time_pass(LLAMA_2_7B, plan, H100, work, PERFECT)
    matrices = 2 * 2048 * 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008) / 989.4e12
    scores = 32 * 2 * 2 * 4096 * (2048 * 2049 / 2) / 989.4e12
    head = 2 * 32_000 * 4096 / 3350e9  # of one position, so that memory decides
    assert passes == 1
    assert done.seconds == pytest.approx(matrices + scores + head, rel=0.01)


def test_what_is_not_hidden_is_added_by_hand() -> None:
    """The gate of Llama 2 7B for 300 tokens on an H100: more reading than arithmetic, which half hides."""
    plan = ServingPlan(context_length=300, hardware="h100")
    half = PERFECT.model_copy(update={"overlap": PERFECT.overlap.model_copy(update={"value": 0.5})})
    work, _ = prompt_work(LLAMA_2_7B, plan)
    (gate,) = (
        each for each in time_pass(LLAMA_2_7B, plan, H100, work, half).operators if each.operator.name == "gate_proj"
    )
    multiplied = 32 * 2 * 300 * 4096 * 11_008 / 989.4e12
    read = 32 * 2 * (4096 * 11_008 + 300 * (4096 + 11_008)) / 3350e9
    assert gate.bound == "memory"
    assert gate.seconds == pytest.approx(read + multiplied / 2)


def test_experts_are_read_by_the_batch_not_by_the_model() -> None:
    """128 experts of which 8 are chosen: of 1 token 8, of 16 tokens 128 · (1 − (15/16)^16), and never more than all."""
    spec = load("qwen3-30b-a3b")
    read = {}
    for batch in (1, 16, 4096):
        plan = ServingPlan(batch_size=batch)
        read[batch] = sum(
            each.weight_bytes for each in decode_work(spec, plan).operators if each.name.startswith("experts.")
        )
    assert read[16] / read[1] == pytest.approx(16 * (1 - (15 / 16) ** 16))
    assert read[4096] / read[1] == pytest.approx(16)


def test_an_all_reduce_behind_each_mixer_by_hand() -> None:
    plan = ServingPlan(tensor_parallel=8, batch_size=64, hardware="h100")
    expected = 2 * 80 * 2 * 7 / 8 * 64 * 8192 * 2 / 450e9
    assert exchange_seconds(LLAMA_2_70B, plan, H100, PERFECT, 64) == pytest.approx(expected)
    assert exchange_seconds(LLAMA_2_70B, ServingPlan(batch_size=64), H100, PERFECT, 64) == 0


def test_experts_of_other_devices_get_their_tokens_and_send_them_back_by_hand() -> None:
    """58 layers of DeepSeek-V3 send 8 copies of a group's tokens, 7 in 8 of them away, and back."""
    plan = ServingPlan(attention_data_parallel=8, expert_parallel=8, batch_size=80, hardware="h100")
    expected = 58 * 2 * 10 * 8 * 7 / 8 * 7168 * 2 / 450e9
    assert exchange_seconds(load("deepseek-v3"), plan, H100, PERFECT, 80) == pytest.approx(expected)


def test_groups_that_span_nodes_exchange_over_the_network_and_each_within_its_own() -> None:
    """Two nodes of eight H100: the stream within a node at 450 GB/s, experts' tokens between nodes at 50 GB/s."""
    spec, layers = load("deepseek-v3"), 61
    plan = ServingPlan(tensor_parallel=8, attention_data_parallel=2, expert_parallel=16, batch_size=64, hardware="h100")
    streamed = 32 * 7168 * 2
    within = (layers + 3 + 58) * 2 * 7 / 8 * streamed / 450e9
    between = 58 * 2 * 8 * 15 / 16 * streamed / 8 / 50e9
    assert exchange_seconds(spec, plan, H100, PERFECT, 64) == pytest.approx(within + between)


def test_requests_that_come_and_go_are_read_beside_decoding() -> None:
    """Nine others of 1,000 tokens while 500 are written: 18 a pass, so that 1.8% of the passes read a whole prompt."""
    plan = ServingPlan(context_length=1500, output_length=500, batch_size=10, chunked_prefill=True, hardware="h100")
    assert passes_with_prompts(plan) == (pytest.approx(0.018), 1000)
    alone = plan.model_copy(update={"chunked_prefill": False})
    assert passes_with_prompts(alone) == (0.0, 0)
    # With three tokens a pass the answer takes a third of the passes, beside which as much is read.
    proposed = plan.model_copy(update={"speculative": "ngram:k=2:acceptance=1"})
    assert passes_with_prompts(proposed) == (pytest.approx(0.054), 1000)
    assert pass_seconds(LLAMA_2_7B, plan, H100) > pass_seconds(LLAMA_2_7B, alone, H100)
    cached = plan.model_copy(update={"cached_prefix": 900})
    assert pass_seconds(LLAMA_2_7B, cached, H100) < pass_seconds(LLAMA_2_7B, plan, H100)


def test_a_known_prefix_is_not_read_again() -> None:
    plan = ServingPlan(context_length=8192, hardware="h100")
    first = [
        first_token_seconds(LLAMA_2_7B, plan.model_copy(update={"cached_prefix": known}), H100)
        for known in (0, 4096, 8000)
    ]
    assert first[0] > first[1] > first[2]
    # The second half of a prompt has three quarters of its pairs and half of everything else.
    assert 0.5 < first[1] / first[0] < 0.75


def test_speculation_divides_by_the_tokens_that_are_kept() -> None:
    spec, plan = load("llama-3.1-70b"), ServingPlan(tensor_parallel=4, hardware="h100")
    alone = inter_token_seconds(spec, plan, H100)
    kept = inter_token_seconds(spec, plan.model_copy(update={"speculative": "ngram:k=3:acceptance=1"}), H100)
    assert kept == pytest.approx(alone / 4, rel=0.05)
    drafted = plan.model_copy(update={"speculative": "llama-3.2-1b:k=3:acceptance=0.8"})
    useless = plan.model_copy(update={"speculative": "llama-3.2-1b:k=3:acceptance=0"})
    assert inter_token_seconds(spec, drafted, H100) < alone < inter_token_seconds(spec, useless, H100)


def test_energy_is_the_rated_power_while_a_token_is_made() -> None:
    found = estimate_inference(LLAMA_2_70B, ServingPlan(tensor_parallel=4, batch_size=8, hardware="h100"))
    assert found.inter_token_latency_seconds is not None
    assert found.tokens_per_second == pytest.approx(8 / found.inter_token_latency_seconds)
    assert found.energy_per_token_joules == pytest.approx(4 * 700 * found.inter_token_latency_seconds / 8)


def test_a_host_that_schedules_while_the_device_waits_adds_to_every_pass() -> None:
    """Twice its seconds between two passes: once for the model's, once for the draft's of one proposal."""
    plan = ServingPlan(hardware="a100", context_length=1000)
    late = plan.model_copy(update={"engine_overhead": "between_passes"})
    between = profile_of("serving", hardware("a100")).between_seconds.value
    assert between > 0
    spec, device = load("llama-3.1-70b"), hardware("a100")
    drafted = {"speculative": "llama-3.2-1b:k=1:acceptance=0"}
    for times, changes in ((1, {}), (2, drafted)):
        slow, quick = (inter_token_seconds(spec, each.model_copy(update=changes), device) for each in (late, plan))
        assert slow - quick == pytest.approx(times * between)
    # No other engine has the term: transformers' host is waited for by kernel, llama.cpp's is no Python.
    assert {each.engine for each in engine_profiles() if each.between_seconds.value} == {"serving"}


def test_transformers_copies_the_cache_for_every_token_by_hand() -> None:
    """Llama 3 8B, 4,096 tokens of 131,072 bytes: written anew, read to be repeated four times, written and read so."""
    spec = load("llama-3-8b")
    moved = {}
    for engine in ("eager", "serving"):
        plan = parse_plan(ServingPlan, {"context_length": 4096, "engine": engine})
        mixing = [each for each in decode_work(spec, plan).operators if each.name == "mixing"]
        moved[engine] = sum(each.moved_bytes for each in mixing)
    cache = 4096 * 131_072
    assert moved["eager"] - moved["serving"] == cache + cache + 4 * cache + 4 * cache


def test_llama_cpp_sums_in_sixteen_bits_where_that_is_faster() -> None:
    """An RTX 4090 does 330.3 TFLOPs a second so, and 165.2 with sums in 32 bits; an RTX 6000 Ada 364.2 either way."""
    for device, peak in (("rtx4090", 330.3e12), ("rtx_6000_ada", 364.2e12)):
        plan = ServingPlan(hardware=device, weight_format="f16", context_length=512)
        work, _ = prompt_work(LLAMA_2_7B, plan)
        done = time_pass(LLAMA_2_7B, plan, hardware(device), work, PERFECT)
        large = [each for each in done.operators if each.operator.name == "up_proj"]
        assert large
        for each in large:
            assert each.operator.flops / each.arithmetic_seconds == pytest.approx(peak, rel=1e-3)


def test_parts_sum_to_the_pass() -> None:
    plan = ServingPlan(tensor_parallel=4, batch_size=8, hardware="a100", engine="eager")
    found = estimate_inference(LLAMA_2_70B, plan)
    assert sum(found.decode_parts.values()) == pytest.approx(found.inter_token_latency_seconds)
    assert sum(found.prefill_parts.values()) == pytest.approx(found.time_to_first_token_seconds)


def test_a_device_without_a_peak_has_no_time_for_prompts_and_says_why() -> None:
    found = estimate_inference(LLAMA_2_7B, ServingPlan(hardware="m3_ultra", weight_format="q4_k_m"))
    assert (found.time_to_first_token_seconds, found.prefill_parts) == (None, {})
    assert found.inter_token_latency_seconds is not None
    assert "peak" in found.time_note
    with pytest.raises(PlannerError, match="peak"):
        explain(LLAMA_2_7B, "time_to_first_token", ServingPlan(hardware="m3_ultra"))
    # NVIDIA publishes the fp4 rate of GB10 alone: bf16 is taken to have a quarter of it.
    assert peak_of(hardware("dgx_spark"), "bf16") == 125e12


def test_a_device_without_bandwidth_has_no_times_and_says_why() -> None:
    without = [device for device in hardware_catalogue() if device.memory_bandwidth_bytes_per_second is None]
    for device in without:
        found = estimate_inference(LLAMA_2_7B, ServingPlan(hardware=device.id))
        assert (found.inter_token_latency_seconds, found.time_status) == (None, "unsupported")
        assert "bandwidth" in found.time_note
    assert estimate_inference(LLAMA_2_7B, ServingPlan()).inter_token_latency_seconds is None


def faster(device: Device, bandwidth: float = 1.0, peak: float = 1.0) -> Device:
    known = device.memory_bandwidth_bytes_per_second
    return device.model_copy(
        update={
            "memory_bandwidth_bytes_per_second": None if known is None else known * bandwidth,
            "peak_flops": {name: rate * peak for name, rate in device.peak_flops.items()},
        }
    )


PLANS = st.fixed_dictionaries(
    {
        "weight_format": st.sampled_from([*WEIGHT_FORMATS, "int4_g64", "q5_k_m_fused", "int3"]),
        "cache_dtype": st.sampled_from(["bf16", "fp8", "int8_per_token_head"]),
        "context_length": st.integers(1, 200_000),
        "batch_size": st.integers(1, 3000),
        "tensor_parallel": st.sampled_from([1, 1, 2, 4, 8, 5]),
        "expert_parallel": st.sampled_from([1, 1, 2, 8, 3]),
        "attention_data_parallel": st.sampled_from([1, 1, 2, 8]),
        "pipeline_parallel": st.sampled_from([1, 1, 2, 3, 40]),
        "offload_layers": st.sampled_from([0, 0, 0, 7, 100]),
        "cached_prefix": st.sampled_from([0, 0, 1000]),
        "chunked_prefill": st.booleans(),
        "speculative": st.sampled_from([None, None, "ngram:k=4:acceptance=0.5", "llama-3.2-1b:k=2:acceptance=0.9"]),
        "engine": st.sampled_from([None, "serving", "eager", "llama.cpp"]),
        "hardware": st.sampled_from([None, *[device.id for device in hardware_catalogue()]]),
    },
    optional={"output_length": st.integers(1, 100_000)},
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(name=st.sampled_from(preset_ids()), data=PLANS)
def test_a_thousand_plans_are_estimated_or_refused_with_a_remedy(name: str, data: dict[str, Any]) -> None:
    spec = load(name)
    refused: tuple[Problem, ...] = ()
    try:
        plan = parse_plan(ServingPlan, data)
        found = estimate_inference(spec, plan)
    except PlannerError as error:
        refused = error.problems
    if refused:
        assert all(problem.path and problem.remedy for problem in refused)
        return
    memory = found.memory
    assert sum(memory.parts.values()) == memory.total_bytes
    assert all(value >= 0 for value in memory.parts.values())
    for seconds in (found.time_to_first_token_seconds, found.inter_token_latency_seconds):
        assert seconds is None or (seconds > 0 and math.isfinite(seconds))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["llama-3-8b", "deepseek-v3", "mamba2-2.7b", "gemma-3-4b", "gpt-oss-120b"]),
    batch=st.integers(1, 500),
    length=st.integers(2, 50_000),
    engine=st.sampled_from(["serving", "eager", "llama.cpp"]),
    device=st.sampled_from(["rtx4090", "h100", "m2_ultra"]),
)
def test_more_bandwidth_or_arithmetic_is_never_slower(
    name: str, batch: int, length: int, engine: str, device: str
) -> None:
    spec, known = load(name), hardware(device)
    plan = parse_plan(ServingPlan, {"batch_size": batch, "context_length": length, "engine": engine})
    for better in (faster(known, bandwidth=1.5), faster(known, peak=1.5)):
        assert inter_token_seconds(spec, plan, better) <= inter_token_seconds(spec, plan, known)


@pytest.mark.parametrize("device", ["rtx4090", "h200", "dgx_spark"])
def test_no_operator_is_above_its_roof(device: str) -> None:
    spec = load("qwen3-30b-a3b")
    for weight_format in ("bf16", "q4_k_m", "fp8"):
        points = roofline(spec, ServingPlan(hardware=device, batch_size=16, weight_format=weight_format))
        assert {point.phase for point in points} == {"decode", "prefill"}
        for point in points:
            assert 0 < point.flops_per_second <= point.roof_flops_per_second
    with pytest.raises(PlannerError):
        roofline(spec, ServingPlan())


def test_layers_on_the_host_have_a_roof_of_their_own() -> None:
    """Half of Llama 2 7B's layers are read at 64 GB/s: 2 · 16 · 3 · 4,096 · 11,008 bytes of the MLP in 67.6 ms."""
    points = roofline(LLAMA_2_7B, ServingPlan(hardware="h100", offload_layers=16))
    host = [each for each in points if each.phase == "decode" and each.name.endswith("on the host")]
    assert sum(each.seconds for each in host if each.component == "mlp") == pytest.approx(0.0676, rel=0.01)
    assert all(0 < each.flops_per_second <= each.roof_flops_per_second * 1.000001 for each in points)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, plan",
    [
        ("llama-3-8b", {"hardware": "h100", "batch_size": 16}),
        ("llama-3-8b", {"hardware": "rtx4090", "weight_format": "q4_k_m", "output_length": 1000}),
        ("deepseek-v3", {"hardware": "h200", "tensor_parallel": 8, "weight_format": "fp8_block", "batch_size": 3}),
        ("qwen3-30b-a3b", {"hardware": "h100", "batch_size": 64, "output_length": 500, "chunked_prefill": True}),
        ("mamba2-2.7b", {"hardware": "a100", "engine": "eager"}),
        ("llama-3.1-70b", {"hardware": "h100", "tensor_parallel": 4, "speculative": "llama-3.2-1b:k=3:acceptance=0.8"}),
        ("llama-3-8b", {"hardware": "rtx4090", "offload_layers": 5, "cached_prefix": 100}),
        ("llama-3-8b", {"hardware": "rtx4090", "weight_format": "q4_k_m", "pipeline_parallel": 2}),
    ],
)
def test_times_open_into_operators_whose_formulas_give_them(name: str, plan: dict[str, Any]) -> None:
    spec, made = load(name), parse_plan(ServingPlan, plan)
    estimate = estimate_inference(spec, made)
    whole = {
        "inter_token_latency": estimate.inter_token_latency_seconds,
        "time_to_first_token": estimate.time_to_first_token_seconds,
    }
    assert set(whole) == set(TIME_QUANTITIES)
    for quantity, seconds in whole.items():
        term = explain(spec, quantity, made)
        assert term.value == pytest.approx(seconds)
        assert sum(child.value for child in term.children) == pytest.approx(term.value)
        for part in term.walk():
            known = {sympy.Symbol(each.symbol, integer=True, positive=True): each.value for each in part.symbols}
            assert float(part.formula.subs(known)) == pytest.approx(part.value, rel=1e-9)
            assert part.source
            assert part.uncertainty is not None
        assert term.uncertainty is not None
        assert term.uncertainty.bounded


@pytest.mark.parametrize("plan", [{}, {"hardware": "abacus"}, {"hardware": "h100", "tensor_parallel": 3}])
def test_times_of_no_device_are_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(PlannerError) as caught:
        explain(LLAMA_2_7B, "inter_token_latency", ServingPlan(**plan))
    assert caught.value.remedy
    with pytest.raises(PlannerError):
        explain(LLAMA_2_7B, "inter_token_latency", TrainingPlan())


def test_profiles_are_a_handful_with_intervals() -> None:
    for profile in engine_profiles():
        for name in (*SHARES, *SECONDS):
            term = getattr(profile, name)
            assert term.low <= term.value <= term.high
            assert name in SECONDS or term.high <= 1
        assert profile.left_out
        assert sum(each.readings for each in profile.left_out) == sum(
            (row.plan.engine, memory_kind(hardware(row.plan.hardware or ""))) == (profile.engine, profile.memory_kind)
            and row.reading != "memory"
            and not is_foreign(row)
            for row in inference_rows()
        )
    assert profile_of("serving", hardware("rtx4090")).memory_kind == "hbm"
    assert profile_of("serving", hardware("mi300x")).memory_kind == "amd_hbm"
    assert profile_of("llama.cpp", hardware("m2_ultra")).memory_kind == "apple"
    assert profile_of("llama.cpp", hardware("rtx4090")).memory_kind == "gddr"


# --- against measured runs ---


def errors_by_group(held_out: bool | None, *readings: str) -> dict[str, list[float]]:
    found = defaultdict(list)
    for row in inference_rows():
        if row.reading in readings and held_out in (None, is_held_out(row)):
            found[row.group].append(abs(error_of(row)))
    return found


@pytest.mark.parametrize(
    "group, allowed",
    [
        ("aiconfigurator", 0.25),
        ("Qwen, vLLM", 0.2),
        ("Qwen, transformers", 0.2),
        ("XiongjieDai/GPU-Benchmarks-on-LLM-Inference", 0.2),
        ("ggml-org/llama.cpp", 0.2),
        ("NVIDIA/TensorRT-LLM", 0.2),
        ("dstackai/benchmarks", 0.2),
    ],
)
def test_times_of_the_half_that_nothing_was_fitted_to(group: str, allowed: float) -> None:
    errors = errors_by_group(True, "token", "answer")[group]
    assert len(errors) >= 8
    assert statistics.median(errors) <= allowed


@pytest.mark.parametrize("group, allowed", [("ggml-org/llama.cpp", 0.2), ("NVIDIA/TensorRT-LLM", 0.25)])
def test_times_of_prompts_of_the_half_that_nothing_was_fitted_to(group: str, allowed: float) -> None:
    errors = errors_by_group(True, "prompt")[group]
    assert len(errors) >= 4
    assert statistics.median(errors) <= allowed


@pytest.mark.parametrize("group", ["Qwen, transformers", "XiongjieDai/GPU-Benchmarks-on-LLM-Inference"])
def test_memory_of_measured_runs(group: str) -> None:
    """What an allocator reports: all but the process's own overhead."""
    errors = errors_by_group(None, "memory")[group]
    assert len(errors) > 40
    assert statistics.median(errors) <= 0.05


def test_every_row_is_used_or_skipped_for_a_counted_reason() -> None:
    lines = {row.id.split()[0] for row in inference_rows()} | {row.id.split()[0] for row in skipped_inference()}
    assert len(lines) == 1030 + 12
    assert sum(counted_reasons().values()) == len(skipped_inference())
