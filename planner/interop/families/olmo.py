"""OLMo 1 to 3 and OLMoE.

OLMo (arXiv:2402.00838) has LayerNorm without parameters and may clamp queries, keys and values. OLMo 2
(arXiv:2501.00656) norms all of a layer's queries and keys together, and the output of each mixer instead of its input;
OLMo 3 (arXiv:2512.13961) adds windows. OLMoE (arXiv:2409.02060) sends each token to a few of many small experts, and
FlexOlmo (arXiv:2507.07024) does with the norms of OLMo 2.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _olmo(reader: Reader) -> dict[str, Any]:
    clip = reader.optional_number("clip_qkv")
    layer = {
        "sequence_mixer": decoders.attention(reader, query_key_value_clip=clip, **decoders.biases(reader)),
        "channel_mixer": decoders.gated_mlp(reader),
    }
    norm = {"kind": "layer_norm", "epsilon": 1e-5, "bias": False, "has_weight": False}
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"), norm=norm)


def _normed(reader: Reader, **extra: Any) -> dict[str, Any]:
    """A layer with norms over its queries, over its keys, and after each mixer."""
    return {
        "sequence_mixer": decoders.attention(reader, query_key_norm="projection", **decoders.biases(reader), **extra),
        "channel_mixer": decoders.gated_mlp(reader),
        "norm_placement": "post",
    }


def _olmo2(reader: Reader) -> dict[str, Any]:
    return decoders.decoder(reader, [_normed(reader)] * reader.integer("num_hidden_layers"))


def _olmo3(reader: Reader) -> dict[str, Any]:
    # The older single rope_theta is taken for layers without a window alone, so windowed ones have no older field.
    theta, rotation = decoders.rotations(reader, older="rope_local_base_freq", default=500_000.0)
    window = reader.optional_integer("sliding_window")
    layers = {True: _normed(reader, sliding_window=window, **rotation[True]), False: _normed(reader, **rotation[False])}
    windowed = decoders.windowed_layers(reader, lambda index: (index + 1) % 4 != 0)
    return decoders.decoder(reader, [layers[used] for used in windowed], theta=theta)


def _flex_olmo(reader: Reader) -> dict[str, Any]:
    mixture = decoders.mixture(reader, "num_experts", normalize_weights=reader.flag("norm_topk_prob"))
    layer = _normed(reader) | {"channel_mixer": mixture}
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _olmoe(reader: Reader) -> dict[str, Any]:
    heads, _, head_dim = decoders.head_sizes(reader)
    if heads * head_dim != reader.integer("hidden_size"):
        raise refusal(
            "num_attention_heads",
            "The norm of the queries is as wide as hidden_size, and the heads together are not.",
            "Choose a divisor of hidden_size, and no head_dim.",
        )
    layer = {
        "sequence_mixer": decoders.attention(
            reader,
            query_key_norm="projection",
            query_key_value_clip=reader.optional_number("clip_qkv"),
            **decoders.biases(reader),
        ),
        "channel_mixer": decoders.mixture(reader, "num_experts", normalize_weights=reader.flag("norm_topk_prob")),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


_OLMO: dict[str, Any] = {"vocab_size": 50304, "attention_bias": False}
_OLMO2 = _OLMO | {"rms_norm_eps": 1e-5}
_OLMO2_LAYOUT = decoders.OUTER + decoders.POST_NORMS + decoders.ATTENTION + decoders.MLP

OLMO = decoders.like_llama("olmo", _olmo, _OLMO | {"clip_qkv": None}, absent=("rms_norm_eps",))
OLMO2 = decoders.like_llama("olmo2", _olmo2, _OLMO2, _OLMO2_LAYOUT)
OLMO3 = decoders.like_llama("olmo3", _olmo3, _OLMO2 | {"sliding_window": 4096, "layer_types": None}, _OLMO2_LAYOUT)
OLMOE = decoders.like_llama(
    "olmoe",
    _olmoe,
    _OLMO
    | {
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": False,
        "clip_qkv": None,
    },
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "num_experts"},
)
FLEX_OLMO = decoders.like_llama(
    "flex_olmo",
    _flex_olmo,
    _OLMO
    | {
        "vocab_size": 100352,
        "rope_theta": 500_000.0,
        "num_experts_per_tok": 5,
        "num_experts": 7,
        "norm_topk_prob": False,
    },
    decoders.OUTER
    + decoders.POST_NORMS
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "num_experts"},
)
