"""Hunyuan: Llama with norms of queries and keys after the rotation; a mixture with a shared expert in the larger one.

The mixture is arXiv:2411.02265's, without its sharing of keys and values.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, positive, refusal, rules


def _decoder(reader: Reader, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A model whose ``alpha`` stretches the rotary base, whatever the length; the files call that dynamic."""
    alpha = reader.rope_parameter("alpha")
    if not alpha or (reader.rope_parameter("rope_type") or reader.rope_parameter("type")) != "dynamic":
        return decoders.decoder(reader, layers)
    _, _, head_dim = decoders.head_sizes(reader)
    if head_dim == 2:
        raise refusal("head_dim", "Two channels have one frequency, which alpha cannot stretch.", "Choose 4 or more.")
    stretch = positive("rope_parameters.alpha", alpha) ** (head_dim / (head_dim - 2))
    return decoders.decoder(reader, layers, theta=positive("rope_parameters.alpha", reader.rope_theta() * stretch))


def _attention(reader: Reader) -> dict[str, Any]:
    norm = {"query_key_norm": "head", "query_key_norm_after_rope": True}
    return decoders.attention(reader, **decoders.biases(reader), **norm)


def _dense(reader: Reader) -> dict[str, Any]:
    layer = {"sequence_mixer": _attention(reader), "channel_mixer": decoders.gated_mlp(reader)}
    return _decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _moe(reader: Reader) -> dict[str, Any]:
    mixer, width = _attention(reader), reader.integer("intermediate_size")
    layers = [
        {
            "sequence_mixer": mixer,
            "channel_mixer": decoders.mixture(
                reader, "num_experts", num_experts_per_tok=chosen, shared_intermediate_size=width
            ),
        }
        for chosen in decoders.number_a_layer(reader, "moe_topk")
    ]
    return _decoder(reader, layers)


_COMMON: dict[str, Any] = {"vocab_size": 290943, "rms_norm_eps": 1e-5, "attention_bias": False}
_NORMS = rules(
    "model.layers.{layer}.self_attn.",
    "layers.{layer}.sequence_mixer.",
    {"q_norm.weight": "query_layernorm.weight", "k_norm.weight": "key_layernorm.weight"},
)
_PROJECTIONS = rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", decoders.LLAMA_ATTENTION)
_LAYOUT = decoders.OUTER + decoders.PRE_NORMS + _PROJECTIONS + _NORMS

HUNYUAN_V1_DENSE = decoders.like_llama(
    "hunyuan_v1_dense",
    _dense,
    _COMMON,
    _LAYOUT + decoders.MLP,
    ignored=("eod_token_id",),
    rotary_in_base=frozenset({"dynamic"}),
)
HUNYUAN_V1_MOE = decoders.like_llama(
    "hunyuan_v1_moe",
    _moe,
    _COMMON | {"num_experts": 1, "moe_topk": 1},
    _LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate.wg", "shared_mlp"),
    aliases={"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    ignored=("eod_token_id",),
    rotary_in_base=frozenset({"dynamic"}),
)
