"""GLM-4 and GLM-4.5: half of each head rotated; GLM-4.5 is a mixture (arXiv:2406.12793, arXiv:2508.06471)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader


def _dense(norm_placement: str) -> Any:
    def build(reader: Reader) -> dict[str, Any]:
        layer = {
            "sequence_mixer": layouts.attention(reader, query_key_value_bias=reader.flag("attention_bias")),
            "channel_mixer": decoders.gated_mlp(reader),
            "norm_placement": norm_placement,
        }
        return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))

    return build


def _mixture(reader: Reader) -> dict[str, Any]:
    mixer = layouts.attention(
        reader,
        query_key_value_bias=reader.flag("attention_bias"),
        query_key_norm="head" if reader.flag("use_qk_norm") else None,
    )
    mixture, dense = layouts.sigmoid_mixture(reader), decoders.gated_mlp(reader)
    mixers = [mixer] * reader.integer("num_hidden_layers")
    return decoders.decoder(reader, layouts.dense_then_sparse(reader, mixers, mixture, dense))


_DEFAULTS: dict[str, Any] = decoders.LLAMA_DEFAULTS | {
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}
GLM = Adapter(
    "glm",
    _DEFAULTS,
    _dense("pre"),
    decoders.OUTER + decoders.PRE_NORMS + decoders.ATTENTION + decoders.FUSED_MLP,
    ignored=decoders.LLAMA_IGNORED,
    rotary_in_pairs=True,
)
GLM4 = Adapter(
    "glm4",
    _DEFAULTS,
    _dense("sandwich"),
    decoders.OUTER
    + decoders.layer_norms(
        sequence_norm="input_layernorm",
        sequence_post_norm="post_self_attn_layernorm",
        channel_norm="post_attention_layernorm",
        channel_post_norm="post_mlp_layernorm",
    )
    + decoders.ATTENTION
    + decoders.FUSED_MLP,
    ignored=decoders.LLAMA_IGNORED,
    rotary_in_pairs=True,
)
GLM4_MOE = Adapter(
    "glm4_moe",
    _DEFAULTS
    | {
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": None,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "use_qk_norm": False,
    },
    _mixture,
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.MLP
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "n_routed_experts"},
    ignored=decoders.LLAMA_IGNORED | {"num_mtp_layers", "num_nextn_predict_layers"},
    notes=layouts.PREDICTION_NOTES,
)
