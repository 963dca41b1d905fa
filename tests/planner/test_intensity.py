"""Intensity by operator and the attention-to-MLP crossover, against sums done by hand and in all three readings."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner import ArchitectureSpec, ServingPlan, UnsupportedPlan, flops, hardware, load, parse_spec
from planner.components import MoE
from planner.intensity import (
    attention_flops,
    bounds,
    channel_flops,
    crossover,
    crossover_counted,
    ridge_point,
)
from planner.matrices import matrix_flops
from planner.serving.operators import PHASES, Operator, Phase, merged, operators
from planner.symbolic import substitute, symbolic
from tests.planner.strategies import CHUNKED, specs

ATTENTION = {"kind": "attention", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
MLP = {"kind": "mlp", "intermediate_size": 512, "gated": False}


def model(mixer: dict[str, Any] | None = None, channel: dict[str, Any] | None = None) -> ArchitectureSpec:
    layer = {"sequence_mixer": mixer or ATTENTION, "channel_mixer": channel or MLP}
    return parse_spec({"vocab_size": 1000, "hidden_size": 128, "layer_groups": [{"repeats": 3, "layers": [layer]}]})


def by_name(spec: ArchitectureSpec, phase: Phase, **plan: Any) -> dict[str, Operator]:
    return {each.name: each for each in operators(spec, ServingPlan(**plan), phase)}


def test_a_projection_that_reads_a_prompt_is_counted_by_hand() -> None:
    found = by_name(model(), "prefill", context_length=50, batch_size=2)["k_proj"]
    assert found.flops == 3 * 2 * 100 * 128 * 32
    assert found.moved_bytes == 3 * 2 * (128 * 32 + 100 * (128 + 32))
    assert found.intensity == found.flops / found.moved_bytes


def test_attention_that_decodes_reads_its_cache_once_and_groups_share_it() -> None:
    found = by_name(model(), "decode", context_length=1000, batch_size=4)["mixing"]
    # Scores and weighted values of 8 heads of 16 against 1,000 keys, in 3 layers of 4 sequences.
    assert found.flops == 3 * 4 * (2 * 2 * 8 * 16 * 1000)
    assert found.cache_bytes == 3 * 4 * (2 * 2 * 16 * 1000) * 2
    assert found.activation_bytes == 3 * 4 * (8 + 2 + 2 + 8) * 16 * 2
    # Four query heads a KV head: as many FLOPs a byte, less what queries and results move.
    assert found.intensity == pytest.approx(4, rel=0.01)


def test_a_window_bounds_what_decoding_reads() -> None:
    found = by_name(model({**ATTENTION, "sliding_window": 64}), "decode", context_length=1000)["mixing"]
    assert found.flops == 3 * 2 * 2 * 8 * 16 * 64
    assert found.cache_bytes == 3 * 2 * 2 * 16 * 64 * 2


def test_latent_attention_decodes_in_the_latent_space() -> None:
    latent = {
        "kind": "latent_attention",
        "num_attention_heads": 8,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    }
    found = by_name(model(latent), "decode", context_length=500, cache_dtype="fp8")
    assert found["mixing"].flops == 3 * 500 * 8 * (2 * (64 + 8) + 2 * 64)
    assert found["mixing"].cache_bytes == 3 * 500 * (64 + 8)
    # Each head's 16 channels of the query become 64, and 64 mixed ones 16: one pass over the weights, for one token.
    expansion = found["kv_b_proj"]
    assert expansion.flops == 3 * 2 * 8 * (16 * 64 + 64 * 16)
    assert expansion.weight_bytes == 3 * 2 * 8 * (16 + 16) * 64
    assert expansion.activation_bytes == 3 * 2 * 8 * (16 + 64 + 64 + 16)


def test_experts_are_read_as_often_as_some_token_chooses_them() -> None:
    moe = {"kind": "moe", "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64}
    one = by_name(model(channel=moe), "decode", batch_size=1)["experts.down_proj"]
    assert one.weight_bytes == pytest.approx(3 * 2 * (2 * 64 * 128))
    assert one.flops == 3 * 2 * 2 * 64 * 128
    many = by_name(model(channel=moe), "decode", batch_size=3)["experts.down_proj"]
    # By hand over all ways in which three tokens choose two of eight.
    pairs = list(itertools.combinations(range(8), 2))
    mean = np.mean([len({*a, *b, *c}) for a, b, c in itertools.product(pairs, repeat=3)])
    assert many.weight_bytes == pytest.approx(3 * mean * 64 * 128 * 2)


def test_a_recurrent_state_is_read_and_written_and_is_approximated() -> None:
    mamba = {"kind": "mamba2", "num_heads": 8, "head_dim": 32, "state_size": 16, "conv_kernel": 4, "chunk_size": 32}
    found = by_name(model(mamba), "decode", batch_size=2)["mixing"]
    assert found.status == "approximated"
    assert found.flops == 3 * 2 * 4 * 8 * 32 * 16
    assert found.cache_bytes == 3 * 2 * 2 * (8 * 32 * 16 + (8 * 32 + 2 * 16) * 4) * 2


def test_every_block_of_a_block_diagonal_matrix_moves_channels_of_its_own() -> None:
    found = by_name(model({"kind": "rg_lru", "num_heads": 4, "head_dim": 32}), "decode", batch_size=2)["input_gate"]
    assert found.flops == 3 * 2 * 2 * (4 * 32 * 32)
    assert found.moved_bytes == 3 * 2 * (4 * 32 * 32 + 2 * (128 + 128))


def test_quantized_weights_move_fewer_bytes_and_the_head_stays() -> None:
    plain, small = by_name(model(), "decode"), by_name(model(), "decode", weight_format="int8")
    assert small["up_proj"].weight_bytes == 3 * (128 * 512 + 4 * 512)
    assert small["lm_head"].weight_bytes == plain["lm_head"].weight_bytes == 2 * 1000 * 128


@settings(max_examples=60, deadline=None)
@given(spec=specs(), length=st.integers(1, 200), batch=st.integers(1, 3))
def test_operators_of_a_pass_have_all_of_its_needed_flops(spec: ArchitectureSpec, length: int, batch: int) -> None:
    found = operators(spec, ServingPlan(), "prefill", length, batch)
    assert sum(each.flops for each in found) == flops(spec, length, batch).needed_total
    assert all(each.flops >= 0 for each in found)


@settings(max_examples=80, deadline=None)
@given(spec=specs())
def test_the_matrices_of_every_mixer_are_some_of_its_operations(spec: ArchitectureSpec) -> None:
    """A vector taken for a matrix, or a matrix left out, would leave a sum that no operations have."""
    for _, layer in spec.iterate_layers():
        for mixer in (layer.sequence_mixer, layer.channel_mixer):
            if mixer is None:
                continue
            own = matrix_flops(mixer, spec.hidden_size, 37)
            each = [operation.flops for operation in mixer.operations(spec.hidden_size, 37, 1)]
            reached = {0}
            for count in each:
                reached |= {count + other for other in reached}
            assert own in reached
            if mixer is layer.channel_mixer:
                assert own == sum(each)


@settings(max_examples=25, deadline=None)
@given(spec=specs(most_layers=2), length=st.integers(2, 200), batch=st.integers(1, 3), phase=st.sampled_from(PHASES))
@example(spec=CHUNKED, length=198, batch=1, phase="prefill")
@example(spec=CHUNKED, length=198, batch=1, phase="decode")
def test_numbers_arrays_and_symbols_agree(spec: ArchitectureSpec, length: int, batch: int, phase: Phase) -> None:
    numbers = operators(spec, ServingPlan(), phase, length, batch)
    arrays = operators(
        substitute(spec, lambda path, symbol, value: np.array([float(value)])),
        ServingPlan(),
        phase,
        np.array([float(length)]),
        np.array([float(batch)]),
    )
    T, B = sympy.symbols("T B", integer=True, positive=True)
    made, values = symbolic(spec)
    known = {**values, T: length, B: batch}
    for number, array, symbol in zip(numbers, arrays, operators(made, ServingPlan(), phase, T, B), strict=True):
        for quantity in ("flops", "moved_bytes"):
            value = getattr(number, quantity)
            np.testing.assert_allclose(getattr(array, quantity), value, rtol=1e-12)
            assert float(sympy.sympify(getattr(symbol, quantity)).subs(known)) == pytest.approx(value)


def test_a_plan_that_is_not_modelled_is_refused() -> None:
    with pytest.raises(UnsupportedPlan, match="cache_dtype"):
        operators(model(), ServingPlan(cache_dtype="int3"), "decode")


def test_devices_share_the_work_and_repeat_what_belongs_to_all_heads() -> None:
    """Four devices, two KV heads: each keeps one whole, and two of the eight query heads."""
    one, four = by_name(model(), "decode", batch_size=4), by_name(model(), "decode", batch_size=4, tensor_parallel=4)
    assert four["q_proj"].weight_bytes * 4 == one["q_proj"].weight_bytes
    assert four["up_proj"].flops * 4 == one["up_proj"].flops
    assert four["k_proj"].weight_bytes * 2 == one["k_proj"].weight_bytes
    assert four["mixing"].cache_bytes * 2 == one["mixing"].cache_bytes
    assert four["mixing"].flops * 4 == one["mixing"].flops


def test_routed_experts_see_the_tokens_of_all_devices() -> None:
    """Two groups of one device: half of the experts each, chosen from by all four sequences."""
    moe = {"kind": "moe", "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64}
    plan = {"batch_size": 4, "attention_data_parallel": 2, "expert_parallel": 2}
    one, two = by_name(model(channel=moe), "decode", batch_size=4), by_name(model(channel=moe), "decode", **plan)
    assert two["experts.down_proj"].flops * 2 == one["experts.down_proj"].flops
    assert two["experts.down_proj"].weight_bytes == pytest.approx(one["experts.down_proj"].weight_bytes / 2)
    assert two["q_proj"].weight_bytes == one["q_proj"].weight_bytes
    assert two["mixing"].cache_bytes * 2 == one["mixing"].cache_bytes


def test_a_ridge_point_is_peak_over_bandwidth_and_absent_where_one_is() -> None:
    device = hardware("t4")
    # 65 TFLOP/s of fp16 and 320 GB/s, as the card's data sheet has them.
    assert ridge_point(device, "fp16") == pytest.approx(65e12 / 320e9)
    assert ridge_point(device, "bf16") is None


def test_what_is_memory_bound_and_how_long_it_takes_at_best() -> None:
    device = hardware("h100")
    found = operators(model(), ServingPlan(context_length=64), "decode")
    held = {each.operator.name: each for each in bounds(found, device, "bf16")}
    assert {each.by for each in held.values()} == {"memory"}
    bandwidth = device.memory_bandwidth_bytes_per_second
    assert bandwidth is not None
    assert held["up_proj"].seconds == held["up_proj"].operator.moved_bytes / bandwidth
    assert sum(each.share for each in held.values()) == pytest.approx(1)
    wide = parse_spec({**model().to_dict(), "hidden_size": 8192})
    prompt = {each.operator.name: each for each in bounds(operators(wide, ServingPlan(), "prefill"), device, "bf16")}
    assert prompt["lm_head"].by == "arithmetic"
    assert prompt["lm_head"].seconds == 2 * 4096 * 8192 * 1000 / device.peak_flops["bf16"]
    assert bounds(found, device, "fp4") == []


def test_layers_that_are_alike_stand_together_and_nothing_is_lost() -> None:
    found = operators(load("gemma-2-2b"), ServingPlan(), "decode")
    together = merged(found)
    assert len({(each.component, each.name) for each in together}) == len(together) < len(found)
    for quantity in ("flops", "moved_bytes"):
        assert sum(getattr(each, quantity) for each in together) == sum(getattr(each, quantity) for each in found)


def test_attention_over_a_sequence_by_hand() -> None:
    counted, needed = attention_flops(model(), 10)
    assert counted == 3 * 2 * 2 * 8 * 16 * 100
    assert needed == 3 * 2 * 2 * 8 * 16 * 55
    assert channel_flops(model()) == 3 * 2 * 2 * 128 * 512


def test_the_textbook_crossover_is_four_hidden_sizes_and_masks_double_it() -> None:
    """Scores and values 4·h·T a token against 16·h² of a plain MLP of 4·h; a causal mask leaves 2·h·(T + 1)."""
    found = crossover(model({**ATTENTION, "num_key_value_heads": 8}))
    assert found.counted_tokens == 4 * 128
    assert found.needed_tokens == 8 * 128 - 1


def test_the_crossover_of_llama_2_7b_by_hand() -> None:
    found = crossover(load("llama-2-7b"))
    assert found.counted_tokens == 6 * 4096 * 11008 / (4 * 4096)
    assert found.needed_tokens == 2 * 16512 - 1


def test_at_the_needed_crossover_attention_has_caught_up_and_one_token_before_it_has_not() -> None:
    spec = parse_spec(
        {
            "vocab_size": 1000,
            "hidden_size": 128,
            "layer_groups": [
                {"repeats": 2, "layers": [{"sequence_mixer": {**ATTENTION, "sliding_window": 64}}]},
                {"repeats": 1, "layers": [{"sequence_mixer": ATTENTION, "channel_mixer": MLP}]},
            ],
        }
    )
    length = crossover(spec).needed_tokens
    assert length is not None

    def costs(tokens: int) -> tuple[int, int]:
        windowed = sum(min(position + 1, 64) for position in range(tokens))
        full = sum(position + 1 for position in range(tokens))
        return (2 * windowed + full) * 2 * 2 * 8 * 16, tokens * 2 * 2 * 128 * 512

    attention, channel = costs(length)
    assert attention >= channel
    attention, channel = costs(length - 1)
    assert attention < channel


def test_a_windowed_model_may_never_come_to_it_and_one_without_attention_has_none() -> None:
    windowed = crossover(model({**ATTENTION, "sliding_window": 64}))
    assert windowed.needed_tokens is None
    assert windowed.counted_tokens is not None
    mamba = {"kind": "mamba2", "num_heads": 8, "head_dim": 32, "state_size": 16}
    assert crossover(model(mamba)).counted_tokens is None


def test_the_formula_of_the_crossover_has_all_three_readings() -> None:
    spec = model()
    made, values = symbolic(spec)
    number = crossover_counted(spec)
    assert float(sympy.sympify(crossover_counted(made)).subs(values)) == number
    arrays = substitute(spec, lambda path, symbol, value: np.array([float(value)]))
    np.testing.assert_allclose(crossover_counted(arrays), number)


def test_moe_stands_for_the_experts_that_a_token_goes_to() -> None:
    spec = load("mixtral-8x7b")
    mixer = spec.layer_groups[0].layers[0].channel_mixer
    assert isinstance(mixer, MoE)
    router, experts = 2 * 4096 * 8, 2 * 2 * 3 * 4096 * 14336
    assert crossover(spec).counted_tokens == (router + experts) / (4 * 32 * 128)


def test_projections_of_an_embedding_of_another_width_by_hand() -> None:
    """One token, 128 channels on the stream and 16 in the embedding, 1,000 words; two bytes an element."""
    spec = parse_spec({**model().model_dump(mode="json"), "embedding_size": 16})
    outside = [each for each in operators(spec, ServingPlan(), "decode", 10, 1) if "." not in each.path]
    assert [each.flops for each in outside] == [2 * 16 * 128, 2 * 128 * 16, 2 * 16 * 1000]
    assert [each.activation_bytes for each in outside] == [2 * (16 + 128), 2 * (128 + 16), 2 * (16 + 1000)]
