"""Gemma 2: norms before and after each mixer, alternating windows, capped scores and logits (arXiv:2408.00118)."""

from __future__ import annotations

import math
from typing import Any

from planner.interop import decoders
from planner.interop.base import Adapter, LayoutRule, Reader, refusal


def _build(reader: Reader) -> dict[str, Any]:
    hidden, count = reader.integer("hidden_size"), reader.integer("num_hidden_layers")
    if hidden % reader.integer("num_attention_heads"):
        raise refusal("num_attention_heads", "It does not divide hidden_size.", "Choose a divisor of hidden_size.")
    bias = reader.flag("attention_bias")
    window = reader.optional_integer("sliding_window")
    if reader.value("layer_types") is None:
        windowed = [index % 2 == 0 for index in range(count)]
    else:
        kinds = reader.strings("layer_types", count, ("full_attention", "sliding_attention"))
        windowed = [kind == "sliding_attention" for kind in kinds]
    mixers = {
        used: decoders.attention(
            reader,
            query_key_value_bias=bias,
            output_bias=bias,
            sliding_window=window if used else None,
            logit_softcap=reader.optional_number("attn_logit_softcapping"),
            softmax_scale=reader.number("query_pre_attn_scalar") ** -0.5,
        )
        for used in (True, False)
    }
    mlp = {
        "kind": "mlp",
        "intermediate_size": reader.integer("intermediate_size"),
        "activation": reader.activation("hidden_activation"),
    }
    layers = [{"sequence_mixer": mixers[used], "channel_mixer": mlp, "norm_placement": "sandwich"} for used in windowed]
    return decoders.decoder(
        reader,
        layers,
        norm={"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps"), "zero_centered": True},
        embedding_scale=math.sqrt(hidden),
        final_logit_softcap=reader.optional_number("final_logit_softcapping"),
    )


_NORMS = {
    "sequence_norm": "input_layernorm",
    "sequence_post_norm": "post_attention_layernorm",
    "channel_norm": "pre_feedforward_layernorm",
    "channel_post_norm": "post_feedforward_layernorm",
}
GEMMA2 = Adapter(
    "gemma2",
    {name: value for name, value in decoders.LLAMA_DEFAULTS.items() if name != "hidden_act"}
    | {
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
    },
    _build,
    decoders.OUTER
    + tuple(
        LayoutRule(f"model.layers.{{layer}}.{theirs}.weight", (f"layers.{{layer}}.{ours}.weight",))
        for ours, theirs in _NORMS.items()
    )
    + decoders.ATTENTION
    + decoders.MLP,
    ignored=decoders.LLAMA_IGNORED | {"cache_implementation", "hidden_act"},
    neutral={"use_bidirectional_attention": (None, False)},
    notes=decoders.ROPE_NOTES,
)
