"""DeepSeek-V2: latent attention, and mixtures whose experts are chosen by softmax (arXiv:2405.04434)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader, refusal, rules


def _groups(reader: Reader) -> dict[str, Any]:
    """How experts are chosen: among all of them, or among those of the best groups."""
    method = reader.value("topk_method")
    if method == "greedy":
        return {}
    if method != "group_limited_greedy":
        raise refusal(
            "topk_method",
            f"{method!r} is not supported.",
            "Supported are greedy and group_limited_greedy.",
            "unsupported_value",
        )
    return layouts.expert_groups(reader) | {"group_score": "max"}


def _build(reader: Reader) -> dict[str, Any]:
    if reader.integer("hidden_size") % reader.integer("num_attention_heads"):
        raise refusal("num_attention_heads", "It does not divide hidden_size.", "Choose a divisor of hidden_size.")
    bias = reader.flag("mlp_bias")
    width = reader.integer("moe_intermediate_size")
    shared = reader.integer("n_shared_experts", least=0) * width
    mixture = {
        "kind": "moe",
        "num_experts": reader.integer("n_routed_experts"),
        # The class's default is none, which makes no model that runs: what all published files have stands for it.
        "num_experts_per_tok": reader.optional_integer("num_experts_per_tok") or 6,
        "intermediate_size": width,
        "shared_intermediate_size": shared or None,
        "shared_expert_bias": bias and shared > 0,
        "activation": reader.activation("hidden_act"),
        "normalize_weights": False,
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
        **_groups(reader),
    }
    dense = decoders.gated_mlp(reader, bias=bias)
    first = reader.integer("first_k_dense_replace", least=0)
    mixer = layouts.latent_attention(reader, latent_norm_epsilon=layouts.latent_epsilon(reader))
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": mixture if index >= first else dense}
        for index in range(reader.integer("num_hidden_layers"))
    ]
    return decoders.decoder(reader, layers)


DEEPSEEK_V2 = Adapter(
    "deepseek_v2",
    layouts.replaced(
        decoders.LLAMA_DEFAULTS,
        without=("head_dim", "num_key_value_heads"),
        vocab_size=102400,
        attention_bias=False,
        mlp_bias=False,
        first_k_dense_replace=0,
        kv_lora_rank=512,
        q_lora_rank=1536,
        n_group=None,
        n_routed_experts=64,
        n_shared_experts=2,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        routed_scaling_factor=1.0,
        topk_group=None,
        topk_method="greedy",
        v_head_dim=128,
        num_experts_per_tok=None,
        moe_intermediate_size=1407,
    ),
    _build,
    decoders.OUTER
    + decoders.PRE_NORMS
    + rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", layouts.LATENT_ATTENTION)
    + decoders.MLP
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_experts": "n_routed_experts"},
    # head_dim and qk_head_dim are overwritten by transformers from the other two; latent attention has no KV heads.
    ignored=decoders.LLAMA_IGNORED
    | {"aux_loss_alpha", "ep_size", "head_dim", "num_key_value_heads", "qk_head_dim", "seq_aux"},
    neutral={"moe_layer_freq": (1,), "scoring_func": ("softmax",)},
    # The model's own code normalises the weights where it says so; transformers never does.
    unmodelled={"norm_topk_prob": (False, None)},
    rotary_in_pairs=True,
)
