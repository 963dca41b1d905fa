"""Helium: Llama whose rotated channels are neighbours, and whose heads together are as wide as the stream."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _build(reader: Reader) -> dict[str, Any]:
    heads, _, head_dim = decoders.head_sizes(reader)
    if heads * head_dim != reader.integer("hidden_size"):
        raise refusal(
            "head_dim",
            f"{heads} heads of {head_dim} channels do not fit an output projection as wide as hidden_size.",
            "Choose hidden_size / num_attention_heads.",
        )
    layer = {
        "sequence_mixer": decoders.attention(reader, query_key_value_bias=reader.flag("attention_bias")),
        "channel_mixer": decoders.gated_mlp(reader, bias=reader.flag("mlp_bias")),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


HELIUM = decoders.like_llama(
    "helium",
    _build,
    {
        "vocab_size": 48000,
        "hidden_size": 2560,
        "intermediate_size": 7040,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "rms_norm_eps": 1e-8,
        "rope_theta": 100_000.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    rotary_in_pairs=True,
)
