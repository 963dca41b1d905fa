"""Mixtral: every channel mixer a mixture of gated experts (arXiv:2401.04088)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Adapter, Reader


def _build(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": decoders.attention(reader, sliding_window=reader.optional_integer("sliding_window")),
        "channel_mixer": {
            "kind": "moe",
            "num_experts": reader.integer("num_local_experts"),
            "num_experts_per_tok": reader.integer("num_experts_per_tok"),
            "intermediate_size": reader.integer("intermediate_size"),
            "activation": reader.activation("hidden_act"),
        },
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


MIXTRAL = Adapter(
    "mixtral",
    decoders.LLAMA_DEFAULTS
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    _build,
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_experts": "num_local_experts"},
    ignored=decoders.LLAMA_IGNORED,
)
