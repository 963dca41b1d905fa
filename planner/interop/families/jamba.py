"""Jamba: attention in one of several layers, Mamba in the rest, a mixture in every other (arXiv:2403.19887)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Adapter, LayoutRule, Reader, groups, refusal, rules
from planner.interop.families.mamba import MAMBA1_TENSORS, time_step_rank


def _build(reader: Reader) -> dict[str, Any]:
    count, hidden = reader.integer("num_hidden_layers"), reader.integer("hidden_size")
    periods = {}
    for what in ("attn", "expert"):
        period, offset = reader.integer(f"{what}_layer_period"), reader.integer(f"{what}_layer_offset", least=0)
        if offset >= period:
            raise refusal(f"{what}_layer_offset", f"{offset} is not below the period of {period}.", "Lower it.")
        periods[what] = (period, offset)
    attention = decoders.attention(reader)
    mamba = {
        "kind": "mamba1",
        "intermediate_size": reader.integer("mamba_expand") * hidden,
        "state_size": reader.integer("mamba_d_state"),
        "conv_kernel": reader.integer("mamba_d_conv"),
        "time_step_rank": time_step_rank(reader, "mamba_dt_rank"),
        "activation": reader.activation("hidden_act"),
        "use_bias": reader.flag("mamba_proj_bias"),
        "use_conv_bias": reader.flag("mamba_conv_bias"),
        "parameter_norms": True,
    }
    dense = decoders.gated_mlp(reader)
    experts = reader.integer("num_experts", least=0)
    mixture = {
        "kind": "moe",
        "num_experts": experts,
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("intermediate_size"),
        "activation": reader.activation("hidden_act"),
        "normalize_weights": False,
    }

    def at(what: str, index: int) -> bool:
        period, offset = periods[what]
        return index % period == offset

    layers = [
        {
            "sequence_mixer": attention if at("attn", index) else mamba,
            "channel_mixer": mixture if at("expert", index) and experts > 1 else dense,
        }
        for index in range(count)
    ]
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": hidden,
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
        "positions": {"kind": "none"},
        "norm": {"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps")},
        "layer_groups": groups(layers),
    }


_NORMS = {f"{short}_norm.weight": f"{short}_layernorm.weight" for short in ("dt", "b", "c")}
JAMBA = Adapter(
    "jamba",
    {name: value for name, value in decoders.LLAMA_DEFAULTS.items() if not name.startswith("rope")}
    | {
        "vocab_size": 65536,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
        "num_experts": 16,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": "auto",
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
    _build,
    (
        LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
        LayoutRule("model.final_layernorm.weight", ("final_norm.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        LayoutRule("model.layers.{layer}.input_layernorm.weight", ("layers.{layer}.sequence_norm.weight",)),
        LayoutRule("model.layers.{layer}.pre_ff_layernorm.weight", ("layers.{layer}.channel_norm.weight",)),
        *decoders.ATTENTION,
        *rules("model.layers.{layer}.mamba.", "layers.{layer}.sequence_mixer.", MAMBA1_TENSORS | _NORMS),
        *rules("model.layers.{layer}.feed_forward.", "layers.{layer}.channel_mixer.", decoders.GATED_MLP),
        *decoders.mixture_rules("model.layers.{layer}.feed_forward", "router"),
    ),
    aliases={"num_local_experts": "num_experts"},
    ignored=frozenset(
        {
            "calc_logits_for_entire_prompt",
            "max_position_embeddings",
            "num_logits_to_keep",
            "use_associative_scan",
            "use_mamba_kernels",
            "use_mambapy",
        }
    ),
    neutral={"sliding_window": (None,), "mamba_inner_layernorms": (True,)},
)
