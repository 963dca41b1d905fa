"""What routers are recorded to decide, and the losses taken of it, against transformers and against plain sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import planner.components as components
from planner import parse_spec
from runners.models import Decoder, build, load_huggingface
from runners.models.moe import Router, Routing, load_balancing_loss, recorded_routing, router_z_loss
from tests.runners.models.specs import HIDDEN, moes

EXPERTS, CHOSEN, LAYERS = 6, 2, 2
MIXTRAL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "initializer_range": 0.4,
    "router_aux_loss_coef": 1.0,
}


def both() -> tuple[MixtralForCausalLM, Decoder]:
    """transformers' model and ours, of the same weights, in float64."""
    torch.manual_seed(0)
    theirs = MixtralForCausalLM(MixtralConfig(**MIXTRAL, experts_implementation="eager")).double()
    config = {**theirs.config.to_dict(), "model_type": "mixtral", "torch_dtype": "float64"}
    return theirs, load_huggingface(theirs.state_dict(), config).double()


def test_the_load_balancing_loss_and_its_gradient_are_mixtrals() -> None:
    """transformers takes the tokens of all layers together, in the same formula, and sums them in fp32."""
    theirs, ours = both()
    tokens = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens, output_router_logits=True, labels=tokens)
    expected.aux_loss.backward()
    with recorded_routing(ours) as routing:
        ours(tokens)
    assert list(routing) == [f"layers.{layer}.channel_mixer" for layer in range(LAYERS)]
    each = list(routing.values())
    together = Routing(
        each[0].component, torch.cat([one.logits for one in each]), torch.cat([one.chosen for one in each])
    )
    loss = load_balancing_loss(together)
    torch.testing.assert_close(loss.float(), expected.aux_loss, rtol=1e-6, atol=0)
    loss.backward()
    gates = [parameter for name, parameter in theirs.named_parameters() if name.endswith("gate.weight")]
    assert len(gates) == LAYERS
    for one, gate in zip(ours.layers, gates, strict=True):
        router: Any = one.get_submodule("channel_mixer.router")
        assert gate.grad is not None
        assert gate.grad.abs().max() > 1e-3
        torch.testing.assert_close(router.weight.grad, gate.grad, rtol=1e-4, atol=1e-7)
    embedding = theirs.get_input_embeddings().weight
    torch.testing.assert_close(ours.embed_tokens.weight.grad, embedding.grad, rtol=1e-4, atol=1e-7)


def test_the_loss_of_one_layer_is_mixtrals_of_its_logits() -> None:
    theirs, ours = both()
    tokens = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(2))
    logits = theirs(tokens, output_router_logits=True).router_logits
    with recorded_routing(ours) as routing:
        ours(tokens)
    for one, theirs_of_layer in zip(routing.values(), logits, strict=True):
        expected = load_balancing_loss_func((theirs_of_layer,), EXPERTS, CHOSEN)
        torch.testing.assert_close(load_balancing_loss(one).float(), expected, rtol=1e-6, atol=0)


@given(fields=moes())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_losses_and_loads_of_every_router_by_the_definitions(fields: dict[str, Any]) -> None:
    """Row by row in NumPy, over the experts that the router itself chose: groups and corrections steer that choice."""
    component = components.MoE.model_validate(fields)
    router = Router(component, HIDDEN).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=generator, dtype=torch.float64))
        if component.score_correction_bias:
            router.score_correction_bias.copy_(torch.randn(component.num_experts, generator=generator))
    rows = torch.randn(7, HIDDEN, generator=generator, dtype=torch.float64)
    chosen, _, logits = router(rows)
    routing = Routing(component, logits, chosen)
    plain = (rows @ router.weight.T).detach().numpy() + (0 if router.bias is None else router.bias.detach().numpy())
    np.testing.assert_allclose(logits.detach(), plain, rtol=1e-12)
    load = [sum(expert in row for row in chosen.tolist()) / 7 for expert in range(component.num_experts)]
    assert routing.load.tolist() == pytest.approx(load)
    shares = np.exp(plain) if component.router_scores == "softmax" else 1 / (1 + np.exp(-plain))
    shares = (shares / shares.sum(1, keepdims=True)).mean(0)
    expected = component.num_experts * sum(f * p for f, p in zip(load, shares, strict=True))
    assert load_balancing_loss(routing).item() == pytest.approx(expected)
    squares = [math.log(sum(math.exp(value) for value in row)) ** 2 for row in plain.tolist()]
    assert router_z_loss(routing).item() == pytest.approx(sum(squares) / 7)


def test_large_logits_have_a_finite_z_loss() -> None:
    component = components.MoE(num_experts=2, num_experts_per_tok=1, intermediate_size=8)
    routing = Routing(component, torch.tensor([[500.0, 500.0]]), torch.tensor([[0]]))
    assert router_z_loss(routing).item() == pytest.approx((500 + math.log(2)) ** 2)


def test_balance_is_where_the_loss_is_least_and_collapse_where_it_is_most() -> None:
    """At even load the loss is the number of experts a token; where all tokens go to one surely, all experts'."""
    component = components.MoE(num_experts=4, num_experts_per_tok=1, intermediate_size=8)
    even = Routing(component, torch.zeros(8, 4), torch.arange(8)[:, None] % 4)
    assert load_balancing_loss(even).item() == pytest.approx(1)
    sure = torch.tensor([[100.0, 0.0, 0.0, 0.0]]).expand(8, 4)
    assert load_balancing_loss(Routing(component, sure, torch.zeros(8, 1, dtype=torch.long))).item() == pytest.approx(4)


def test_recording_changes_nothing_and_ends() -> None:
    moe = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8}
    layers = [{"channel_mixer": {"kind": "mlp", "intermediate_size": 8}}, {"channel_mixer": moe}]
    spec = parse_spec({"vocab_size": 20, "hidden_size": 16, "layer_groups": [{"repeats": 2, "layers": layers}]})
    model = build(spec)

    def read(seed: int) -> Tensor:
        tokens: Tensor = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(seed))
        logits: Tensor = model(tokens).logits
        return logits

    plain = read(0)
    with recorded_routing(model) as routing:
        assert torch.equal(read(0), plain)
        first = dict(routing)
        read(1)
    assert list(routing) == ["layers.1.channel_mixer", "layers.3.channel_mixer"]
    assert routing["layers.1.channel_mixer"] is not first["layers.1.channel_mixer"]
    held = dict(routing)
    read(2)
    assert all(routing[name] is held[name] for name in held)
    with recorded_routing(build(parse_spec({**spec.to_dict(), "layer_groups": [{"layers": layers[:1]}]}))) as nothing:
        assert nothing == {}


@given(moes())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_experts_in_groups_are_the_sum_over_the_chosen_ones(fields: dict[str, Any]) -> None:
    """Where nothing is differentiated rows are put in groups: one token, and several, against plain training code."""
    layers = [{"sequence_mixer": None, "channel_mixer": fields}]
    spec = parse_spec({"vocab_size": 20, "hidden_size": HIDDEN, "layer_groups": [{"layers": layers}]})
    grouped, plain = (
        build(spec, dtype=torch.float64, kernels="eager"),
        build(spec, dtype=torch.float64, kernels="reference"),
    )
    with torch.no_grad():
        for parameter in grouped.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    plain.load_state_dict(grouped.state_dict())
    for tokens in (torch.tensor([[7]]), torch.arange(15).view(3, 5)):
        with torch.no_grad():
            found = grouped(tokens).logits
        torch.testing.assert_close(found, plain(tokens).logits, rtol=1e-10, atol=1e-12)
