"""Scaling down: the budget is kept and used, and the structure stays."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner import ArchitectureSpec, UnsupportedPlan, parse_spec, scale_down, size
from planner.components import MLP, Attention, LatentAttention, Mamba2, MoE
from tests.planner.published import DEEPSEEK_V3, GEMMA_2_2B, JAMBA, LLAMA_2_7B, LLAMA_2_70B, PUBLISHED
from tests.planner.strategies import specs

BUDGETS = [200_000, 1_000_000, 2_000_000, 20_000_000]


def assert_same_structure(before: ArchitectureSpec, after: ArchitectureSpec) -> None:
    """Kinds, pattern, flags and ratios of every layer."""
    assert len(before.layer_groups) == len(after.layer_groups)
    assert (before.tie_word_embeddings, before.norm) == (after.tie_word_embeddings, after.norm)
    for old_group, new_group in zip(before.layer_groups, after.layer_groups, strict=True):
        assert 1 <= new_group.repeats <= old_group.repeats
        for old, new in zip(old_group.layers, new_group.layers, strict=True):
            assert old.norm_placement == new.norm_placement
            assert type(old.sequence_mixer) is type(new.sequence_mixer)
            assert type(old.channel_mixer) is type(new.channel_mixer)
            if isinstance(old.sequence_mixer, Attention) and isinstance(new.sequence_mixer, Attention):
                ratio = old.sequence_mixer.num_attention_heads // old.sequence_mixer.num_key_value_heads
                assert new.sequence_mixer.num_attention_heads == ratio * new.sequence_mixer.num_key_value_heads
                assert new.sequence_mixer.head_dim % 8 == 0
                assert (old.sequence_mixer.sliding_window is None) == (new.sequence_mixer.sliding_window is None)
                assert old.sequence_mixer.query_key_norm == new.sequence_mixer.query_key_norm
            if isinstance(new.sequence_mixer, LatentAttention):
                assert new.sequence_mixer.qk_nope_head_dim % 8 == 0
            if isinstance(new.sequence_mixer, Mamba2):
                assert new.sequence_mixer.head_dim % 8 == 0
            if isinstance(old.channel_mixer, MoE) and isinstance(new.channel_mixer, MoE):
                assert new.channel_mixer.num_experts_per_tok == old.channel_mixer.num_experts_per_tok
                assert new.channel_mixer.num_experts <= old.channel_mixer.num_experts


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_fill_their_budget(name: str, budget: int) -> None:
    spec, _ = PUBLISHED[name]
    scaled = scale_down(spec, budget)
    total = size(scaled.spec).parameters.total
    assert total == scaled.parameters
    assert 0.85 * budget <= total <= budget
    assert scaled.spec.vocab_size == 256
    assert_same_structure(spec, scaled.spec)
    assert scale_down(spec, budget) == scaled


@settings(max_examples=25, deadline=None)
@given(spec=specs(), share=st.floats(0.0, 1.0))
def test_drawn_designs_fill_their_budget(spec: ArchitectureSpec, share: float) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        scale_down(spec, 1)
    least = int(caught.value.remedy.split()[-1].rstrip(".").replace(",", ""))
    most = size(spec.model_copy(update={"vocab_size": 256})).parameters.total
    assume(least < most)
    budget = round(least * (most / least) ** share)
    scaled = scale_down(spec, budget)
    assert scaled.parameters <= budget
    assert_same_structure(spec, scaled.spec)
    assert scale_down(spec, least).parameters <= least
    # Near the least, and below the smallest budget that a plan may have, a step of two channels may be too coarse.
    if budget >= max(1.5 * least, 50_000) and scaled.parameters < 0.85 * budget:
        # Patterns are never cut, so what is left over must be less than one more of any; and the stream is as wide as
        # it may be, or so narrow that two more channels are a large step.
        small = scaled.spec
        for index, (group, whole) in enumerate(zip(small.layer_groups, spec.layer_groups, strict=True)):
            if group.repeats < whole.repeats:
                deeper = group.model_copy(update={"repeats": group.repeats + 1})
                groups = (*small.layer_groups[:index], deeper, *small.layer_groups[index + 1 :])
                one_more = small.model_copy(update={"layer_groups": groups})
                assert size(one_more).parameters.total > budget
        assert small.hidden_size > spec.hidden_size - 2 or small.hidden_size < 32


def test_ratios_of_llama_stay() -> None:
    small = scale_down(LLAMA_2_70B, 5_000_000).spec
    mixer, channel = small.layer_groups[0].layers[0].sequence_mixer, small.layer_groups[0].layers[0].channel_mixer
    assert isinstance(mixer, Attention)
    assert isinstance(channel, MLP)
    assert mixer.num_attention_heads == 8 * mixer.num_key_value_heads
    assert channel.intermediate_size / small.hidden_size == pytest.approx(28_672 / 8192, rel=0.1)


def test_windows_keep_their_share_of_the_context() -> None:
    """Half of the 8,192 tokens that Gemma 2 reads is half of the prototype's 256."""
    small = scale_down(GEMMA_2_2B, 2_000_000, sequence_length=256).spec
    mixer = small.layer_groups[0].layers[0].sequence_mixer
    assert isinstance(mixer, Attention)
    assert mixer.sliding_window == 128
    assert small.embedding_scale == pytest.approx(math.sqrt(small.hidden_size))


def test_a_pattern_is_never_cut() -> None:
    small = scale_down(JAMBA, 1_000_000).spec
    assert small.num_layers % 8 == 0


def test_experts_are_given_up_only_where_the_budget_is_small() -> None:
    def experts(budget: int) -> int:
        channel = scale_down(DEEPSEEK_V3, budget).spec.layer_groups[1].layers[0].channel_mixer
        assert isinstance(channel, MoE)
        return channel.num_experts

    assert experts(500_000_000) == 256
    assert 16 <= experts(500_000) < 256


def test_a_budget_that_is_too_small_names_the_least() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        scale_down(JAMBA, 50_000)
    assert caught.value.path == "parameter_budget"
    least = int(caught.value.remedy.split()[-1].rstrip(".").replace(",", ""))
    assert scale_down(JAMBA, least).parameters == least


def test_every_change_is_said() -> None:
    rules = scale_down(LLAMA_2_7B, 2_000_000).rules
    changed = {rule.split(":")[0].rsplit(".", 1)[-1] for rule in rules}
    assert {"vocab_size", "hidden_size", "repeats", "num_attention_heads", "head_dim", "intermediate_size"} <= changed
    assert all("→" in rule and rule.endswith(")") for rule in rules)


def test_a_model_that_fits_is_left_alone_but_for_its_vocabulary() -> None:
    scaled = scale_down(LLAMA_2_7B, 10**12)
    assert scaled.spec.model_copy(update={"vocab_size": 32_000, "name": LLAMA_2_7B.name}) == LLAMA_2_7B
    assert len(scaled.rules) == 1


def test_factors_of_single_frequencies_shrink_with_the_head() -> None:
    """LongRoPE has one factor a pair of rotated channels, so a smaller head has fewer, from end to end."""
    factors = [1.0 + index / 10 for index in range(32)]
    scaling = {
        "kind": "longrope",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0] * 32,
        "long_factor": factors,
    }
    mixer = {"kind": "attention", "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64}
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 8192}}
    spec = parse_spec(
        {
            "vocab_size": 32_064,
            "hidden_size": 2048,
            "positions": {"kind": "rotary", "scaling": scaling},
            "layer_groups": [{"repeats": 32, "layers": [layer]}],
        }
    )
    small = scale_down(spec, 1_000_000)
    head_dim = small.spec.layer_groups[0].layers[0].sequence_mixer.head_dim  # type: ignore[union-attr]
    kept = small.spec.positions.scaling.long_factor  # type: ignore[union-attr]
    assert len(kept) == head_dim // 2 < 32
    assert set(kept) <= set(factors)
    assert list(kept) == sorted(kept)
    assert kept[0] < 1.5
    assert kept[-1] > 3.5
    assert any("long_factor: 32 values" in rule for rule in small.rules)
