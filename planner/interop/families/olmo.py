"""OLMo 2 and OLMoE: norms over all of a layer's queries and keys (arXiv:2501.00656, arXiv:2409.02060).

OLMo 2 norms the output of each mixer instead of its input; OLMoE sends each token to a few of many small experts.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _olmo2(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": decoders.attention(reader, query_key_norm="projection", **decoders.biases(reader)),
        "channel_mixer": decoders.gated_mlp(reader),
        "norm_placement": "post",
    }
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
        "sequence_mixer": decoders.attention(reader, query_key_norm="projection", **decoders.biases(reader)),
        "channel_mixer": {
            "kind": "moe",
            "num_experts": reader.integer("num_experts"),
            "num_experts_per_tok": reader.integer("num_experts_per_tok"),
            "intermediate_size": reader.integer("intermediate_size"),
            "activation": reader.activation("hidden_act"),
            "normalize_weights": reader.flag("norm_topk_prob"),
        },
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


_OLMO: dict[str, Any] = {"vocab_size": 50304, "attention_bias": False}

OLMO2 = decoders.like_llama(
    "olmo2",
    _olmo2,
    _OLMO | {"rms_norm_eps": 1e-5},
    decoders.OUTER + decoders.POST_NORMS + decoders.ATTENTION + decoders.MLP,
)
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
    },
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "num_experts"},
    neutral={"clip_qkv": (None,)},
)
