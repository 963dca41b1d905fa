"""Sizes of quantized weights against published files, and against sums by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import ServingPlan, UnsupportedPlan, estimate_inference, explain, load
from planner.measured.weights import skipped_weights, weights_rows
from planner.serving import WEIGHT_FORMATS, describe_format, serving_memory, weights_bytes
from planner.serving.formats import check_weight_format
from planner.serving.gguf import ROLES, Place, bytes_per_256, type_of
from tests.planner.published import LLAMA_2_7B

MIB = 2**20


@pytest.mark.parametrize(
    "preset, weight_format, file_bytes",
    [
        # lmstudio-ai/model-catalog, catalog.json, 78bd5602 (2024-08-01): sizes of the named files.
        ("mistral-7b", "q4_k_s", 4_140_373_664),
        ("mistral-7b", "q6_k", 5_942_064_800),
        ("mistral-7b", "iq4_xs", 3_944_399_776),
        ("phi-2", "q4_k_s_fused", 1_615_568_736),
        ("phi-2", "q6_k", 2_285_059_936),
        ("gemma-2-9b", "q4_k_m", 5_761_057_728),
        ("phi-3-mini", "q4_k_m_fused", 2_393_232_096),
        # nomic-ai/gpt4all, models3.json, cd70db29 (2025-02-24), and ollama's manifest of deepseek-r1.
        ("qwen2.5-7b", "q4_0", 4_444_121_056),
        ("llama-3-8b", "q4_0", 4_675_894_112),
        ("qwen2.5-7b", "q4_k_m", 4_683_073_184),
        # llama-bench's size column, to a hundredth of a GiB: XiongjieDai/GPU-Benchmarks-on-LLM-Inference and llama.cpp.
        ("llama-3.1-70b", "q4_k_m", round(39.59 * 2**30)),
        ("llama-3-8b", "q4_k_m", round(4.58 * 2**30)),
        ("llama-3.1-70b", "f16", round(131.42 * 2**30)),
        ("gpt-oss-20b", "mxfp4_moe", round(11.27 * 2**30)),
        ("qwen2.5-7b", "q8_0", round(7.54 * 2**30)),
        ("llama-2-7b", "q4_0", round(3.56 * 2**30)),
    ],
)
def test_files_are_as_large_as_published(preset: str, weight_format: str, file_bytes: int) -> None:
    """Within half a per cent: the files also hold the vocabulary, which takes megabytes."""
    assert weights_bytes(load(preset), weight_format) == pytest.approx(file_bytes, rel=0.005)


def test_every_published_file_is_near_and_what_is_left_out_says_why() -> None:
    """All within half a per cent, but for one that an importance matrix gave wider ways down."""
    rows = weights_rows()
    assert len(rows) >= 50
    assert [row.model for row in rows if abs(row.error) > 0.005 + row.rounding / row.bytes] == [
        "DeepSeek-R1-Distill-Qwen-1.5B"
    ]
    assert statistics.median(abs(row.error) for row in rows) < 0.0005
    assert len(rows) + len(skipped_weights()) == 64
    assert all(skipped.reason for skipped in skipped_weights())


def test_a_file_without_its_vocabulary_is_the_published_one_to_a_hundredth_of_a_per_cent() -> None:
    """Mistral 7B's own files differ by the vocabulary of 32,000 tokens: the same 0.73 MB in two types."""
    rest = [4_140_373_664 - weights_bytes(load("mistral-7b"), "q4_k_s")]
    rest.append(5_942_064_800 - weights_bytes(load("mistral-7b"), "q6_k"))
    assert rest[0] == rest[1]
    assert 20 * 32_000 < rest[0] < 30 * 32_000


def test_q4_k_m_of_llama_by_hand() -> None:
    """Of 32 layers 16 have more bits: the first and last four, and every third of the 24 between."""
    wide = {0, 1, 2, 3, 28, 29, 30, 31} | {4 + index for index in range(24) if index % 3 == 2}
    assert len(wide) == 16
    square, long = 4096 * 4096, 4096 * 11_008
    by_hand = 0
    for layer in range(32):
        raised = 210 if layer in wide else 144
        by_hand += (3 * square + 2 * long) // 256 * 144 + (square + long) // 256 * raised + 2 * 4 * 4096
    by_hand += 32_000 * 4096 // 256 * (144 + 210) + 4 * 4096
    assert weights_bytes(LLAMA_2_7B, "q4_k_m") == by_hand


def test_eight_experts_have_wider_keys_and_values() -> None:
    place = Place(inputs=4096, queries_per_key=4, experts=8, layers=32, index=9, count=32)
    assert [type_of("q4_k_m", role, place) for role in ("keys", "values", "output", "queries")] == [
        "q8_0",
        "q8_0",
        "q5_k",
        "q4_k",
    ]


def test_rows_that_are_no_whole_blocks_fall_back() -> None:
    def types(inputs: int) -> list[str]:
        place = Place(inputs, 1, 1, 24, 5, 24)
        return [type_of(file, "matrix", place) for file in ("q2_k", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "q8_0")]

    assert types(896) == ["iq4_nl", "q5_0", "q5_1", "q8_0", "iq4_nl", "q8_0"]
    assert types(100) == ["f16"] * 6


@given(
    file=st.sampled_from([name for name in WEIGHT_FORMATS if name.startswith(("q", "iq"))]),
    role=st.sampled_from(ROLES),
    inputs=st.integers(1, 4096),
    experts=st.sampled_from([1, 8, 64]),
    first=st.integers(0, 5),
    step=st.integers(1, 4),
    times=st.integers(1, 40),
)
def test_every_role_of_every_type_has_a_size(
    file: str, role: str, inputs: int, experts: int, first: int, step: int, times: int
) -> None:
    found = bytes_per_256(file, role, inputs, 4, experts, 80, first, step, times, first + step * times)
    assert times * 50 <= found <= times * 512


def test_schemes_by_hand() -> None:
    """Llama 2 7B's matrices have rows of 4,096 and 11,008; DeepSeek-V3's blocks are 128 by 128."""
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    rest = 2 * (2 * 32_000 * 4096 + 65 * 4096)
    inputs = 32 * (6 * 4096 + 11_008)
    expected = {
        "int4_g64": matrices // 2 + 2 * matrices // 64,
        "awq": matrices // 2 + 5 * matrices // 256,
        "gptq_int4": matrices // 2 + 5 * matrices // 256 + 4 * inputs,
        "gptq_int8": matrices + 3 * matrices // 128 + 4 * inputs,
        "nf4": matrices // 2 + 4 * matrices // 64,
        "nf4_dq": matrices // 2 + matrices // 64 + matrices // 64 // 64,
        "nvfp4": matrices // 2 + matrices // 16,
        "mxfp4": matrices // 2 + matrices // 32,
        "fp8_block": matrices + 4 * matrices // 128 // 128,
    }
    for name, quantized in expected.items():
        assert weights_bytes(LLAMA_2_7B, name) == quantized + rest, name


def test_mxfp4_is_of_the_experts_alone() -> None:
    """gpt-oss 20B: the checkpoint's own size, 13.76 GB (huggingface.co/openai/gpt-oss-20b, three files)."""
    assert weights_bytes(load("gpt-oss-20b"), "mxfp4") == pytest.approx(13.76e9, rel=0.005)


@settings(max_examples=20, deadline=None)
@given(name=st.text(max_size=12))
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        check_weight_format(f"{name}?")
    assert caught.value.path == "weight_format"
    assert caught.value.remedy


def test_every_format_says_what_it_is() -> None:
    for name in (*WEIGHT_FORMATS, "int4_g32", "q4_k_m_fused", "q4_k"):
        check_weight_format(name)
        assert describe_format(name)


@pytest.mark.parametrize(
    "preset, plan",
    [
        ("llama-3.1-70b", {"weight_format": "q4_k_m", "engine": "llama.cpp"}),
        ("llama-3.1-70b", {"weight_format": "q3_k_m", "offload_layers": 30}),
        ("deepseek-v3", {"tensor_parallel": 4, "attention_data_parallel": 4, "expert_parallel": 8, "batch_size": 9}),
        ("llama-3.1-70b", {"tensor_parallel": 8, "speculative": "llama-3.2-1b:k=3:acceptance=0.5"}),
        ("qwen2.5-7b", {"engine": "eager", "output_length": 2048, "weight_format": "gptq_int4"}),
        ("falcon-h1-7b", {"tensor_parallel": 2, "weight_format": "q4_k_m"}),
    ],
)
def test_what_is_explained_is_what_is_estimated(preset: str, plan: dict[str, object]) -> None:
    spec, made = load(preset), ServingPlan(**plan)  # type: ignore[arg-type]
    term = explain(spec, "inference_memory", made)
    assert term.value == estimate_inference(spec, made).memory.total_bytes
    values = {entry.symbol: entry.value for entry in term.symbols}
    known = {symbol: values[str(symbol)] for symbol in term.formula.free_symbols}
    assert int(term.formula.subs(known)) == term.value


def test_memory_of_many_contexts_at_once() -> None:
    """Arrays of contexts and batches give what each alone does, whatever the format and the devices."""
    plan = ServingPlan(weight_format="q4_k_m", tensor_parallel=2)
    lengths, batches = np.array([512.0, 4096.0, 100_000.0]), np.array([1.0, 7.0, 64.0])
    together = serving_memory(load("llama-3-8b"), plan, lengths, batches).total_bytes
    alone = [
        serving_memory(load("llama-3-8b"), plan, int(length), int(batch)).total_bytes
        for length, batch in zip(lengths, batches, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-13)
