"""Blocks: the parts add up to the planner's totals, and the multi-head reference is what its name says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from planner import ArchitectureSpec, cache_bytes, flops, parse_spec, size
from planner.blocks import blocks, multi_head_reference
from tests.planner.strategies import specs

ATTENTION = {"kind": "attention", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
WINDOW = {**ATTENTION, "sliding_window": 64}
MAMBA = {"kind": "mamba2", "num_heads": 8, "head_dim": 32, "state_size": 16, "chunk_size": 32}
MOE = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96}
MLP = {"kind": "mlp", "intermediate_size": 256}


def hybrid(**changes: object) -> ArchitectureSpec:
    layers = [
        {"sequence_mixer": MAMBA, "channel_mixer": MOE},
        {"sequence_mixer": WINDOW, "channel_mixer": MLP, "norm_placement": "sandwich"},
    ]
    full = {"sequence_mixer": ATTENTION, "channel_mixer": MLP}
    groups = [{"repeats": 3, "layers": layers}, {"repeats": 2, "layers": [full]}]
    return parse_spec({"vocab_size": 512, "hidden_size": 128, "layer_groups": groups, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"positions": {"kind": "learned", "num_positions": 256}, "lm_head_bias": True},
        {"final_norm": False, "norm": {"kind": "layer_norm"}},
    ],
)
def test_the_parts_add_up_to_the_totals_and_so_do_the_groups(changes: dict[str, object]) -> None:
    spec = hybrid(**changes)
    found = blocks(spec, sequence_length=96, context_length=200, batch_size=3, cache_dtype="fp32")
    holders = [path for path in found if path.endswith("]")]
    parts = [block for path, block in found.items() if path not in holders]
    assert sum(part.parameters for part in parts) == size(spec).parameters.total
    assert sum(part.flops for part in parts) == flops(spec, 96, 3).total
    assert sum(part.cache_bytes for part in parts) == cache_bytes(spec, 200, 3, "fp32")
    assert sum(part.parameters_share for part in parts) == pytest.approx(1)
    for index in range(len(spec.layer_groups)):
        inside = [part for part in parts if part.path.startswith(f"layer_groups[{index}].")]
        assert found[f"layer_groups[{index}]"].parameters == sum(part.parameters for part in inside)


@settings(max_examples=30, deadline=None)
@given(spec=specs())
def test_the_parts_of_drawn_designs_add_up(spec: ArchitectureSpec) -> None:
    found = blocks(spec, sequence_length=33, context_length=70, batch_size=2, cache_dtype="bf16")
    parts = [block for path, block in found.items() if not path.endswith("]")]
    assert sum(part.parameters for part in parts) == size(spec).parameters.total
    assert sum(part.flops for part in parts) == flops(spec, 33, 2).total
    assert sum(part.cache_bytes for part in parts) == cache_bytes(spec, 70, 2, "bf16")
    assert {part for layer in spec.layer_groups[0].layers for part in layer.parts} <= {
        block.path.rpartition(".")[2] for block in parts
    }


def test_one_repeat_of_an_attention_block_is_counted_by_hand() -> None:
    block = blocks(hybrid(), sequence_length=1, context_length=200)["layer_groups[1].layers[0].sequence_mixer"]
    assert block.parameters_each == 2 * 128 * (8 * 16) + 2 * 128 * (2 * 16)
    assert block.parameters == 2 * block.parameters_each
    assert block.cache_bytes_each == 2 * (2 * 16) * 200 * 2


def test_the_reference_has_a_kv_head_for_each_query_head_and_no_window() -> None:
    reference = multi_head_reference(hybrid())
    assert reference is not None
    # Five attention layers of 8 heads of 16 channels, keys and values, two bytes each; Mamba-2's cache is unchanged.
    own = cache_bytes(hybrid(), 64) - 5 * 2 * 2 * 16 * 64 * 2
    assert cache_bytes(reference, 1000) == own + 5 * 2 * 8 * 16 * 1000 * 2


def test_a_model_that_never_attends_has_no_reference() -> None:
    spec = parse_spec(
        {"vocab_size": 512, "hidden_size": 128, "layer_groups": [{"layers": [{"sequence_mixer": MAMBA}]}]}
    )
    assert multi_head_reference(spec) is None
