"""Latent attention that goes on from a cache: absorbed where that is cheaper, and in both forms the same attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import planner.components as components
from planner import ArchitectureSpec, ServingPlan, parse_spec
from planner.serving.operators import operators
from runners.models import build
from runners.models.context import BuildContext, Kernels
from runners.models.latent_attention import LatentAttention
from tests.runners.models.specs import latent_attentions

HIDDEN = 16
WIDE = {
    "kind": "latent_attention",
    "num_attention_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}


def module(fields: dict[str, Any], kernels: Kernels) -> LatentAttention:
    """In float64, with every parameter drawn, so that none is neutral."""
    context = BuildContext(HIDDEN, components.RMSNorm(), 100.0, kernels)
    made = LatentAttention(components.LatentAttention.model_validate(fields), context).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return made


def in_pieces(attention: LatentAttention, x: Tensor, lengths: list[int]) -> Tensor:
    cache = attention.new_cache(x.shape[0], x.shape[1], x.device, x.dtype)
    found, start = [], 0
    for part in x.split(lengths, 1):
        found.append(attention(part, cache, start))
        start += part.shape[1]
    return torch.cat(found, 1)


@given(fields=latent_attentions(True), kernels=st.sampled_from(["eager", "reference"]))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_pieces_of_every_length_give_what_the_whole_gives(fields: dict[str, Any], kernels: Kernels) -> None:
    """The whole is never absorbed; of the pieces after the first, those are that read many positions."""
    attention = module(fields, kernels)
    x = torch.randn(2, 29, HIDDEN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    whole = attention(x)
    for lengths in ([1] * 29, [20, 1, 3, 1, 4], [2, 26, 1]):
        torch.testing.assert_close(in_pieces(attention, x, lengths), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernels", ["eager", "reference"])
@pytest.mark.parametrize("length, absorbed", [(1, True), (2, True), (7, True), (9, False), (30, False)])
def test_few_positions_are_absorbed_and_a_long_piece_is_expanded(
    length: int, absorbed: bool, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, of t positions against s = 60 + t: 4·2·(t·s·(2·32 + 4) + t·14·32) or 4·2·(t·s·(14 + 4) + s·14·32)."""
    costs = [length * (60 + length) * 68 + length * 448, length * (60 + length) * 18 + (60 + length) * 448]
    assert (costs[0] < costs[1]) is absorbed
    attention = module(WIDE, kernels)
    taken: list[str] = []
    for name in ("_absorbed", "_expanded"):
        plain = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *parts, n=name, f=plain: (taken.append(n), f(*parts))[1])
    x = torch.randn(1, 60 + length, HIDDEN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = in_pieces(attention, x, [60, length])
    assert taken == ["_expanded", "_absorbed" if absorbed else "_expanded"]
    torch.testing.assert_close(found, attention(x), rtol=1e-10, atol=1e-10)


def spec_of(mixer: dict[str, Any]) -> ArchitectureSpec:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 24}}
    return parse_spec({"vocab_size": 30, "hidden_size": HIDDEN, "layer_groups": [{"repeats": 2, "layers": [layer]}]})


@pytest.mark.parametrize("context", [2, 17, 64])
@pytest.mark.parametrize("change", [{}, {"q_lora_rank": 6}, {"kv_lora_rank": 8}], ids=str)
def test_a_decoding_step_takes_the_flops_that_its_operators_have(change: dict[str, Any], context: int) -> None:
    """Nothing is expanded for the cached positions: FlopCounterMode counts what the roofline is drawn with."""
    spec = spec_of({**WIDE, **change})
    model = build(spec, kernels="reference")
    tokens = torch.zeros(3, context, dtype=torch.long)
    cache = model.new_cache(3, context)
    with torch.no_grad():
        model(tokens[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, -1:], cache=cache)
    predicted = operators(spec, ServingPlan(), "decode", context, 3)
    assert counter.get_total_flops() == sum(each.flops for each in predicted)
