"""Memory of serving by hand, the longest context that fits, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import (
    ArchitectureSpec,
    ServingPlan,
    UnsupportedPlan,
    cache_bytes,
    estimate_inference,
    fits,
    hardware,
)
from planner.serving import WEIGHT_FORMATS, largest_true, serving_memory, weights_bytes
from tests.planner.published import DEEPSEEK_V3, GPT_2, LLAMA_2_7B, MAMBA_2_130M, MAMBA_130M
from tests.planner.strategies import specs

# Llama 2 7B, by hand: what stands in matrices of the layers, and the rest (embedding, head, 65 norms).
MATRICES = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
REST = 2 * 32_000 * 4096 + 65 * 4096
ROWS = 32 * (4 * 4096 + 2 * 11_008 + 4096)


@pytest.mark.parametrize(
    "weight_format, by_hand",
    [
        ("fp32", 4 * (MATRICES + REST)),
        ("bf16", 2 * (MATRICES + REST)),
        ("fp16", 2 * (MATRICES + REST)),
        ("fp8", MATRICES + 4 * ROWS + 2 * REST),
        ("int8", MATRICES + 4 * ROWS + 2 * REST),
        # Half a byte a weight and two bytes for every 128: both row lengths, 4,096 and 11,008, are whole groups.
        ("int4", MATRICES // 2 + 2 * MATRICES // 128 + 2 * REST),
    ],
)
def test_weights_of_llama_by_hand(weight_format: str, by_hand: int) -> None:
    assert weights_bytes(LLAMA_2_7B, weight_format) == by_hand


def test_decay_rates_and_buffers_stay_in_fp32() -> None:
    """24 layers of 24 heads with A_log, D and dt_bias; 58 routers of 256 biases."""
    assert weights_bytes(MAMBA_2_130M, "bf16") == 2 * 128_989_632 + 2 * 24 * 3 * 24
    assert weights_bytes(DEEPSEEK_V3, "bf16") == 2 * 671_026_404_352 + 4 * 58 * 256


@settings(max_examples=30, deadline=None)
@given(spec=specs())
def test_narrower_formats_are_smaller_on_large_matrices(spec: ArchitectureSpec) -> None:
    sizes = {name: weights_bytes(spec, name) for name in WEIGHT_FORMATS}
    assert sizes["bf16"] == sizes["fp16"] < sizes["fp32"]
    assert sizes["fp8"] == sizes["int8"]


def test_the_parts_sum_to_the_total() -> None:
    plan = ServingPlan(context_length=8192, batch_size=4, cache_dtype="fp8")
    memory = estimate_inference(LLAMA_2_7B, plan).memory
    assert sum(memory.parts.values()) == memory.total_bytes
    assert memory.cache_bytes == cache_bytes(LLAMA_2_7B, 8192, 4, "fp8")
    # 2,048 tokens of a prompt: the stream twice and the widest mixer's outputs, and fp32 logits of four sequences.
    widest = max(3 * 4096 + 4096, 2 * 11_008 + 4096)
    assert memory.activations_bytes == 2 * 2048 * (2 * 4096 + widest) + 4 * 4 * 32_000


@pytest.mark.parametrize("device", ["rtx4090", "h100"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_longest_context_fits_and_one_more_token_does_not(device: str, batch: int) -> None:
    plan = ServingPlan(hardware=device, batch_size=batch)
    longest = estimate_inference(LLAMA_2_7B, plan).max_context_length
    usable = hardware(device).usable_memory_bytes
    assert longest is not None
    assert serving_memory(LLAMA_2_7B, plan, longest, batch).total_bytes <= usable
    assert serving_memory(LLAMA_2_7B, plan, longest + 1, batch).total_bytes > usable


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    plan = ServingPlan(hardware="h100", context_length=4096)
    largest = estimate_inference(LLAMA_2_7B, plan).max_batch_size
    usable = hardware("h100").usable_memory_bytes
    assert largest is not None
    assert serving_memory(LLAMA_2_7B, plan, 4096, largest).total_bytes <= usable
    assert serving_memory(LLAMA_2_7B, plan, 4096, largest + 1).total_bytes > usable


def test_bounds_that_are_not_memory_are_named() -> None:
    assert estimate_inference(LLAMA_2_7B, ServingPlan()).max_context_length is None
    state = estimate_inference(MAMBA_130M, ServingPlan(hardware="t4"))
    assert state.max_context_length is None
    assert "no bound" in state.max_context_note
    learned = estimate_inference(GPT_2, ServingPlan(hardware="t4"))
    assert learned.max_context_length == 1024
    assert "learned" in learned.max_context_note
    large = estimate_inference(DEEPSEEK_V3, ServingPlan(hardware="t4"))
    assert (large.max_context_length, large.max_batch_size) == (0, 0)


@given(bound=st.integers(1, 5000), limit=st.integers(0, 6000))
def test_largest_true_is_the_largest(bound: int, limit: int) -> None:
    assert largest_true(lambda number: number <= limit, bound) == min(bound, limit)


def test_times_are_absent_and_say_so() -> None:
    estimate = estimate_inference(LLAMA_2_7B, ServingPlan(hardware="h100"))
    assert estimate.time_to_first_token_seconds is None
    assert estimate.inter_token_latency_seconds is None
    assert estimate.tokens_per_second is None
    assert estimate.time_status == "unsupported"


def test_everything_unsupported_is_refused_by_name_at_once() -> None:
    plan = ServingPlan(
        weight_format="q4_k_m",
        cache_dtype="int3",
        tensor_parallel=2,
        expert_parallel=2,
        attention_data_parallel=2,
        offload_layers=3,
        speculative="draft",
    )
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_inference(LLAMA_2_7B, plan)
    assert [problem.path for problem in caught.value.problems] == [
        "weight_format",
        "cache_dtype",
        "tensor_parallel",
        "expert_parallel",
        "attention_data_parallel",
        "offload_layers",
        "speculative",
    ]
    assert all(problem.remedy for problem in caught.value.problems)


def test_fitting_is_said_of_usable_memory() -> None:
    """A 7 B model in fp32 with its cache needs more than the 24 GiB on the box, in bf16 less than what is usable."""
    assert not fits(LLAMA_2_7B, ServingPlan(weight_format="fp32"), "rtx4090").fits
    fit = fits(LLAMA_2_7B, ServingPlan(), hardware("rtx4090"))
    assert fit.fits
    assert sum(fit.parts.values()) == fit.needed_bytes
    assert fit.usable_bytes == 24_564 * 2**20
    assert 0 < fit.share < 1
