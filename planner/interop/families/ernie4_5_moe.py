"""ERNIE 4.5 mixtures: experts in most layers, chosen by corrected softmax scores, beside shared ones.

Baidu's technical report of 2025 and the published configurations; transformers has them without vision experts.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, refusal


def _is_sparse(reader: Reader) -> list[bool]:
    """Whether each layer is a mixture: from the first to the last of them, every so many."""
    count, interval = reader.integer("num_hidden_layers"), reader.integer("moe_layer_interval")
    first, last = reader.integer("moe_layer_start_index", least=0), reader.integer("moe_layer_end_index", least=-1)
    last = count - 1 if last == -1 else last
    return [(index + 1) % interval == 0 and first <= index <= last for index in range(count)]


def _ernie(reader: Reader) -> dict[str, Any]:
    bias = layouts.truth(reader, "use_bias")
    width = reader.integer("moe_intermediate_size")
    shared = reader.integer("moe_num_shared_experts", least=0) * width
    mixture = {
        "kind": "moe",
        "num_experts": reader.integer("moe_num_experts"),
        "num_experts_per_tok": reader.integer("moe_k"),
        "intermediate_size": width,
        "activation": reader.activation("hidden_act"),
        "shared_intermediate_size": shared or None,
        "shared_expert_bias": bias and shared > 0,
        "score_correction_bias": True,
        "score_correction_is_parameter": True,
    }
    if reader.value("num_key_value_heads") is None:
        raise refusal("num_key_value_heads", "transformers makes no model without it.", "Write a number.")
    mixer = decoders.attention(reader, query_key_value_bias=bias, output_bias=bias)
    dense = decoders.gated_mlp(reader, bias=bias)
    layers = [{"sequence_mixer": mixer, "channel_mixer": mixture if sparse else dense} for sparse in _is_sparse(reader)]
    return decoders.decoder(reader, layers, lm_head_bias=bias)


ERNIE4_5_MOE = decoders.like_llama(
    "ernie4_5_moe",
    _ernie,
    {
        "vocab_size": 103424,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    layouts.paired({"lm_head": "lm_head"})
    + decoders.LLAMA_LAYOUT
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate")
    + (
        LayoutRule(
            "model.layers.{layer}.mlp.gate.moe_statics.e_score_correction_bias",
            ("layers.{layer}.channel_mixer.router.score_correction_bias",),
            as_one_row=True,
        ),
    ),
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    # Capacities and losses are of training.
    ignored=(
        "moe_capacity",
        "moe_aux_loss_lambda",
        "multi_token_pred_lambda",
        "num_nextn_predict_layers",
    ),
    # The least that weights are divided by: the published one is never reached.
    unmodelled={"moe_norm_min": (1e-12,)},
    neutral={"moe_gate": ("topk", "topk_fused"), "moe_use_aux_free": (True,), "use_moe": (True,)},
    notes=layouts.PREDICTION_NOTES,
    rotary_in_pairs=True,
)
