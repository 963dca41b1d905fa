"""Phi-3.5-MoE: two experts a token, chosen and weighted by SparseMixer (arXiv:2404.14219, arXiv:2310.00811)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Reader, refusal

CHOSEN = 2
"""SparseMixer chooses a first and a second expert, whatever the configuration says."""


def _build(reader: Reader) -> dict[str, Any]:
    if reader.integer("num_experts_per_tok") != CHOSEN:
        raise refusal("num_experts_per_tok", "This family's router always chooses two experts.", "Write 2.")
    heads = reader.optional_integer("num_key_value_heads") or reader.integer("num_attention_heads")
    layer = {
        "sequence_mixer": decoders.attention(
            reader,
            sliding_window=reader.optional_integer("sliding_window"),
            **decoders.biases(reader),
        )
        | {"num_key_value_heads": heads},
        "channel_mixer": decoders.mixture(reader, "num_local_experts", normalize_weights=False),
    }
    norm = layouts.layer_norm(reader, "rms_norm_eps")
    return decoders.decoder(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=norm,
        lm_head_bias=reader.flag("lm_head_bias"),
    )


_ROPE = ("rope_scaling", "rope_parameters")
PHIMOE = decoders.like_llama(
    "phimoe",
    _build,
    {
        "vocab_size": 32064,
        "intermediate_size": 6400,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 131072,
        "attention_bias": False,
        "lm_head_bias": False,
        "sliding_window": None,
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.01,
    },
    layouts.paired(layouts.OUTER)
    + layouts.paired(layouts.PRE_NORMS, "model.layers.{layer}.", "layers.{layer}.")
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.mlp", "router", shared=None),
    ignored=("hidden_dropout", "input_jitter_noise", "original_max_position_embeddings"),
    # Each of the two weights is a softmax over the experts whose score is within this margin of the best one's.
    unmodelled={"router_jitter_noise": ()}
    | {f"{name}.{length}_mscale": (None,) for name in _ROPE for length in ("short", "long")},
)
