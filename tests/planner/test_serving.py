"""Memory of serving by hand, the longest context that fits, and what is refused."""

from __future__ import annotations

from typing import Any

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
    load,
)
from planner.serving import WEIGHT_FORMATS, largest_true, serving_memory, weights_bytes
from planner.serving.speculative import speculation
from tests.planner.published import DEEPSEEK_V3, GPT_2, LLAMA_2_7B, LLAMA_2_70B, MAMBA_2_130M, MAMBA_130M
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


@pytest.mark.parametrize(
    "name, weight_format, device, does",
    [
        # arXiv:2407.21783, section 6: in bf16 it takes two machines of eight H100, in fp8 one.
        ("llama-3.1-405b", "bf16", "h100", False),
        ("llama-3.1-405b", "fp8", "h100", True),
        # 671 billion parameters of a byte and scales: recipes of vLLM and SGLang take eight H200 or 16 H100.
        ("deepseek-v3", "fp8_block", "h200", True),
        ("deepseek-v3", "fp8_block", "h100", False),
    ],
)
def test_eight_devices_hold_what_they_are_known_to(name: str, weight_format: str, device: str, does: bool) -> None:
    assert fits(load(name), ServingPlan(weight_format=weight_format, tensor_parallel=8), device).fits is does


def test_what_does_not_fit_is_said_to_be_the_weights_only_where_it_is_they() -> None:
    """16.1 GB of weights on 24 GB, and one token of 131,072 bytes in blocks of 16 for each of 100,000 sequences."""
    many = estimate_inference(load("llama-3-8b"), ServingPlan(hardware="rtx4090", batch_size=100_000))
    assert many.max_context_length == 0
    assert "the weights fit" in many.max_context_note
    assert "alone" in estimate_inference(DEEPSEEK_V3, ServingPlan(hardware="t4")).max_context_note


def test_a_draft_of_experts_lies_whole_on_every_device() -> None:
    """The draft's weights are the same whether groups have sequences of their own or there is one device."""
    draft = load("olmoe-1b-7b")
    spec = draft.model_copy(update={"name": "larger"})
    text = "olmoe-1b-7b:k=2:acceptance=0.5"
    plan = ServingPlan(attention_data_parallel=4, speculative=text, batch_size=4)
    alone = plan.model_copy(update={"speculative": None})
    found = serving_memory(spec, plan, 4096, 4).weights_bytes - serving_memory(spec, alone, 4096, 4).weights_bytes
    assert found == 2 * 6_919_161_856


def test_llama_cpp_keeps_no_mask_where_nothing_attends() -> None:
    """Mamba's compute buffer: 512 tokens of logits and stream, however long the context is."""
    plan = ServingPlan(engine="llama.cpp", weight_format="q8_0", context_length=1_000_000)
    memory = estimate_inference(MAMBA_130M, plan).memory
    assert memory.activations_bytes == 4 * 512 * (MAMBA_130M.vocab_size + MAMBA_130M.hidden_size)


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


def test_everything_unsupported_is_refused_by_name_at_once() -> None:
    plan = ServingPlan(
        weight_format="q4_k_x",
        cache_dtype="int3",
        speculative="draft",
        context_length=100,
        output_length=100,
    )
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_inference(LLAMA_2_7B, plan)
    assert [problem.path for problem in caught.value.problems] == [
        "weight_format",
        "cache_dtype",
        "speculative",
        "output_length",
    ]
    assert all(problem.remedy for problem in caught.value.problems)


@pytest.mark.parametrize(
    "spec, plan, path",
    [
        (LLAMA_2_7B, {"tensor_parallel": 3}, "tensor_parallel"),
        # 28 heads, 4 of keys: of seven devices with four heads each, most have heads of two groups.
        (load("qwen2.5-7b"), {"tensor_parallel": 7}, "tensor_parallel"),
        (load("qwen2.5-7b"), {"tensor_parallel": 28}, "tensor_parallel"),  # an MLP of 18,944
        (load("bamba-9b"), {"tensor_parallel": 3}, "tensor_parallel"),
        (LLAMA_2_7B, {"expert_parallel": 2, "tensor_parallel": 2}, "expert_parallel"),
        (DEEPSEEK_V3, {"expert_parallel": 8, "tensor_parallel": 4}, "expert_parallel"),
        (DEEPSEEK_V3, {"expert_parallel": 3, "attention_data_parallel": 3}, "expert_parallel"),
        (LLAMA_2_7B, {"offload_layers": 33}, "offload_layers"),
        (LLAMA_2_7B, {"cached_prefix": 4096}, "cached_prefix"),
        (LLAMA_2_7B, {"speculative": "gpt2:k=4:acceptance=0.7"}, "speculative"),
        (LLAMA_2_7B, {"speculative": "gpt-2:k=4:acceptance=0.7"}, "speculative"),
        (LLAMA_2_7B, {"speculative": "ngram:k=4"}, "speculative"),
        (LLAMA_2_7B, {"speculative": "ngram:k=0:acceptance=0.5"}, "speculative"),
        (LLAMA_2_7B, {"speculative": "ngram:k=2:acceptance=1.5"}, "speculative"),
        (LLAMA_2_7B, {"speculative": "ngram:k=two:acceptance=1"}, "speculative"),
        (LLAMA_2_7B, {"speculative": "ngram:k=2:k=3:acceptance=1"}, "speculative"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: ArchitectureSpec, plan: dict[str, Any], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_inference(spec, ServingPlan(**plan))
    assert caught.value.path == path
    assert caught.value.remedy


def test_devices_share_weights_by_hand() -> None:
    """Llama 2 70B on sixteen devices: eight KV heads are each kept twice, norms sixteen times."""
    memory = serving_memory(LLAMA_2_70B, ServingPlan(tensor_parallel=16), 4096, 2)
    queries, values, mlp = 8192 * 8192, 8192 * 1024, 3 * 8192 * 28_672
    layer = 2 * queries // 16 + 2 * values // 8 + mlp // 16
    assert memory.weights_bytes == 2 * (80 * layer + 2 * 32_000 * 8192 // 16 + 161 * 8192)
    # One KV head of 128 channels, keys and values, of two sequences.
    assert memory.cache_bytes == 2 * 80 * 2 * 4096 * 128 * 2


def test_experts_are_shared_out_and_latents_are_kept_by_all() -> None:
    """DeepSeek-V3 on 16 devices: 2 × 8, experts in eight groups, so two devices share each of 32."""
    plan = ServingPlan(tensor_parallel=8, attention_data_parallel=2, expert_parallel=8)
    one, many = serving_memory(DEEPSEEK_V3, ServingPlan(), 4096, 4), serving_memory(DEEPSEEK_V3, plan, 4096, 4)
    assert many.cache_bytes == one.cache_bytes // 2
    experts = 58 * 3 * 256 * 2048 * 7168
    assert one.weights_bytes // 16 < many.weights_bytes < one.weights_bytes // 16 + 2 * (17 * 10**9) // 8 * 2
    assert many.weights_bytes > 2 * experts // 16


def test_offloaded_layers_lie_in_the_hosts_memory() -> None:
    """The first eight of 32 layers: a quarter of what layers hold, and of the cache."""
    all_here, part = (serving_memory(LLAMA_2_7B, ServingPlan(offload_layers=count), 4096, 1) for count in (0, 8))
    layers = 2 * (MATRICES + 64 * 4096)
    assert all_here.weights_bytes - part.weights_bytes == layers // 4
    assert part.cache_bytes * 4 == all_here.cache_bytes * 3
    assert part.host_bytes == layers // 4 + all_here.cache_bytes // 4
    everything = serving_memory(LLAMA_2_7B, ServingPlan(offload_layers=32), 4096, 1)
    assert (everything.cache_bytes, everything.weights_bytes) == (0, 2 * (REST - 64 * 4096))


def test_a_draft_lies_whole_on_each_device() -> None:
    plan = ServingPlan(tensor_parallel=4, speculative="llama-3.2-1b:k=3:acceptance=0.5")
    target, draft = load("llama-3.1-70b"), load("llama-3.2-1b")
    without = serving_memory(target, plan.model_copy(update={"speculative": None}), 4096, 2)
    drafted = serving_memory(target, plan, 4096, 2)
    assert drafted.weights_bytes - without.weights_bytes == weights_bytes(draft)
    assert drafted.cache_bytes - without.cache_bytes == cache_bytes(draft, 4096, 2)
    # Logits of four positions a sequence instead of one.
    assert drafted.activations_bytes - without.activations_bytes == 4 * 2 * 3 * 128_256


@pytest.mark.parametrize(
    "acceptance, proposed, expected", [(0.0, 4, 1.0), (1.0, 4, 5.0), (0.7, 4, (1 - 0.7**5) / 0.3), (0.5, 1, 1.5)]
)
def test_tokens_a_pass_are_leviathans(acceptance: float, proposed: int, expected: float) -> None:
    found = speculation(f"ngram:k={proposed}:acceptance={acceptance}")
    assert found is not None
    assert found.tokens_a_pass == pytest.approx(expected)


def test_fitting_is_said_of_usable_memory() -> None:
    """A 7 B model in fp32 with its cache needs more than the 24 GiB on the box, in bf16 less than what is usable."""
    assert not fits(LLAMA_2_7B, ServingPlan(weight_format="fp32"), "rtx4090").fits
    fit = fits(LLAMA_2_7B, ServingPlan(), hardware("rtx4090"))
    assert fit.fits
    assert sum(fit.parts.values()) == fit.needed_bytes
    assert fit.usable_bytes == 24_564 * 2**20
    assert 0 < fit.share < 1
