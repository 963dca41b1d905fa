"""Llama and Mistral: gated MLP, grouped-query attention, a window in every layer of Mistral."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Adapter, Reader, refusal


def _llama(reader: Reader) -> dict[str, Any]:
    if reader.integer("hidden_size") % reader.integer("num_attention_heads"):
        raise refusal("num_attention_heads", "It does not divide hidden_size.", "Choose a divisor of hidden_size.")
    bias = reader.flag("attention_bias")
    layer = {
        "sequence_mixer": decoders.attention(reader, query_key_value_bias=bias, output_bias=bias),
        "channel_mixer": decoders.gated_mlp(reader, bias=reader.flag("mlp_bias")),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _mistral(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": decoders.attention(reader, sliding_window=reader.optional_integer("sliding_window")),
        "channel_mixer": decoders.gated_mlp(reader),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


_LAYOUT = decoders.OUTER + decoders.PRE_NORMS + decoders.ATTENTION + decoders.MLP

LLAMA = Adapter(
    "llama",
    decoders.LLAMA_DEFAULTS | {"attention_bias": False, "mlp_bias": False},
    _llama,
    _LAYOUT,
    ignored=decoders.LLAMA_IGNORED,
)
MISTRAL = Adapter(
    "mistral",
    decoders.LLAMA_DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
    _mistral,
    _LAYOUT,
    ignored=decoders.LLAMA_IGNORED,
)
