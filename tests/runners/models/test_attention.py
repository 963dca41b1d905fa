"""Attention with each of its options, against a reference in float64 that is written out pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import planner.components as components
from planner import ArchitectureSpec, cache_bytes, parse_spec
from planner.components.patterns import MaskPattern
from planner.spec import AlibiPositions
from runners.kernels.base import KernelUnsupported
from runners.models import build
from runners.models.attention import Attention
from runners.models.context import BuildContext, Kernels
from runners.models.latent_attention import LatentAttention
from runners.models.scores import attend, linear_slopes
from tests.planner.test_patterns import is_seen
from tests.runners.models.specs import attentions, latent_attentions

HIDDEN, LENGTH = 16, 11
DRAWN = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
PLAIN = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def context(
    kernels: Kernels = "eager",
    theta: float | None = None,
    alibi: AlibiPositions | None = None,
    zero_centered: bool = False,
) -> BuildContext:
    norm = components.RMSNorm(epsilon=1e-5, zero_centered=zero_centered)
    return BuildContext(HIDDEN, norm, theta, kernels, alibi)


def module(component: components.Attention, made: BuildContext, seed: int) -> Attention:
    """The twin in float64 with every parameter drawn, so that none is neutral."""
    generator = torch.Generator().manual_seed(seed)
    attention = Attention(component, made).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return attention


def reference(
    component: components.Attention,
    made: BuildContext,
    weights: dict[str, np.ndarray],
    x: np.ndarray,
    shared: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Attention over one sequence x (positions, hidden) of NumPy arrays, a head and a query at a time; and the keys and
    values, (positions, heads, channels) each."""
    length = x.shape[0]
    heads, key_heads, width = component.num_attention_heads, component.num_key_value_heads, component.head_dim

    def project(name: str, parts: int) -> np.ndarray:
        made_of = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
        return np.asarray(made_of.reshape(length, parts, -1))

    def normalize(name: str, vector: np.ndarray, head: int) -> np.ndarray:
        """``vector``: one head's channels, or with ``projection`` all heads' channels."""
        epsilon = component.query_key_norm_epsilon or made.norm.epsilon
        if component.query_key_norm_kind == "layer_norm":
            vector = vector - vector.mean()
        vector = vector / math.sqrt((vector**2).mean() + epsilon)
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        if component.query_key_norm == "each_head":
            weight = None if weight is None else weight[head]
            bias = None if bias is None else bias[head]
        if weight is not None:
            is_shifted = component.query_key_norm_kind == "rms_norm" and made.norm.zero_centered
            vector = vector * (weight + 1.0 if is_shifted else weight)
        return vector if bias is None else vector + bias

    def normed(name: str, tensor: np.ndarray) -> np.ndarray:
        result = np.empty_like(tensor)
        for position in range(length):
            if component.query_key_norm == "projection":
                flat = normalize(name, tensor[position].reshape(-1), 0)
                result[position] = flat.reshape(tensor.shape[1:])
            else:
                for head in range(tensor.shape[1]):
                    result[position, head] = normalize(name, tensor[position, head], head)
        return result

    def clamped(tensor: np.ndarray) -> np.ndarray:
        bound = component.query_key_value_clip
        return tensor if bound is None else np.minimum(np.maximum(tensor, -bound), bound)

    def rotated(tensor: np.ndarray) -> np.ndarray:
        if made.rope_theta is None:
            return tensor
        result, half = tensor.copy(), round(component.rope_share * width) // 2
        for position in range(length):
            for pair in range(half):
                angle = position * (component.rope_theta or made.rope_theta) ** (-pair / half)
                turn = complex(math.cos(angle), math.sin(angle))
                for head in range(tensor.shape[1]):
                    value = complex(tensor[position, head, pair], tensor[position, head, pair + half]) * turn
                    result[position, head, pair], result[position, head, pair + half] = value.real, value.imag
        return result

    def placed(name: str, parts: int) -> np.ndarray:
        tensor, norm = project(f"{name}_proj", parts), f"{name}_norm"
        if component.query_key_norm is not None and not component.query_key_norm_after_rope:
            tensor = normed(norm, tensor)
        tensor = rotated(clamped(tensor))
        if component.query_key_norm is not None and component.query_key_norm_after_rope:
            tensor = normed(norm, tensor)
        return tensor

    query = placed("q", heads)
    if shared is None:
        shared = placed("k", key_heads), clamped(project("v_proj", key_heads) * (component.value_multiplier or 1.0))
    key, value = shared
    scale = component.softmax_scale or 1 / math.sqrt(width)
    mixed = np.zeros((length, heads, value.shape[-1]))
    for head in range(heads):
        source = head // (heads // key_heads)
        for i in range(length):
            odds = {}
            for j in range(i + 1):
                if not is_seen(component, i, j):
                    continue
                score = scale * float(query[i, head] @ key[j, source])
                if component.logit_softcap is not None:
                    score = component.logit_softcap * math.tanh(score / component.logit_softcap)
                if made.alibi is not None:
                    steepness = SLOPES[heads][head] * (scale if made.alibi.scaled else 1.0)
                    score -= steepness * (i - j)
                odds[j] = math.exp(score)
            total = sum(odds.values()) + (math.exp(weights["sinks"][head]) if component.sinks else 0.0)
            for j, share in odds.items():
                mixed[i, head] += share / total * value[j, source]
    if component.output_gate is not None:
        scores = project("gate_proj", heads)
        is_sigmoid = component.output_gate_activation == "sigmoid"
        mixed = mixed * (1 / (1 + np.exp(-scores)) if is_sigmoid else np.log1p(np.exp(scores)))
    flat = mixed.reshape(length, -1)
    if component.sub_norm:
        flat = flat / np.sqrt((flat**2).mean(-1, keepdims=True) + made.norm.epsilon)
        flat = flat * (weights["sub_norm.weight"] + (1.0 if made.norm.zero_centered else 0.0))
    output = flat @ weights["o_proj.weight"].T + weights.get("o_proj.bias", 0.0)
    return output, (key, value)


SLOPES = {1: [2**-8], 2: [2**-4, 2**-8], 4: [2**-2, 2**-4, 2**-6, 2**-8]}
"""The table of the paper's series for so many heads, by hand."""


def arrays(attention: Attention) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in attention.named_parameters()}


@pytest.mark.parametrize("kernels", ["eager", "reference"])
@given(fields=attentions(), positions=st.sampled_from(["rotary", "alibi", "scaled alibi", "none"]), zero=st.booleans())
@DRAWN
def test_every_option_computes_what_is_written_out(
    kernels: Kernels, fields: dict[str, Any], positions: str, zero: bool
) -> None:
    component = components.Attention.model_validate(fields)
    alibi = AlibiPositions(scaled="scaled" in positions) if "alibi" in positions else None
    made = context(kernels, 100.0 if positions == "rotary" else None, alibi, zero)
    attention = module(component, made, seed=1)
    x = torch.randn(1, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, _ = reference(component, made, arrays(attention), x[0].numpy())
    np.testing.assert_allclose(attention(x)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@given(fields=attentions())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_shared_keys_and_values_are_those_of_the_earlier_layer(fields: dict[str, Any]) -> None:
    owner = components.Attention.model_validate(fields)
    reader = components.Attention.model_validate({**fields, "shares_key_values": True})
    made = context(theta=100.0)
    first, second = module(owner, made, seed=1), module(reader, made, seed=3)
    x, y = torch.randn(2, 1, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    shared: dict[Any, Any] = {}
    first(x, shared=shared)
    _, handed = reference(owner, made, arrays(first), x[0].numpy())
    expected, _ = reference(reader, made, arrays(second), y[0].numpy(), handed)
    np.testing.assert_allclose(second(y, shared=shared)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_sharing_layer_reads_the_nearest_layer_of_its_own_reach() -> None:
    """The third layer has the window of the first: its output changes with the first layer's keys alone."""
    full, windowed = dict(PLAIN), {**PLAIN, "sliding_window": 3}
    mixers = [windowed, full, {**windowed, "shares_key_values": True}, {**full, "shares_key_values": True}]
    spec = parse_spec(
        {
            "vocab_size": 10,
            "hidden_size": HIDDEN,
            "layer_groups": [{"layers": [{"sequence_mixer": mixer} for mixer in mixers]}],
        }
    )
    model = build(spec, dtype=torch.float64)
    seen: dict[int, Any] = {}
    for index, layer in enumerate(model.layers):
        layer.sequence_mixer.register_forward_pre_hook(
            lambda _, inputs, keywords, at=index: seen.__setitem__(at, dict(keywords["shared"])), with_kwargs=True
        )
    model(torch.arange(6)[None])
    assert seen[2].keys() == {MaskPattern(3), MaskPattern()}
    assert seen[3][MaskPattern(3)][0] is seen[2][MaskPattern(3)][0]
    assert cache_bytes(spec, 20, 1, "bf16") == 2 * 2 * 2 * 8 * (3 + 20)  # of two layers, keys and values


@given(heads=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_slopes_are_those_of_published_models(heads: int) -> None:
    """Bloom, MPT and Falcon build the same bias tensor, each in its own way; a slope is the step between neighbours."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as mpt

    ours = torch.tensor(linear_slopes(heads, 8.0))
    seen = torch.ones(1, 2, dtype=torch.long)
    torch.testing.assert_close(bloom(seen, heads, torch.float32)[:, 0].diff()[:, 0], ours)
    torch.testing.assert_close(mpt(heads, 2)[:, 0].diff()[:, 0], ours)
    torch.testing.assert_close(falcon(seen, heads, torch.float32)[:, 0].diff()[:, 0], ours, rtol=2**-8, atol=0)
    steeper = torch.tensor(linear_slopes(heads, 5.0))
    torch.testing.assert_close(mpt(heads, 2, alibi_bias_max=5)[:, 0].diff()[:, 0], steeper)


def test_sinks_are_those_of_gpt_oss() -> None:
    from types import SimpleNamespace

    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    component = components.Attention.model_validate({**PLAIN, "sinks": True})
    attention = module(component, context(), seed=5)
    generator = torch.Generator().manual_seed(6)
    query = torch.randn(2, 4, LENGTH, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, LENGTH, 8, generator=generator, dtype=torch.float64)
    hidden = torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)
    theirs = SimpleNamespace(num_key_value_groups=2, sinks=attention.sinks, training=False)
    expected, _ = eager_attention_forward(theirs, query, key, value, hidden, 8**-0.5)
    found = attend(query, key, value, None, attention.scores, "eager", attention.sinks)
    torch.testing.assert_close(found.transpose(1, 2), expected)


@pytest.mark.parametrize("change", [{"logit_softcap": 5.0}, {"alibi": True}], ids=str)
def test_no_kernel_takes_what_it_does_not_compute(change: dict[str, Any]) -> None:
    """The Triton kernel knows masks and sinks; asked for by name, the rest is left for PyTorch's all the same."""
    alibi = AlibiPositions() if change == {"alibi": True} else None
    component = components.Attention.model_validate({**PLAIN, **({} if alibi else change)})
    x = torch.randn(1, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    made = [module(component, context(kernels, alibi=alibi), seed=8)(x) for kernels in ("triton", "eager")]
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("change", [{}, {"sinks": True}, {"attention_chunk_size": 4}, {"stride": 3}], ids=str)
def test_a_kernel_that_is_asked_for_says_why_it_cannot_be_had(change: dict[str, Any]) -> None:
    component = components.Attention.model_validate({**PLAIN, **change})
    x = torch.randn(1, LENGTH, HIDDEN, dtype=torch.float64)
    with pytest.raises(KernelUnsupported):
        module(component, context("triton"), seed=8)(x)


def test_a_chunked_layer_keeps_one_chunk() -> None:
    spec = parse_spec(
        {
            "vocab_size": 10,
            "hidden_size": HIDDEN,
            "layer_groups": [{"layers": [{"sequence_mixer": {**PLAIN, "attention_chunk_size": 4}}]}],
        }
    )
    assert cache_bytes(spec, 3, 1, "bf16") == 2 * 2 * 2 * 8 * 3
    assert cache_bytes(spec, 400, 1, "bf16") == 2 * 2 * 2 * 8 * 4
    assert build(spec).new_cache(1, 400).tensors[0].shape == (1, 2, 4, 8)


@given(fields=latent_attentions(True), kernels=st.sampled_from(["eager", "reference"]))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_latent_attention_rotates_only_where_it_says_so(fields: dict[str, Any], kernels: Kernels) -> None:
    """Without rotation the order of earlier tokens is of no account to the last one; with it, it is."""
    component = components.LatentAttention.model_validate(fields)
    attention = LatentAttention(component, context(kernels, theta=100.0)).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    x = torch.randn(1, 6, HIDDEN, generator=generator, dtype=torch.float64)
    swapped = x[:, [3, 1, 2, 0, 4, 5]]
    same = torch.allclose(attention(x)[0, -1], attention(swapped)[0, -1], rtol=1e-9, atol=1e-10)
    assert same is not component.rotated


@given(fields=latent_attentions(True))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_norms_of_latents_have_their_own_epsilon(fields: dict[str, Any]) -> None:
    assume(fields["latent_norm_epsilon"] is not None)
    attention = LatentAttention(components.LatentAttention.model_validate(fields), context(theta=100.0))
    assert attention.kv_a_norm.epsilon == fields["latent_norm_epsilon"] != context().norm.epsilon
    if fields["q_lora_rank"] is not None:
        assert attention.q_a_norm.epsilon == fields["latent_norm_epsilon"]


def spec_with(mixer: dict[str, Any], **outer: Any) -> ArchitectureSpec:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 24}}
    groups = [{"repeats": 2, "layers": [layer]}]
    return parse_spec({"vocab_size": 30, "hidden_size": HIDDEN, "layer_groups": groups, **outer})


@pytest.mark.parametrize(
    "kind, change",
    [("alibi", {}), ("rotary", {"sinks": True, "sliding_window": 5}), ("rotary", {"attention_chunk_size": 5})],
    ids=str,
)
def test_token_by_token_gives_the_logits_of_the_whole_over_many_chunks_and_windows(
    kind: str, change: dict[str, Any]
) -> None:
    model = build(spec_with({**PLAIN, **change}, positions={"kind": kind}), dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
            if name.endswith("sinks"):
                parameter.copy_(torch.linspace(-1, 1, len(parameter)))
    tokens = torch.randint(0, 30, (1, 23), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(1, 23)
    pieces = [model(part, cache=cache).logits for part in tokens.split(1, 1)]
    whole = model(tokens).logits
    assert whole.std() > 0.1
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-10)
