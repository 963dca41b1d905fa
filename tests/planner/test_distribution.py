"""Distribution over tensors, components and layers: it adds up, and one layer is counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from planner import ArchitectureSpec, ServingPlan, TrainingPlan, cache_bytes, flops, load, size
from planner.distribution import MEASURES, by_component, by_layer, by_tensor
from tests.planner.strategies import specs

SERVING = ServingPlan(context_length=96, batch_size=2)
TRAINING = TrainingPlan(sequence_length=48)


@settings(max_examples=40, deadline=None)
@given(spec=specs())
def test_everything_adds_up_to_the_totals(spec: ArchitectureSpec) -> None:
    counts = size(spec).parameters
    tensors = by_tensor(spec)
    assert sum(each.count for each in tensors) == counts.total
    assert sum(each.active for each in tensors) == counts.active
    parts = by_component(spec)
    assert {each.component: each.count for each in parts} == counts.by_component
    assert sum(each.share for each in parts) == pytest.approx(1)
    assert sum(each.active_share for each in parts) == pytest.approx(1)
    for measure in MEASURES:
        layers = by_layer(spec, measure, SERVING, TRAINING)
        assert len(layers) == spec.num_layers
        inside = sum(each.sequence_mixer + each.channel_mixer + each.norms for each in layers)
        if measure == "cache_bytes":
            assert inside == cache_bytes(spec, 96, 2)
        elif measure == "flops":
            assert inside <= flops(spec, 48, 2).total
        else:
            assert inside <= counts.total


def test_the_layers_of_a_hybrid_are_counted_by_hand_and_in_order() -> None:
    spec = load("jamba-v0.1")
    layers = by_layer(spec, "parameters", SERVING, TRAINING)
    # Attention stands at layer 4 of each eight: 32 query and 8 KV heads of 128; experts in every second layer.
    assert [each.index for each in layers if each.sequence_mixer == 2 * 4096 * 128 * (32 + 8)] == [4, 12, 20, 28]
    experts = 16 * 4096 + 16 * 3 * 4096 * 14336
    assert [each.index for each in layers if each.channel_mixer == experts] == list(range(1, 32, 2))
    assert all(each.norms == 2 * 4096 for each in layers)


def test_the_experts_of_a_mixture_are_active_in_part() -> None:
    found = {(each.component, each.name): each for each in by_tensor(load("mixtral-8x7b"))}
    down = found[("moe", "experts.down_proj")]
    assert (down.count, down.active) == (32 * 8 * 4096 * 14336, 32 * 2 * 4096 * 14336)
    assert found[("moe", "router.weight")].active == 32 * 8 * 4096
