"""Every component and every known variety of one is in some drawn model, which learns from a step and generates.

The other tests over drawn models reach a component by being drawn often; this one names those that would be missed. A
component that is new in the planner's unions and in no strategy fails here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample

from planner import ArchitectureSpec
from planner.components import (
    MLP,
    Attention,
    ChannelMixer,
    Component,
    LatentAttention,
    MoE,
    Norm,
    SequenceMixer,
    kinds_of,
)
from planner.components.rotary import LinearScaling, Llama3Scaling, YarnScaling
from planner.spec import AlibiPositions, LearnedPositions, RotaryPositions
from runners.models import build
from tests.runners.models.specs import specs

DRAWN, MOST = 300, 3000
"""Models that are drawn once for all varieties, and at most for one that is rare among them."""
LOWERED = 1e-6
KINDS = [kind for union in (SequenceMixer, ChannelMixer, Norm) for kind in kinds_of(union)]


ALIKE = settings(
    derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
"""The same models in every run."""


@functools.cache
def drawn() -> list[ArchitectureSpec]:
    """Some models."""
    found: list[ArchitectureSpec] = []

    @given(specs())
    @settings(ALIKE, max_examples=DRAWN)
    def collect(spec: ArchitectureSpec) -> None:
        found.append(spec)

    collect()
    return found


def parts_of(spec: ArchitectureSpec) -> Iterator[Component]:
    """The norm, the mixers of every layer, and those that others bring together."""
    yield spec.norm
    for _, layer in spec.iterate_layers():
        for mixer in (layer.sequence_mixer, layer.channel_mixer):
            if mixer is not None:
                yield mixer
                yield from (part for _, part in mixer.parts())


def some(kind: type[Component], test: Callable[..., bool]) -> Callable[[ArchitectureSpec], bool]:
    """Whether a model has a part of this kind that passes."""
    return lambda spec: any(isinstance(part, kind) and test(part) for part in parts_of(spec))


def turned(scaling: type | None, shares: tuple[float, ...] = (0.5, 1.0)) -> Callable[[ArchitectureSpec], bool]:
    """Whether a model has attention that rotates one of these shares of its channels, so stretched."""
    return lambda spec: (
        isinstance(spec.positions, RotaryPositions)
        and (spec.positions.scaling is None if scaling is None else isinstance(spec.positions.scaling, scaling))
        and some(Attention, lambda attention: attention.rope_share in shares)(spec)
    )


def placed(placement: str) -> Callable[[ArchitectureSpec], bool]:
    """Whether some layer has its norms there."""
    return lambda spec: any(layer.norm_placement == placement for _, layer in spec.iterate_layers())


def of_kind(kind: str) -> Callable[[ArchitectureSpec], bool]:
    return lambda spec: any(getattr(part, "kind", None) == kind for part in parts_of(spec))


def attends(test: Callable[[Attention], bool]) -> Callable[[ArchitectureSpec], bool]:
    return some(Attention, test)


def gives(activation: str, gated: bool) -> Callable[[ArchitectureSpec], bool]:
    return some(MLP, lambda mlp: mlp.activation == activation and mlp.gated is gated)


VARIETIES: dict[str, Callable[[ArchitectureSpec], bool]] = {
    **{kind: of_kind(kind) for kind in KINDS},
    "multi-head": attends(lambda part: part.num_key_value_heads == part.num_attention_heads > 1),
    "grouped-query": attends(lambda part: 1 < part.num_key_value_heads < part.num_attention_heads),
    "multi-query": attends(lambda part: part.num_key_value_heads == 1 < part.num_attention_heads),
    "norms of queries and keys": attends(lambda part: part.query_key_norm is not None),
    "biases of queries, keys and values": attends(lambda part: part.query_key_value_bias),
    "softcapped scores": attends(lambda part: part.logit_softcap is not None),
    "sinks": attends(lambda part: part.sinks),
    "window": attends(lambda part: part.sliding_window is not None),
    "chunks": attends(lambda part: part.attention_chunk_size is not None),
    "shared keys and values": attends(lambda part: part.shares_key_values),
    "latent queries": some(LatentAttention, lambda part: part.q_lora_rank is not None),
    "direct queries": some(LatentAttention, lambda part: part.q_lora_rank is None),
    "rotation": turned(None, (1.0,)),
    "partial rotation": turned(None, (0.5,)),
    "linear scaling": turned(LinearScaling),
    "yarn": turned(YarnScaling),
    "llama 3's scaling": turned(Llama3Scaling),
    "linear biases": lambda spec: (
        isinstance(spec.positions, AlibiPositions) and any(isinstance(part, Attention) for part in parts_of(spec))
    ),
    "learned positions": lambda spec: isinstance(spec.positions, LearnedPositions),
    **{f"{placement} norms": placed(placement) for placement in ("pre", "post", "sandwich", "after_residual")},
    "gelu": gives("gelu", False),
    "squared relu": gives("relu_squared", False),
    "swiglu": gives("silu", True),
    "geglu": gives("gelu", True),
    "softmax routing": some(MoE, lambda part: part.router_scores == "softmax"),
    "sigmoid routing": some(MoE, lambda part: part.router_scores == "sigmoid"),
    "routing balanced by a bias": some(MoE, lambda part: part.score_correction_bias),
    "groups of experts": some(MoE, lambda part: part.num_expert_groups > part.groups_per_tok),
    "shared expert": some(MoE, lambda part: part.shared_intermediate_size is not None),
    "latent experts": some(MoE, lambda part: part.latent_size is not None),
}


def having(variety: str) -> ArchitectureSpec:
    """The first drawn model of a variety."""
    for spec in drawn():
        if VARIETIES[variety](spec):
            return spec
    try:
        return find(specs(), VARIETIES[variety], settings=settings(ALIKE, max_examples=MOST))
    except NoSuchExample:
        pytest.fail(f"no drawn model has {variety}: see tests/runners/models/specs.py")


@functools.cache
def outcome(spec: ArchitectureSpec) -> tuple[float, bool]:
    """Of a model in float64: by how much a step lowers its loss, and whether it generates alike without a cache.

    The step goes down the gradient, as far as lowers the loss by ``LOWERED`` where gradients are right.
    """
    model = build(spec, dtype=torch.float64, seed=1)
    tokens = torch.randint(0, spec.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    before = model(tokens, labels=tokens).loss
    assert before is not None
    before.backward()
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    square = sum(float(parameter.grad.square().sum()) for parameter in moved if parameter.grad is not None)
    torch.optim.SGD(moved, lr=LOWERED / square).step()
    with torch.no_grad():
        after = model(tokens, labels=tokens).loss
    assert after is not None
    prompt = tokens[:, :5]
    same = torch.equal(model.generate(prompt, 8), model.generate(prompt, 8, use_cache=False))
    return before.item() - after.item(), same


@pytest.mark.slow
@pytest.mark.parametrize("variety", VARIETIES)
def test_every_variety_is_drawn_and_learns_and_generates_alike_with_and_without_a_cache(variety: str) -> None:
    lowered, same = outcome(having(variety))
    assert lowered == pytest.approx(LOWERED, rel=0.01)
    assert same
