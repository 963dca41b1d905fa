"""Gemma 1 to 3 and VaultGemma: scaled embeddings, norms stored around zero, heads wider than their share.

Gemma (arXiv:2403.08295) is Llama beside these. Gemma 2 (arXiv:2408.00118) has norms before and after each mixer,
alternating windows, capped scores and logits; Gemma 3 (arXiv:2503.19786) norms on queries and keys instead of the caps,
and a rotary base of its own in windowed layers; VaultGemma (arXiv:2510.15001) is Gemma 2 without the norms after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader


def _model(reader: Reader, layers: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    return decoders.decoder(
        reader,
        layers,
        norm={"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps"), "zero_centered": True},
        embedding_scale=math.sqrt(reader.integer("hidden_size")),
        **extra,
    )


def _gemma(reader: Reader) -> dict[str, Any]:
    mlp = decoders.gated_mlp(reader)
    if mlp["activation"] == "gelu":  # what the first files say, and never meant
        mlp["activation"] = "gelu_tanh"
    layer = {"sequence_mixer": decoders.attention(reader, **decoders.biases(reader)), "channel_mixer": mlp}
    return _model(reader, [layer] * reader.integer("num_hidden_layers"))


def _layers(
    reader: Reader,
    windowed: list[bool],
    norm_placement: str,
    rotation: dict[bool, dict[str, Any]] | None = None,
    **extra: Any,
) -> list[dict[str, Any]]:
    """Layers with a window or without, perhaps rotated otherwise, whose scores have a scale of their own."""
    decoders.divided(reader)
    extra |= decoders.biases(reader) | {"softmax_scale": reader.number("query_pre_attn_scalar") ** -0.5}
    window = reader.optional_integer("sliding_window")
    own = rotation or {True: {}, False: {}}
    mixers = {
        True: decoders.attention(reader, sliding_window=window, **own[True], **extra),
        False: decoders.attention(reader, **own[False], **extra),
    }
    mlp = decoders.gated_mlp(reader, act="hidden_activation")
    return [
        {"sequence_mixer": mixers[used], "channel_mixer": mlp, "norm_placement": norm_placement} for used in windowed
    ]


def _alternating(norm_placement: str) -> Callable[[Reader], dict[str, Any]]:
    def build(reader: Reader) -> dict[str, Any]:
        windowed = decoders.windowed_layers(reader, lambda index: index % 2 == 0)
        softcap = reader.optional_number("attn_logit_softcapping")
        layers = _layers(reader, windowed, norm_placement, logit_softcap=softcap)
        return _model(reader, layers, final_logit_softcap=reader.optional_number("final_logit_softcapping"))

    return build


def _gemma3(reader: Reader) -> dict[str, Any]:
    theta, rotation = decoders.rotations(reader, older="rope_local_base_freq")
    windowed = decoders.windowed_layers(
        reader, lambda index: (index + 1) % reader.integer("sliding_window_pattern") != 0
    )
    layers = _layers(reader, windowed, "sandwich", rotation, query_key_norm="head")
    softcap = reader.optional_number("final_logit_softcapping")
    return _model(reader, layers, theta=theta, final_logit_softcap=softcap)


_SANDWICH = decoders.layer_norms(
    sequence_norm="input_layernorm",
    sequence_post_norm="post_attention_layernorm",
    channel_norm="pre_feedforward_layernorm",
    channel_post_norm="post_feedforward_layernorm",
)
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
}
_GEMMA2: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_CAUSAL: dict[str, Any] = {"neutral": {"use_bidirectional_attention": (None, False)}}

GEMMA = decoders.like_llama("gemma", _gemma, _GEMMA, ignored=("hidden_activation",), **_CAUSAL)
"""transformers reads ``hidden_act`` alone; the other name is in files of the time when it read both."""
GEMMA2 = decoders.like_llama(
    "gemma2",
    _alternating("sandwich"),
    _GEMMA2,
    decoders.OUTER + _SANDWICH + decoders.ATTENTION + decoders.MLP,
    absent=("hidden_act",),
    ignored=("cache_implementation", "hidden_act", "sliding_window_size"),
    **_CAUSAL,
)
GEMMA3_TEXT = decoders.like_llama(
    "gemma3_text",
    _gemma3,
    {name: value for name, value in _GEMMA2.items() if name != "attn_logit_softcapping"}
    | {
        "vocab_size": 262_208,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    decoders.OUTER + _SANDWICH + decoders.ATTENTION + decoders.MLP,
    absent=("hidden_act",),
    # transformers keeps the cap of Gemma 2 in the class, and no layer applies it; the pattern with an underscore is
    # what it writes for itself beside layer_types.
    ignored=("_sliding_window_pattern", "attn_logit_softcapping", "cache_implementation", "hidden_act"),
    **_CAUSAL,
)
VAULTGEMMA = decoders.like_llama(
    "vaultgemma",
    _alternating("pre"),
    _GEMMA2,
    decoders.OUTER + _SANDWICH + decoders.ATTENTION + decoders.MLP,
    absent=("hidden_act",),
    ignored=("cache_implementation", "hidden_act"),
    **_CAUSAL,
)
