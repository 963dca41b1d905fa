"""Where norms stand, how mixers are added, and what surrounds the layers: against the equations written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import ArchitectureSpec, parse_spec
from runners.models import build

ATTENTION = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
MLP = {"kind": "mlp", "intermediate_size": 24}
VOCABULARY, HIDDEN = 20, 12
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def model(layer: dict[str, Any] | None = None, **changes: Any) -> ArchitectureSpec:
    layers = [{"sequence_mixer": ATTENTION, "channel_mixer": MLP, **(layer or {})}]
    data = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "layer_groups": [{"layers": layers}]}
    return parse_spec({**data, "positions": {"kind": "none"}, **changes})


def built(spec: ArchitectureSpec) -> Any:
    """The module in float64 with every weight drawn, those of norms too."""
    made = build(spec, dtype=torch.float64, kernels="reference")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return made


def rms(x: Tensor, norm: Any, epsilon: float = 1e-6) -> Tensor:
    """The equation of RMSNorm; ``norm`` gives the weight."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * norm.weight


def expected_layer(layer: Any, x: Tensor, placement: str, residual: str, multiplier: float) -> Tensor:
    """What each way of adding two mixers is said to compute."""
    mix = (lambda y: layer.sequence_mixer(y)), (lambda y: layer.channel_mixer(y))
    match placement, residual:
        case "pre", "sequential":
            x = x + multiplier * mix[0](rms(x, layer.sequence_norm))
            return x + multiplier * mix[1](rms(x, layer.channel_norm))
        case "post", "sequential":
            x = x + multiplier * rms(mix[0](x), layer.sequence_post_norm)
            return x + multiplier * rms(mix[1](x), layer.channel_post_norm)
        case "sandwich", "sequential":
            x = x + multiplier * rms(mix[0](rms(x, layer.sequence_norm)), layer.sequence_post_norm)
            return x + multiplier * rms(mix[1](rms(x, layer.channel_norm)), layer.channel_post_norm)
        case "after_residual", "sequential":
            x = rms(x + multiplier * mix[0](x), layer.sequence_norm)
            return rms(x + multiplier * mix[1](x), layer.channel_norm)
        case "pre", "parallel":
            return x + multiplier * (mix[0](rms(x, layer.sequence_norm)) + mix[1](rms(x, layer.channel_norm)))
        case "post", "parallel":
            return x + multiplier * (rms(mix[0](x), layer.sequence_post_norm) + rms(mix[1](x), layer.channel_post_norm))
        case "pre", "parallel_shared_norm":
            normed = rms(x, layer.sequence_norm)
            return x + multiplier * (mix[0](normed) + mix[1](normed))
        case "sandwich", "parallel_shared_norm":
            normed = rms(x, layer.sequence_norm)
            return x + multiplier * (
                rms(mix[0](normed), layer.sequence_post_norm) + rms(mix[1](normed), layer.channel_post_norm)
            )
    raise AssertionError


@pytest.mark.parametrize("multiplier", [None, 0.25])
@pytest.mark.parametrize(
    "placement, residual",
    [
        ("pre", "sequential"),
        ("post", "sequential"),
        ("sandwich", "sequential"),
        ("after_residual", "sequential"),
        ("pre", "parallel"),
        ("post", "parallel"),
        ("pre", "parallel_shared_norm"),
        ("sandwich", "parallel_shared_norm"),
    ],
)
def test_a_layer_adds_its_mixers_as_its_fields_say(placement: str, residual: str, multiplier: float | None) -> None:
    spec = model({"norm_placement": placement, "residual": residual}, residual_multiplier=multiplier)
    decoder = built(spec)
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = expected_layer(decoder.layers[0], x, placement, residual, 1.0 if multiplier is None else multiplier)
    torch.testing.assert_close(decoder.layers[0](x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_what_surrounds_the_layers(tied: bool) -> None:
    """Embedding, scale, projection, norm and positions; then norm, projection, head, scale and bound."""
    positions = {"kind": "learned", "num_positions": 10, "offset": 2}
    spec = model(
        embedding_size=7,
        tie_word_embeddings=tied,
        positions=positions,
        embedding_norm=True,
        embedding_scale=3.0,
        logit_scale=0.5,
        final_logit_softcap=4.0,
    )
    decoder = built(spec)
    assert decoder.embed_positions.weight.shape == (12, HIDDEN)
    stream = (3.0 * decoder.embed_tokens.weight[TOKENS]) @ decoder.embedding_in.weight.T
    stream = rms(stream, decoder.embedding_norm) + decoder.embed_positions.weight[2:8]
    stream = decoder.layers[0](stream)
    matrix = decoder.embed_tokens.weight if tied else decoder.lm_head.weight
    logits = rms(stream, decoder.final_norm) @ decoder.embedding_out.weight.T @ matrix.T * 0.5
    torch.testing.assert_close(decoder(TOKENS).logits, 4.0 * torch.tanh(logits / 4.0), rtol=1e-12, atol=1e-12)


def test_more_positions_than_the_table_has_are_refused() -> None:
    """Of the rows, the two leading ones are no positions."""
    decoder = built(model(positions={"kind": "learned", "num_positions": 5, "offset": 2}))
    with pytest.raises(ValueError, match="reads 5 positions, not 6"):
        decoder(TOKENS)


@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_a_norm_without_weights_only_normalizes(kind: str) -> None:
    norm = {"kind": kind, "has_weight": False, **({"bias": False} if kind == "layer_norm" else {})}
    decoder = built(model(norm=norm))
    assert not [name for name, _ in decoder.named_parameters() if "norm" in name]
    x = torch.randn(4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    centred = x - x.mean(-1, keepdim=True) if kind == "layer_norm" else x
    epsilon = 1e-5 if kind == "layer_norm" else 1e-6
    expected = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + epsilon)
    torch.testing.assert_close(decoder.final_norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_around_one_adds_it_to_its_weight(bias: bool) -> None:
    """And its gradients are those of PyTorch's own with the weight raised."""
    norm = built(model(norm={"kind": "layer_norm", "bias": bias, "zero_centered": True})).final_norm
    x = torch.randn(2, 4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    leaves = [x, *norm.parameters()]
    assert len(leaves) == 2 + bias
    expected = torch.nn.functional.layer_norm(x, (HIDDEN,), norm.weight + 1, norm.bias, 1e-5)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, x.numel() + 1, dtype=torch.float64).view(x.shape)
    torch.testing.assert_close(
        torch.autograd.grad((norm(x) * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        rtol=1e-10,
        atol=1e-10,
    )


def test_what_stays_on_the_stream_is_not_narrowed_by_autocast() -> None:
    """The embedding's projection and norm, and norms after the residual: the stream is fp32 throughout."""
    spec = model({"norm_placement": "after_residual"}, embedding_size=7, embedding_norm=True)
    decoder = build(spec)
    with torch.autocast("cpu", torch.bfloat16):
        stream = decoder.embed(TOKENS)
        assert stream.dtype == torch.float32
        assert decoder.layers[0](stream).dtype == torch.float32
