"""Nemotron-4, Minitron and Apertus: MLPs without a gate (arXiv:2402.16819, arXiv:2509.14233).

Nemotron's norms are LayerNorms whose weight is stored less one, and half of each head is rotated; Apertus normalizes
queries and keys and activates with xIELU.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, refusal


def _nemotron(reader: Reader) -> dict[str, Any]:
    heads = reader.optional_integer("num_key_value_heads")
    if heads is None:
        raise refusal("num_key_value_heads", "transformers makes no model without it.", "Write a number.")
    layer = {
        "sequence_mixer": layouts.attention(reader, **decoders.biases(reader)),
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("intermediate_size"), reader.flag("mlp_bias")),
    }
    norm = layouts.layer_norm(reader, "norm_eps") | {"zero_centered": True}
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"), norm=norm)


def _apertus(reader: Reader) -> dict[str, Any]:
    learned = reader.value("hidden_act") == "xielu"
    layer = {
        "sequence_mixer": decoders.attention(reader, query_key_norm="head", **decoders.biases(reader)),
        "channel_mixer": {
            "kind": "mlp",
            "intermediate_size": reader.integer("intermediate_size"),
            "gated": False,
            "activation": "xielu" if learned else reader.activation("hidden_act"),
        },
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


NEMOTRON = decoders.like_llama(
    "nemotron",
    _nemotron,
    {
        "vocab_size": 256000,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "partial_rotary_factor": 0.5,
    },
    layouts.paired(layouts.OUTER)
    + layouts.paired(layouts.PRE_NORMS, "model.layers.{layer}.", "layers.{layer}.")
    + decoders.ATTENTION
    + decoders.MLP,
    absent=("rms_norm_eps",),
    aliases={"rope_percent": "partial_rotary_factor", "rope_percentage": "partial_rotary_factor"},
)
APERTUS = decoders.like_llama(
    "apertus",
    _apertus,
    {
        "vocab_size": 131072,
        "intermediate_size": 14336,
        "hidden_act": "xielu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 12_000_000.0,
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 12_000_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "attention_bias": False,
    },
    decoders.OUTER
    + decoders.layer_norms(sequence_norm="attention_layernorm", channel_norm="feedforward_layernorm")
    + decoders.ATTENTION
    + decoders.MLP
    + tuple(
        LayoutRule(f"model.layers.{{layer}}.mlp.act_fn.{name}", (f"layers.{{layer}}.channel_mixer.xielu.{name}",))
        for name in ("alpha_p", "alpha_n")
    ),
    ignored=("hidden_dropout",),
    neutral={"mlp_bias": (False,), "post_norm": (False,), "qk_norm": (True,)},
)
