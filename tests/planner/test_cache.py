"""Ideal and allocated caches: blocks, windows that are freed or not, and the scales of quantized formats, by hand."""

from __future__ import annotations

import pathlib
from typing import Any, get_args

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import ArchitectureSpec, ServingPlan, UnsupportedPlan, cache_bytes, estimate_inference, explain
from planner.cache import CACHE_FORMATS, WindowedPages, cache_use, model_cache
from tests.planner.published import (
    DEEPSEEK_V3,
    GEMMA_2_2B,
    JAMBA,
    LLAMA_2_7B,
    LLAMA_2_70B,
    MAMBA_130M,
    MISTRAL_7B,
    attention,
    model,
    uniform,
)
from tests.planner.strategies import mask_fields, specs

# Llama 2 7B: keys and values of 32 layers with 32 heads of 128 channels.
TOKEN = 2 * 32 * 32 * 128


@pytest.mark.parametrize(
    "context, block, positions",
    [(1, 16, 16), (16, 16, 16), (17, 16, 32), (4096, 16, 4096), (4097, 16, 4112), (4097, 1, 4097), (100, 256, 256)],
)
def test_full_layers_round_up_to_whole_blocks(context: int, block: int, positions: int) -> None:
    use = cache_use(LLAMA_2_7B, context, 3, block_size=block)
    assert use.ideal_bytes == cache_bytes(LLAMA_2_7B, context, 3) == 3 * TOKEN * context * 2
    assert use.allocated_bytes == 3 * TOKEN * positions * 2


@pytest.mark.parametrize(
    "pages, positions",
    [
        # 4,096 keys that may begin amid a block of 16 touch 257 blocks; without a window's manager, 2,048 blocks.
        ("window", 257 * 16),
        ("context", 32_768),
    ],
)
def test_windowed_layers_by_the_engines_choice(pages: Any, positions: int) -> None:
    use = cache_use(MISTRAL_7B, 32_768, windowed_pages=pages)
    assert use.ideal_bytes == 2 * 32 * 8 * 128 * 4096 * 2
    assert use.allocated_bytes == 2 * 32 * 8 * 128 * positions * 2
    assert f"({pages})" in use.assumption
    # Half of Gemma 2's layers see all: those do not depend on the choice.
    mixed = cache_use(GEMMA_2_2B, 8192, windowed_pages=pages)
    windowed = 257 * 16 if pages == "window" else 8192
    assert mixed.allocated_bytes == 2 * 13 * 4 * 256 * (windowed + 8192) * 2


@given(window=st.integers(1, 40), block=st.integers(1, 24), context=st.integers(1, 120))
def test_a_windows_blocks_are_those_that_it_touches_wherever_it_stands(window: int, block: int, context: int) -> None:
    """Counted one by one: while tokens are added, the most blocks that hold one of the last ``window`` positions."""
    most = max(
        len({position // block for position in range(max(0, end - window), end)}) for end in range(1, context + 1)
    )
    spec = model("one", 10, 8, [uniform(1, attention(1, 1, 8, sliding_window=window), None)])
    held = cache_use(spec, context, block_size=block).allocated_bytes // (2 * 8 * 2)
    assert held % block == 0
    # Wherever it stands: contexts that end before the window comes to its worst place are given that place.
    whole = max(
        len({position // block for position in range(end - window, end)}) for end in range(window, window + block)
    )
    assert most <= held // block <= min(-(-context // block), whole)


@given(data=st.data(), block=st.integers(1, 9), context=st.integers(1, 60))
def test_blocks_of_any_mask_hold_all_that_is_kept(data: st.DataObject, block: int, context: int) -> None:
    """Counted one by one at every moment: the latest positions, and those that all later queries see."""
    spec = model("one", 10, 8, [uniform(1, attention(1, 1, 8, **data.draw(mask_fields(12))), None)])
    mixer: Any = spec.layer_groups[0].layers[0].sequence_mixer
    pattern = mixer.pattern
    most = 0
    for end in range(1, context + 1):
        latest = end if pattern.recent is None else min(end, pattern.recent)
        kept = [p for p in range(end) if p >= end - latest or all(pattern.sees(query, p) for query in range(end, 200))]
        most = max(most, len({position // block for position in kept}))
    held = cache_use(spec, context, block_size=block).allocated_bytes // (2 * 8 * 2)
    assert held % block == 0
    assert most <= held // block <= -(-context // block)


@pytest.mark.parametrize(
    "dtype, by_hand",
    [
        ("fp32", TOKEN * 4),
        ("bf16", TOKEN * 2),
        ("fp8", TOKEN),
        ("int8", TOKEN),
        # Four bytes beside the 128 channels of each of 32 heads, for keys and for values, in 32 layers.
        ("fp8_per_token_head", TOKEN + 2 * 32 * 32 * 4),
        ("int8_per_token_head", TOKEN + 2 * 32 * 32 * 4),
        ("int4_per_token_head", TOKEN // 2 + 2 * 32 * 32 * 4),
    ],
)
def test_formats_of_llama_by_hand(dtype: str, by_hand: int) -> None:
    assert cache_bytes(LLAMA_2_7B, 1000, 2, dtype) == 2000 * by_hand
    use = cache_use(LLAMA_2_7B, 1000, 2, dtype)
    assert use.allocated_bytes == 2 * 1008 * by_hand
    assert use.scale_bytes == (2000 * 2 * 32 * 32 * 4 if "token_head" in dtype else 0)
    assert dtype.split("_")[0] in use.scheme


def test_every_quantized_format_names_its_scheme_and_an_engine() -> None:
    for name, written in CACHE_FORMATS.items():
        if name in ("fp32", "bf16", "fp16"):
            continue
        assert "per tensor" in written.scheme or "per token and head" in written.scheme
        assert any(engine in written.scheme for engine in ("vLLM", "TensorRT-LLM", "LMDeploy"))


def test_the_documentation_has_every_format_and_both_choices() -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "planner" / "memory-of-serving.md").read_text(encoding="utf-8")
    for name in (*CACHE_FORMATS, *get_args(WindowedPages)):
        assert f"`{name}`" in text


def test_rows_of_four_bits_end_on_a_byte() -> None:
    spec = model("odd", 10, 8, [uniform(1, attention(1, 1, 5, rope_share=0), None)])
    assert cache_bytes(spec, 7, 1, "int4_per_token_head") == 2 * 7 * (3 + 4)


def test_states_are_neither_paged_nor_quantized() -> None:
    """24 layers of 1,536 channels with 16 states and 4 inputs of the convolution, in 16 bits."""
    states = 24 * 1536 * (16 + 4) * 2
    for dtype in ("bf16", "fp8", "int4_per_token_head"):
        use = cache_use(MAMBA_130M, 1000, 3, dtype, block_size=512)
        assert use.ideal_bytes == use.allocated_bytes == use.state_bytes == 3 * states
    # Jamba: 4 layers of attention beside 28 of Mamba.
    use = cache_use(JAMBA, 1001, dtype="fp8")
    assert use.state_bytes == 28 * 8192 * (16 + 4) * 2
    assert use.ideal_bytes == 4 * 2 * 8 * 128 * 1001 + use.state_bytes
    assert use.allocated_bytes == 4 * 2 * 8 * 128 * 1008 + use.state_bytes


def test_keys_and_values_that_layers_share_are_counted_once() -> None:
    own = {"sequence_mixer": attention(8, 2, 16), "channel_mixer": None}
    shares = {"sequence_mixer": attention(8, 2, 16, shares_key_values=True), "channel_mixer": None}
    spec = model("shared", 10, 128, [{"repeats": 3, "layers": [own, shares, shares]}])
    use = cache_use(spec, 100, 2, "int8_per_token_head")
    assert use.ideal_bytes == 3 * 2 * 2 * 100 * (2 * 16 + 2 * 4)
    assert use.allocated_bytes == 3 * 2 * 2 * 112 * (2 * 16 + 2 * 4)


def test_latents_are_paged_and_have_no_heads_to_scale() -> None:
    use = cache_use(DEEPSEEK_V3, 1000, dtype="fp8")
    assert use.ideal_bytes == 61 * (512 + 64) * 1000
    assert use.allocated_bytes == 61 * (512 + 64) * 1008
    with pytest.raises(UnsupportedPlan) as refused:
        cache_bytes(DEEPSEEK_V3, 1000, 1, "int8_per_token_head")
    assert refused.value.path == "cache_dtype"
    assert "fp8" in refused.value.remedy


def test_what_serving_needs_is_what_is_allocated() -> None:
    plan = ServingPlan(context_length=32_768, cache_block_size=32, windowed_pages="context")
    memory = estimate_inference(MISTRAL_7B, plan).memory
    assert memory.cache_bytes == 2 * 32 * 8 * 128 * 32_768 * 2
    assert memory.ideal_cache_bytes == cache_bytes(MISTRAL_7B, 32_768)
    freed = estimate_inference(MISTRAL_7B, plan.model_copy(update={"windowed_pages": "window"})).memory
    assert freed.cache_bytes == 2 * 32 * 8 * 128 * (4096 + 32) * 2
    term = explain(MISTRAL_7B, "allocated_cache", plan)
    assert (term.value, term.status) == (memory.cache_bytes, "modelled")
    assert "Blocks of 32 tokens" in term.source
    assert explain(LLAMA_2_70B, "cache", ServingPlan(cache_dtype="fp8")).source.startswith("Written in fp8 per tensor")


@settings(max_examples=40, deadline=None)
@given(spec=specs(), context=st.integers(1, 60), block=st.integers(1, 20), pages=st.sampled_from(["window", "context"]))
def test_allocated_holds_the_ideal_in_every_design(
    spec: ArchitectureSpec, context: int, block: int, pages: Any
) -> None:
    use = cache_use(spec, context, 2, block_size=block, windowed_pages=pages)
    assert use.ideal_bytes == cache_bytes(spec, context, 2)
    assert use.allocated_bytes >= use.ideal_bytes
    unrounded = cache_use(spec, context, 2, block_size=1, windowed_pages="window")
    assert unrounded.allocated_bytes == use.ideal_bytes
    assert (
        use.allocated_bytes <= cache_use(spec, context, 2, block_size=block, windowed_pages="context").allocated_bytes
    )
    longer = cache_use(spec, context + 1, 2, block_size=block, windowed_pages=pages)
    assert longer.allocated_bytes >= use.allocated_bytes
    for _, _, entry in model_cache(spec, 1):
        if entry.grows:  # positions stand before the channels: what is paged
            assert entry.shape[-2] == 1


def test_the_three_readings_agree() -> None:
    lengths = np.array([1.0, 15.0, 16.0, 4095.0, 4096.0, 4097.0, 9000.0])
    length = sympy.Symbol("T", integer=True, positive=True)
    for dtype in ("bf16", "int4_per_token_head"):
        read = cache_use(GEMMA_2_2B, lengths, 2, dtype).allocated_bytes
        formula = sympy.sympify(cache_use(GEMMA_2_2B, length, 2, dtype).allocated_bytes)
        for index, known in enumerate(lengths):
            number = cache_use(GEMMA_2_2B, int(known), 2, dtype).allocated_bytes
            assert read[index] == number == formula.subs(length, int(known))


@pytest.mark.parametrize("field, value", [("cache_block_size", 0), ("windowed_pages", "none")])
def test_a_wrong_field_of_the_plan_is_named(field: str, value: Any) -> None:
    from planner import parse_plan

    with pytest.raises(UnsupportedPlan) as refused:
        parse_plan(ServingPlan, {field: value})
    assert refused.value.path == field
