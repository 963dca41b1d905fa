"""Nemotron-H (arXiv:2504.03624) and Nemotron 3 (arXiv:2512.20856): layers of one mixer each, by a pattern.

``M`` is Mamba-2, ``*`` attention without positions, ``-`` a plain MLP and ``E`` a mixture of plain MLPs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.interop import layouts
from planner.interop.base import MOST_LAYERS, Adapter, LayoutRule, Reader, groups, refusal, rules, shown
from planner.interop.families.bamba import attention
from planner.interop.families.mamba import MAMBA2_TENSORS

_PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}


def _kinds(reader: Reader) -> list[str]:
    """The mixer of every layer: from the list, else from the pattern, else transformers' four."""
    kinds, pattern = reader.value("layers_block_type"), reader.value("hybrid_override_pattern")
    if kinds is None and pattern is not None:
        if not isinstance(pattern, str) or not set(pattern) <= set(_PATTERN) or not 0 < len(pattern) <= MOST_LAYERS:
            raise refusal(
                "hybrid_override_pattern",
                f"A word of {' '.join(_PATTERN)} is expected, got {shown(pattern)}.",
                "Write one letter a layer: M for Mamba-2, * for attention, - for an MLP, E for a mixture.",
            )
        return [_PATTERN[letter] for letter in pattern]
    if kinds is None:
        return ["linear_attention", "moe", "full_attention", "mlp"]
    words = (*_PATTERN.values(), *_OLDER)
    if not isinstance(kinds, list) or not 0 < len(kinds) <= MOST_LAYERS or any(kind not in words for kind in kinds):
        raise refusal(
            "layers_block_type",
            f"A list of {', '.join(sorted(words))} is expected, got {shown(kinds)}.",
            "Write one word a layer.",
        )
    return [_OLDER.get(kind, kind) for kind in map(str, kinds)]


def _mamba2(reader: Reader) -> dict[str, Any]:
    shortest = reader.value("time_step_min")
    return {
        "kind": "mamba2",
        "num_heads": reader.integer("mamba_num_heads"),
        "head_dim": reader.integer("mamba_head_dim"),
        "state_size": reader.integer("ssm_state_size"),
        "n_groups": reader.integer("n_groups"),
        "conv_kernel": reader.integer("conv_kernel"),
        "chunk_size": reader.integer("chunk_size"),
        "activation": reader.activation("mamba_hidden_act"),
        "use_bias": reader.flag("use_bias"),
        "use_conv_bias": reader.flag("use_conv_bias"),
        # transformers clamps time steps to at least this, which other code takes for the initialization alone.
        "shortest_time_step": None if shortest == 0 else reader.number("time_step_min"),
    }


def _moe(reader: Reader) -> dict[str, Any]:
    bias, latent = reader.flag("mlp_bias"), reader.optional_integer("moe_latent_size")
    shared = reader.integer("moe_shared_expert_intermediate_size", least=0) or reader.integer("intermediate_size")
    return {
        "kind": "moe",
        "num_experts": reader.integer("n_routed_experts"),
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("moe_intermediate_size"),
        "shared_intermediate_size": shared,
        "shared_expert_bias": bias,
        "latent_size": latent,
        "latent_bias": bias and latent is not None,
        "gated": False,
        "activation": reader.activation("mlp_hidden_act"),
        "router_scores": "sigmoid",
        "normalize_weights": reader.flag("norm_topk_prob"),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
        "score_correction_bias": True,
        **layouts.expert_groups(reader),
    }


def _build(reader: Reader) -> dict[str, Any]:
    kinds = _kinds(reader)
    made: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "linear_attention": ("sequence_mixer", lambda: _mamba2(reader)),
        "full_attention": ("sequence_mixer", lambda: attention(reader)),
        "mlp": (
            "channel_mixer",
            lambda: layouts.plain_mlp(
                reader, reader.integer("intermediate_size"), reader.flag("mlp_bias"), "mlp_hidden_act"
            ),
        ),
        "moe": ("channel_mixer", lambda: _moe(reader)),
    }
    layer_of = {kind: {made[kind][0]: made[kind][1]()} for kind in set(kinds)}
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": reader.integer("hidden_size"),
        "positions": {"kind": "none"},
        "norm": {"kind": "rms_norm", "epsilon": reader.number("layer_norm_epsilon")},
        "layer_groups": groups([layer_of[kind] for kind in kinds]),
    }


_LAYER, _SEQUENCE, _CHANNEL = "model.layers.{layer}", "layers.{layer}.sequence_mixer.", "layers.{layer}.channel_mixer."
_SEQUENCE_TENSORS = MAMBA2_TENSORS | {name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
_CHANNEL_TENSORS = {
    "up_proj": "up_proj",
    "down_proj": "down_proj",
    "router.weight": "gate.weight",
    "latent_in": "fc1_latent_proj",
    "latent_out": "fc2_latent_proj",
    "shared_expert.up_proj": "shared_experts.up_proj",
    "shared_expert.down_proj": "shared_experts.down_proj",
}

NEMOTRON_H = Adapter(
    "nemotron_h",
    {
        "vocab_size": 131072,
        "hidden_size": 4096,
        "layers_block_type": None,
        "hybrid_override_pattern": None,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 21504,
        "mlp_hidden_act": "relu2",
        "mlp_bias": False,
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "mamba_hidden_act": "silu",
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "chunk_size": 128,
        "time_step_min": 0.001,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "moe_latent_size": None,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "layer_norm_epsilon": 1e-5,
    },
    _build,
    (
        LayoutRule("model.embeddings.weight", ("embed_tokens.weight",)),
        LayoutRule("model.norm_f.weight", ("final_norm.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        LayoutRule(f"{_LAYER}.norm.weight", ("layers.{layer}.sequence_norm.weight",)),
        LayoutRule(f"{_LAYER}.norm.weight", ("layers.{layer}.channel_norm.weight",)),
        *rules(f"{_LAYER}.mixer.", _SEQUENCE, _SEQUENCE_TENSORS),
        *rules(f"{_LAYER}.mixer.", _CHANNEL, _CHANNEL_TENSORS),
        *(LayoutRule(f"{_LAYER}.mixer.experts.{n}", (f"{_CHANNEL}experts.{n}",)) for n in ("up_proj", "down_proj")),
    ),
    aliases={
        "layer_types": "layers_block_type",
        "num_local_experts": "n_routed_experts",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_chunk_size": "chunk_size",
        "mamba_dt_min": "time_step_min",
    },
    # transformers counts layers by the pattern, sizes Mamba by its heads, norms by layer_norm_epsilon and shared
    # experts by their width; it rotates nothing and ties no head to the embedding. The rest is how weights are made,
    # kept and generated with.
    ignored=frozenset(
        {
            "expand",
            "hidden_dropout",
            "mamba_dt_init_floor",
            "mamba_dt_limit",
            "mamba_dt_max",
            "mamba_expand",
            "mamba_proj_bias",
            "mamba_ssm_cache_dtype",
            "max_position_embeddings",
            "moe_shared_expert_overlap",
            "mtp_hybrid_override_pattern",
            "mtp_layers_block_type",
            "n_shared_experts",
            "norm_eps",
            "num_hidden_layers",
            "num_logits_to_keep",
            "num_nextn_predict_layers",
            "num_query_groups",
            "partial_rotary_factor",
            "rescale_prenorm_residual",
            "residual_in_fp32",
            "rms_norm_eps",
            "rope_theta",
            "sliding_window",
            "tie_word_embeddings",
            "time_step_floor",
            "time_step_limit",
            "time_step_max",
            "use_mamba_kernels",
        }
    ),
    neutral={"attention_bias": (False,), "attention_head_dim": (128,)},
    notes=layouts.PREDICTION_NOTES,
)
