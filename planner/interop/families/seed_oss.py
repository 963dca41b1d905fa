"""Seed-OSS: Llama with biases on queries, keys and values, and heads wider than their share of the stream."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader


def _build(reader: Reader) -> dict[str, Any]:
    bias = {"query_key_value_bias": reader.flag("attention_bias"), "output_bias": reader.flag("attention_out_bias")}
    layer = {
        "sequence_mixer": decoders.attention(reader, **bias),
        "channel_mixer": decoders.gated_mlp(reader, bias=reader.flag("mlp_bias")),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


SEED_OSS = decoders.like_llama(
    "seed_oss",
    _build,
    {
        "vocab_size": 155136,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
    },
    ignored=("residual_dropout",),
)
