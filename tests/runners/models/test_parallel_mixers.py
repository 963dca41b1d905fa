"""Two mixers in parallel: their sum, and the planner's answers, which are those of each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner import (
    InvalidSpec,
    ServingPlan,
    TrainingPlan,
    cache_bytes,
    estimate_training,
    flops,
    parse_spec,
    scale_down,
    size,
)
from planner.blocks import multi_head_reference
from planner.growth import grow
from planner.overview import list_numbers
from planner.serving.operators import PHASES, operators
from runners.models import build
from tests.planner.test_training import measured_peak_bytes

MAMBA = {"kind": "mamba2", "num_heads": 8, "head_dim": 16, "state_size": 16, "chunk_size": 8}
ATTENTION = {"kind": "attention", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
BOTH = {"kind": "parallel_mixers", "first": MAMBA, "second": {**ATTENTION, "sliding_window": 5}}


def model_of(mixer: dict[str, Any], **around: Any) -> dict[str, Any]:
    layer = {"sequence_mixer": mixer}
    return {"vocab_size": 64, "hidden_size": 64, **around, "layer_groups": [{"repeats": 2, "layers": [layer]}]}


def test_the_output_is_the_weighted_sum_of_both() -> None:
    spec = parse_spec(model_of({**BOTH, "first_multiplier": 0.5, "second_multiplier": 3.0}))
    mixer: Any = build(spec, dtype=torch.float64).get_submodule("layers.0.sequence_mixer")
    x = torch.randn(2, 11, 64, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), 0.5 * mixer.first(x) + 3.0 * mixer.second(x), rtol=1e-12, atol=1e-12)


def test_sizes_flops_and_cache_are_those_of_each_alone() -> None:
    """Added up by hand: what stands outside the mixers, embedding, head and norms, is counted once."""
    both, first, second = (parse_spec(model_of(mixer)) for mixer in (BOTH, MAMBA, BOTH["second"]))
    around, head = 2 * 64 * 64 + 3 * 64, 2 * 64 * 64
    alone = [size(spec).parameters for spec in (first, second)]
    assert size(both).parameters.total == sum(part.total - around for part in alone) + around
    assert size(both).parameters.by_component["mamba2"] == alone[0].by_component["mamba2"]
    assert size(both).parameters.by_component["attention"] == alone[1].by_component["attention"]
    assert flops(both, 20).total == flops(first, 20).total + flops(second, 20).total - 20 * head
    assert cache_bytes(both, 20) == cache_bytes(first, 20) + cache_bytes(second, 20)


@pytest.mark.parametrize("phase", PHASES)
def test_the_operators_are_those_of_each_alone(phase: Any) -> None:
    plan = ServingPlan(context_length=64)
    both, first, second = (
        operators(parse_spec(model_of(mixer)), plan, phase) for mixer in (BOTH, MAMBA, BOTH["second"])
    )
    mixing = [sorted((o.flops, o.moved_bytes) for o in found if o.name == "mixing") for found in (both, first, second)]
    assert mixing[0] == sorted(mixing[1] + mixing[2])
    head = [o.flops for o in first if "sequence_mixer" not in o.path]
    assert sum(o.flops for o in both) == sum(o.flops for o in first + second) - sum(head)


def test_what_looks_for_attention_finds_it_beside_another_mixer() -> None:
    spec = parse_spec(model_of(BOTH))
    assert list_numbers(spec, sequence_length=8, context_length=8).windowed
    full = multi_head_reference(spec)
    assert full is not None
    # Every head its own keys and values, 2 · 8 · 16 elements a token and layer in 2 bytes, and no window.
    assert cache_bytes(full, 1000) - cache_bytes(full, 999) == 2 * 8 * 16 * 2 * 2
    assert grow(spec, [1.0, 2.0]).parameters[1] > 3 * grow(spec, [1.0, 2.0]).parameters[0]


def test_a_prototype_scales_each_of_them() -> None:
    small = scale_down(parse_spec(model_of({**BOTH, "second": ATTENTION}, hidden_size=512)), 100_000).spec
    mixer: Any = small.layer_groups[0].layers[0].sequence_mixer
    assert mixer.kind == "parallel_mixers"
    assert mixer.second.num_attention_heads * mixer.second.head_dim < 128
    assert mixer.first.num_heads * mixer.first.head_dim < 128


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_training_memory_is_the_measured_peak(precision: Any) -> None:
    """The backward pass of one comes after the other's: what it makes is not added up."""
    spec = parse_spec(model_of({**BOTH, "second": ATTENTION}))
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=256)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.01)


@pytest.mark.parametrize(
    "change, around, path",
    [
        ({"second": {**ATTENTION, "shares_key_values": True}}, {}, "second.shares_key_values"),
        ({"second": {**ATTENTION, "num_key_value_heads": 3}}, {}, "second.num_key_value_heads"),
        ({"first": BOTH}, {}, "first"),
        ({"first_multiplier": 0.0}, {}, "first_multiplier"),
        (
            {"second": {"kind": "latent_attention", "num_attention_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 8}
             | {"qk_rope_head_dim": 4, "v_head_dim": 8}},
            {"positions": {"kind": "none"}},
            "second.qk_rope_head_dim",
        ),
    ],
)  # fmt: skip
def test_what_cannot_stand_beside_another_is_refused_at_its_field(change: Any, around: Any, path: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(model_of({**BOTH, **change}, **around))
    assert refused.value.problems[0].path.endswith(f"sequence_mixer.{path}"), refused.value.problems
    assert refused.value.remedy
