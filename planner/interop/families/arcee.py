"""Arcee (AFM): Llama with a channel mixer of two projections and squared ReLU between them."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader


def _build(reader: Reader) -> dict[str, Any]:
    decoders.divided(reader)
    layer = {
        "sequence_mixer": decoders.attention(reader, **decoders.biases(reader)),
        "channel_mixer": decoders.gated_mlp(reader, gated=False, bias=reader.flag("mlp_bias")),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


ARCEE = decoders.like_llama(
    "arcee",
    _build,
    {
        "hidden_size": 2560,
        "intermediate_size": 18432,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
    },
)
