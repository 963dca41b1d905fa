"""MLPs and mixtures against plain formulas in float64, token by token, and activations against transformers' own."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from transformers.activations import ACT2FN, XIELUActivation
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

import planner.components as components
from planner import parse_spec
from planner.components.mlp import Pointwise
from planner.errors import InvalidSpec
from planner.interop.base import ACTIVATIONS
from runners.models.context import BuildContext
from runners.models.mlp import MLP, activate, activated, gated
from runners.models.moe import MoE
from tests.runners.models.specs import HIDDEN, mlps, moes

DRAWN = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
CONTEXT = BuildContext(HIDDEN, components.RMSNorm(), None, "eager")


def filled(module: torch.nn.Module) -> Any:
    """The module in float64 with every parameter and buffer drawn, biases too."""
    module = module.double()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.normal_(0.0, 0.5)
    return module


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str) -> None:
    """And their gradients; the approximations of one formula differ by rounding alone."""
    x = torch.linspace(-12, 12, 481, dtype=torch.float64).requires_grad_()
    ours, theirs = activated(x, ACTIVATIONS[name], "eager"), ACT2FN[name](x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    weights = torch.arange(1.0, 482.0, dtype=torch.float64)
    (found,) = torch.autograd.grad((ours * weights).sum(), x)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_every_activation_of_transformers_without_parameters_is_known() -> None:
    assert set(ACT2FN) - set(ACTIVATIONS) == {"prelu", "xielu"}  # both learn how steep they are
    assert set(ACTIVATIONS.values()) == set(get_args(Pointwise))


def xielu_of_transformers(mlp: MLP) -> XIELUActivation:
    """Theirs with the parameters of ours."""
    theirs = XIELUActivation(dtype=torch.float64)
    assert mlp.xielu is not None
    theirs.load_state_dict(mlp.xielu.state_dict(), strict=False)
    return theirs


def test_xielu_and_its_gradients_are_those_of_transformers() -> None:
    """Of its input and of both parameters, drawn and as they are before training."""
    mlp = MLP(components.MLP(intermediate_size=4, gated=False, activation="xielu"), CONTEXT).double()
    assert mlp.xielu is not None
    fresh = XIELUActivation(dtype=torch.float64)
    torch.testing.assert_close(mlp.xielu.alpha_p, fresh.alpha_p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mlp.xielu.alpha_n, fresh.alpha_n, rtol=1e-6, atol=1e-6)
    torch.manual_seed(0)
    ours, theirs = filled(mlp).xielu, xielu_of_transformers(mlp)
    x = torch.linspace(-12, 12, 481, dtype=torch.float64).requires_grad_()
    weights = torch.arange(1.0, 482.0, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    found = torch.autograd.grad((ours(x) * weights).sum(), (x, ours.alpha_p, ours.alpha_n))
    expected = torch.autograd.grad((theirs(x) * weights).sum(), (x, theirs.alpha_p, theirs.alpha_n))
    torch.testing.assert_close(found, expected)


def test_xielu_stands_without_a_gate() -> None:
    with pytest.raises(ValueError, match="without a gate"):
        components.MLP(intermediate_size=4, activation="xielu")


def test_the_clamped_swiglu_is_that_of_gpt_oss() -> None:
    """Whose gate and up projection stand in turn."""
    torch.manual_seed(0)
    parts = (5 * torch.randn(40, 12, dtype=torch.float64)).requires_grad_()
    experts = GptOssExperts(GptOssConfig(num_local_experts=1, hidden_size=4, intermediate_size=6))
    expected = experts._apply_gate(parts)
    for kernels in ("eager", "reference"):
        found = gated(parts[:, 0::2], parts[:, 1::2], "clamped_swiglu", kernels)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(made.square().sum(), parts)[0] for made in (found, experts._apply_gate(parts))]
        torch.testing.assert_close(gradients[0], gradients[1])
    assert (parts.abs() > 7).any()
    assert expected.std() > 1


@pytest.mark.parametrize("part", [{"kind": "mlp"}, {"kind": "moe", "num_experts": 2, "num_experts_per_tok": 1}])
def test_a_gated_activation_needs_a_gate(part: dict[str, Any]) -> None:
    mixer = {**part, "intermediate_size": 8, "gated": False, "activation": "clamped_swiglu"}
    spec = {"vocab_size": 8, "hidden_size": 8, "layer_groups": [{"layers": [{"channel_mixer": mixer}]}]}
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(spec)
    assert refused.value.path == "layer_groups[0].layers[0].channel_mixer.activation"


def between(activation: str, widened: Tensor, up: Tensor | None) -> Tensor:
    """What stands between the projections, written out."""
    if up is None:
        return activate(widened, activation)
    if activation == "clamped_swiglu":
        gate, up = torch.minimum(widened, torch.tensor(7.0)), torch.maximum(up, torch.tensor(-7.0))
        return gate / (1 + torch.exp(-1.702 * gate)) * (torch.minimum(up, torch.tensor(7.0)) + 1)
    return activate(widened, activation) * up


@given(mlps())
@DRAWN
def test_an_mlp_is_its_formula(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mlp = filled(MLP(components.MLP(**fields), CONTEXT))
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)

    def project(name: str, rows: Tensor) -> Tensor:
        layer = getattr(mlp, name)
        return rows @ layer.weight.T + (layer.bias if fields["bias"] else 0.0)

    up = project("up_proj", x)
    if fields["activation"] == "xielu":
        mixed = xielu_of_transformers(mlp)(up)
    else:
        gate = project("gate_proj", x) * (fields["gate_multiplier"] or 1.0) if fields["gated"] else up
        mixed = between(fields["activation"], gate, up if fields["gated"] else None)
    if fields["sub_norm"]:
        mixed = mlp.sub_norm.weight * mixed / torch.sqrt((mixed**2).mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(mlp(x), project("down_proj", mixed) * (fields["output_multiplier"] or 1.0))


@given(moes())
@DRAWN
@torch.no_grad()
def test_a_mixture_is_a_loop_over_tokens_and_experts(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    moe = filled(MoE(components.MoE(**fields), CONTEXT))
    rows = torch.randn(7, HIDDEN, dtype=torch.float64)
    named = dict(moe.named_parameters())
    expected = torch.stack([one_token(fields, named, dict(moe.named_buffers()), row) for row in rows])
    torch.testing.assert_close(moe(rows[None])[0], expected)


def one_token(fields: dict[str, Any], named: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
    """One token, (hidden_size,), through the experts that it chooses, one after the other."""

    def project(name: str, vector: Tensor) -> Tensor:
        return named[f"{name}.weight"] @ vector + named.get(f"{name}.bias", 0.0)

    logits = project("router", x)
    scores = logits.exp() / logits.exp().sum() if fields["router_scores"] == "softmax" else 1 / (1 + torch.exp(-logits))
    steering = scores + (named | buffers).get("router.score_correction_bias", 0.0)
    groups = fields["num_expert_groups"]
    size = fields["num_experts"] // groups
    members = [steering[group * size : (group + 1) * size].sort(descending=True).values for group in range(groups)]
    best = [float(found[0] if fields["group_score"] == "max" else found[:2].sum()) for found in members]
    allowed = sorted(range(groups), key=lambda group: -best[group])[: fields["groups_per_tok"]]
    open_to_it = [expert for expert in range(fields["num_experts"]) if groups == 1 or expert // size in allowed]
    chosen = sorted(open_to_it, key=lambda expert: -float(steering[expert]))[: fields["num_experts_per_tok"]]
    total = sum(scores[expert] for expert in chosen) if fields["normalize_weights"] else 1.0

    entering = project("latent_in", x) if fields["latent_size"] else x
    mixed = torch.zeros_like(entering)
    for expert in chosen:
        weight = scores[expert] / total
        vector = entering * weight if fields["weights_on_input"] else entering
        name = "experts.gate_up_proj" if fields["gated"] else "experts.up_proj"
        widened = named[name][expert] @ vector
        down = named["experts.down_proj"][expert]
        if fields["expert_bias"]:
            widened = widened + named[f"{name}_bias"][expert]
        first, second = widened.chunk(2) if fields["gated"] else (widened, None)
        output = down @ between(fields["activation"], first, second)
        if fields["expert_bias"]:
            output = output + named["experts.down_proj_bias"][expert]
        mixed = mixed + (output if fields["weights_on_input"] else output * weight)
    result = project("latent_out", mixed) if fields["latent_size"] else mixed
    if fields["shared_intermediate_size"]:
        up = project("shared_expert.up_proj", x)
        gate = project("shared_expert.gate_proj", x) if fields["gated"] else up
        shared = project(
            "shared_expert.down_proj", between(fields["activation"], gate, up if fields["gated"] else None)
        )
        if fields["shared_expert_gate"]:
            shared = shared / (1 + torch.exp(-project("shared_expert_gate", x)))
        result = result + shared * fields["shared_scaling_factor"]
    return result


def test_weights_of_softmax_scores_are_a_softmax_over_the_chosen() -> None:
    """So one specification says it both ways: Mixtral normalizes, GPT-OSS takes a softmax of the chosen logits."""
    torch.manual_seed(0)
    moe = filled(
        MoE(components.MoE(num_experts=6, num_experts_per_tok=3, intermediate_size=8, router_bias=True), CONTEXT)
    )
    rows = torch.randn(9, HIDDEN, dtype=torch.float64)
    chosen, weights, _ = moe.router(rows)
    best, experts = F.linear(rows, moe.router.weight, moe.router.bias).topk(3)
    assert torch.equal(chosen, experts)
    torch.testing.assert_close(weights, best.softmax(-1))
