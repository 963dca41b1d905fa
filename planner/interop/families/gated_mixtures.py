"""Mixtures by sigmoid scores behind grouped-query attention: Trinity (AFMoE), Hunyuan 3, MiMo-V2-Flash.

Trinity gates attention and rotates windowed layers alone; MiMo-V2 has twice the KV heads and sinks in windowed layers,
narrower values, and multiplies these by a factor. Both as published, and as transformers computes them.
"""

from __future__ import annotations

import math
from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, is_one_of, refusal, rules, shown


def _sigmoid_mixture(reader: Reader, experts: str, scale: str, shared: int, **extra: Any) -> dict[str, Any]:
    """Experts chosen by corrected sigmoid scores, whose weights sum to ``scale``."""
    factor = reader.optional_number(scale)
    return {
        "kind": "moe",
        "num_experts": reader.integer(experts),
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("moe_intermediate_size"),
        "shared_intermediate_size": shared or None,
        "activation": reader.activation("hidden_act"),
        "router_scores": "sigmoid",
        "routed_scaling_factor": 1.0 if factor is None else factor,
        "score_correction_bias": True,
        **extra,
    }


def _afmoe(reader: Reader) -> dict[str, Any]:
    every = reader.integer("global_attn_every_n_layers")
    windowed = decoders.windowed_layers(reader, lambda index: (index + 1) % every != 0)
    mixers = {
        narrow: decoders.attention(
            reader,
            query_key_norm="head",
            output_gate="elementwise",
            sliding_window=reader.optional_integer("sliding_window") if narrow else None,
            rope_share=1.0 if narrow else 0.0,
        )
        for narrow in (True, False)
    }
    shared = reader.integer("num_shared_experts", least=0) * reader.integer("moe_intermediate_size")
    mixture, dense = (
        _sigmoid_mixture(reader, "num_experts", "route_scale", shared, score_correction_is_parameter=True),
        decoders.gated_mlp(reader),
    )
    first = reader.integer("num_dense_layers", least=0)
    layers = [
        {
            "sequence_mixer": mixers[narrow],
            "channel_mixer": mixture if index >= first else dense,
            "norm_placement": "sandwich",
        }
        for index, narrow in enumerate(windowed)
    ]
    scaled = layouts.truth(reader, "mup_enabled")
    return decoders.decoder(
        reader, layers, embedding_scale=math.sqrt(reader.integer("hidden_size")) if scaled else None
    )


def _hy_v3(reader: Reader) -> dict[str, Any]:
    mixer, bias = decoders.attention(reader, query_key_norm="head", **decoders.biases(reader)), reader.flag("mlp_bias")
    # transformers takes no shared expert for one as wide as the dense MLP.
    shared = reader.integer("num_shared_experts", least=0) * reader.integer("moe_intermediate_size")
    shared = shared or reader.integer("intermediate_size")
    mixture = _sigmoid_mixture(reader, "num_experts", "router_scaling_factor", shared, shared_expert_bias=bias)
    dense = decoders.gated_mlp(reader, bias=bias)
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": mixture if sparse else dense}
        for sparse in decoders.sparse_layers(reader, lambda index: index > 0)
    ]
    return decoders.decoder(reader, layers)


ROTATED, GLOBAL_BASE, LOCAL_BASE = 0.334, 5_000_000.0, 10_000.0
"""MiMo-V2-Flash's share of rotated channels and rotary bases."""


def _mimo(reader: Reader) -> dict[str, Any]:
    # transformers reads these two from rope_parameters alone.
    if not is_one_of(reader.value("partial_rotary_factor"), (ROTATED,)):
        raise refusal("partial_rotary_factor", "transformers does not read it here.", "Write it in rope_parameters.")
    past = reader.optional_integer("sliding_window_size")
    window = reader.integer("sliding_window") if past is None else past + 1
    windowed = decoders.windowed_layers(reader, lambda index: index > 0 and (index + 1) % 6 != 0)
    theta, rotary = decoders.rotations(reader, "", GLOBAL_BASE, LOCAL_BASE)
    heads, _, head_dim = decoders.head_sizes(reader)
    bias, key_value_heads = reader.flag("attention_bias"), reader.integer("num_key_value_heads")
    scale = reader.optional_number("attention_value_scale")
    shares = {}
    for narrow, kind in ((True, "sliding_attention"), (False, "full_attention")):
        written = (reader.value("rope_parameters") or {}).get(kind) or {}
        # The family's own share is for frequencies as they are; scaled ones are of whole heads unless a share is said.
        whole = written.get("rope_type", "default") != "default" and "partial_rotary_factor" not in written
        shares[narrow] = 1.0 if whole else reader.rope_share(head_dim, kind)
    mixers = {
        narrow: {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads * (2 if narrow else 1),
            "head_dim": head_dim,
            "value_head_dim": reader.integer("v_head_dim"),
            "value_multiplier": None if scale == 1 else scale,
            "query_key_value_bias": bias,
            "sinks": narrow,
            "sliding_window": window if narrow else None,
            "rope_share": shares[narrow],
            **rotary[narrow],
        }
        for narrow in set(windowed)
    }
    mixture = _sigmoid_mixture(
        reader,
        "n_routed_experts",
        "routed_scaling_factor",
        0,
        normalize_weights=reader.flag("norm_topk_prob"),
        **layouts.expert_groups(reader),
    )
    dense = decoders.gated_mlp(reader)
    sparse = decoders.sparse_layers(reader, lambda index: index > 0)
    layers = [
        {"sequence_mixer": mixers[narrow], "channel_mixer": mixture if routed else dense}
        for narrow, routed in zip(windowed, sparse, strict=True)
    ]
    _as_published(reader, windowed, sparse, key_value_heads, head_dim)
    return decoders.decoder(reader, layers, theta=theta)


def _as_published(
    reader: Reader, windowed: list[bool], sparse: list[bool], key_value_heads: int, head_dim: int
) -> None:
    """Refuse fields of the published file that transformers does not read, where they say something else."""
    for name, meant in (
        ("hybrid_layer_pattern", [int(narrow) for narrow in windowed]),
        ("moe_layer_freq", [int(routed) for routed in sparse]),
        ("swa_num_attention_heads", reader.integer("num_attention_heads")),
        ("swa_num_key_value_heads", 2 * key_value_heads),
        ("swa_head_dim", head_dim),
        ("swa_v_head_dim", reader.integer("v_head_dim")),
        ("layernorm_epsilon", reader.number("rms_norm_eps")),
    ):
        if reader.value(name) is not None and reader.value(name) != meant:
            raise refusal(
                name,
                f"transformers does not read it, and takes {shown(meant)}.",
                "Remove it, or write what is built.",
            )


_ROUTER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n_group": (1, None),
    "num_expert_groups": (1, None),
    "num_limited_groups": (1, None),
    "topk_group": (1, None),
    "score_func": ("sigmoid",),
    "route_norm": (True,),
}
_MIXTURE = decoders.mixture_rules("model.layers.{layer}.mlp", "gate")

AFMOE = decoders.like_llama(
    "afmoe",
    _afmoe,
    {
        "vocab_size": 200192,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 1408,
        "num_dense_layers": 1,
        "num_attention_heads": 16,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "route_scale": 1.0,
        "global_attn_every_n_layers": 4,
        "sliding_window": 1024,
        "layer_types": None,
        "mup_enabled": False,
    },
    decoders.OUTER
    + decoders.layer_norms(
        sequence_norm="input_layernorm",
        sequence_post_norm="post_attention_layernorm",
        channel_norm="pre_mlp_layernorm",
        channel_post_norm="post_mlp_layernorm",
    )
    + decoders.ATTENTION
    + rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", {"gate_proj": "gate_proj"})
    + decoders.MLP
    + decoders.mixture_rules("model.layers.{layer}.mlp", "router.gate")
    + (
        LayoutRule(
            "model.layers.{layer}.mlp.expert_bias", ("layers.{layer}.channel_mixer.router.score_correction_bias",)
        ),
    ),
    ignored=("load_balance_coeff", "use_grouped_mm"),
    # The gate has no bias where the other projections would have one.
    neutral=_ROUTER_NEUTRAL | {"attention_bias": (False,)},
)
HY_V3 = decoders.like_llama(
    "hy_v3",
    _hy_v3,
    {
        "vocab_size": 120832,
        "intermediate_size": 13312,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11158840.0,
        "attention_bias": False,
        "mlp_bias": False,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": 1536,
        "router_scaling_factor": 2.826,
        "mlp_layer_types": None,
    },
    decoders.LLAMA_LAYOUT + _MIXTURE,
    aliases={"num_local_experts": "num_experts"},
    ignored=("enable_moe_fp32_combine", "num_nextn_predict_layers"),
    notes=layouts.PREDICTION_NOTES,
)
MIMO_V2_FLASH = decoders.like_llama(
    "mimo_v2_flash",
    _mimo,
    {
        "vocab_size": 152576,
        "intermediate_size": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "attention_value_scale": 0.707,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "n_routed_experts": 256,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "sliding_window": 129,
        "sliding_window_size": None,
        "layer_types": None,
        "mlp_layer_types": None,
        "partial_rotary_factor": ROTATED,
        **dict.fromkeys(("hybrid_layer_pattern", "layernorm_epsilon", "moe_layer_freq", "swa_head_dim")),
        **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads", "swa_v_head_dim")),
    },
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + (LayoutRule("model.layers.{layer}.self_attn.sinks", ("layers.{layer}.sequence_mixer.sinks",)),)
    + decoders.MLP
    + _MIXTURE,
    absent=("rope_theta",),
    aliases={"num_local_experts": "n_routed_experts"},
    # attention_chunk_size is the window's in the published file, without an effect.
    ignored=("attention_chunk_size", "hybrid_block_size", "num_nextn_predict_layers"),
    neutral={
        "add_full_attention_sink_bias": (False,),
        "add_swa_attention_sink_bias": (True,),
        "attention_projection_layout": ("split",),
        "n_shared_experts": (None, 0),
        "rope_theta": (5000000, GLOBAL_BASE),
        "scoring_func": ("sigmoid",),
        "swa_rope_theta": (10000, LOCAL_BASE),
        "topk_method": ("noaux_tc",),
    },
    notes=layouts.PREDICTION_NOTES,
)
