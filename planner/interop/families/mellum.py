"""Mellum: Qwen3-MoE with windows, a rotary base for layers with one, and dense layers, both by lists."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader


def _build(reader: Reader) -> dict[str, Any]:
    theta, rotation = decoders.rotations(
        reader, older="rope_local_base_freq", default=500_000.0, local_default=10_000.0
    )
    common = decoders.biases(reader) | {"query_key_norm": "head"}
    window = reader.optional_integer("sliding_window")
    mixers = {
        True: decoders.attention(reader, sliding_window=window, **rotation[True], **common),
        False: decoders.attention(reader, **rotation[False], **common),
    }
    dense = decoders.gated_mlp(reader)
    mixture = decoders.mixture(
        reader,
        "num_experts",
        intermediate_size=reader.integer("moe_intermediate_size"),
        normalize_weights=reader.flag("norm_topk_prob"),
    )
    kinds = zip(
        decoders.windowed_layers(reader, lambda index: False),
        decoders.sparse_layers(reader, lambda index: True),
        strict=True,
    )
    layers = [
        {"sequence_mixer": mixers[windowed], "channel_mixer": mixture if sparse else dense}
        for windowed, sparse in kinds
    ]
    return decoders.decoder(reader, layers, theta=theta)


MELLUM = decoders.like_llama(
    "mellum",
    _build,
    {
        "vocab_size": 98304,
        "hidden_size": 2304,
        "intermediate_size": 7168,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "attention_bias": False,
        "sliding_window": 1024,
        "moe_intermediate_size": 896,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": True,
        "layer_types": None,
        "mlp_layer_types": None,
    },
    decoders.LLAMA_LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    absent=("rope_theta",),
    aliases={"num_local_experts": "num_experts"},
    ignored=("mtp_layer_types", "mtp_mlp_layer_types", "num_mtp_layers", "num_nextn_predict_layers"),
    notes={"num_mtp_layers": "Layers for multi-token prediction are no part of the model that generates."},
)
