"""DeepSeek-V3: latent attention, a few dense layers, then mixtures with a shared expert (arXiv:2412.19437)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader, rules


def _build(reader: Reader) -> dict[str, Any]:
    layouts.rotated_head(reader)
    mixer = layouts.latent_attention(reader, latent_norm_epsilon=layouts.latent_epsilon(reader))
    mixers = [mixer] * reader.integer("num_hidden_layers")
    layers = layouts.dense_then_sparse(reader, mixers, layouts.sigmoid_mixture(reader), decoders.gated_mlp(reader))
    return decoders.decoder(reader, layers)


DEEPSEEK_V3 = Adapter(
    "deepseek_v3",
    {name: value for name, value in decoders.LLAMA_DEFAULTS.items() if name != "num_key_value_heads"}
    | {
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "qk_nope_head_dim": 128,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "attention_bias": False,
    },
    _build,
    decoders.OUTER
    + decoders.PRE_NORMS
    + rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", layouts.LATENT_ATTENTION)
    + decoders.MLP
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "n_routed_experts"},
    # transformers makes qk_head_dim of the other two; latent attention has no KV heads.
    ignored=decoders.LLAMA_IGNORED
    | {
        "qk_head_dim",
        "num_key_value_heads",
        "rope_interleave",
        "num_nextn_predict_layers",
        "num_mtp_layers",
        "ep_size",
    }
    | {"aux_loss_alpha", "seq_aux"},
    neutral={"moe_layer_freq": (1,), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    rotary_in_pairs=lambda config: bool(config.get("rope_interleave", True)),
    notes=layouts.PREDICTION_NOTES,
)
