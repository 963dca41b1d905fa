"""LFM2 with a mixture of experts in all but the first layers (LFM2-8B-A1B; arXiv:2511.23404)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Reader, refusal
from planner.interop.families import lfm2


def _build(reader: Reader) -> dict[str, Any]:
    if reader.value("layer_types") is None:
        raise refusal("layer_types", "Nothing says which layers are convolutions.", "Write one word a layer.")
    dense = {"kind": "mlp", "intermediate_size": reader.integer("intermediate_size")}
    mixture = {
        "kind": "moe",
        "num_experts": reader.integer("num_experts"),
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("moe_intermediate_size"),
        "router_scores": "sigmoid",
        "score_correction_bias": reader.flag("use_expert_bias"),
        "normalize_weights": reader.flag("norm_topk_prob"),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
    }
    first = reader.integer("num_dense_layers", least=0)
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": dense if index < first else mixture}
        for index, mixer in enumerate(lfm2.mixers(reader))
    ]
    return decoders.decoder(
        reader,
        layers,
        positions=layouts.rotary(reader, default=lfm2.BASE),
        norm={"kind": "rms_norm", "epsilon": reader.number("norm_eps")},
    )


LFM2_MOE = decoders.like_llama(
    "lfm2_moe",
    _build,
    lfm2.DEFAULTS
    | {
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "num_experts_per_tok": 4,
        "num_experts": 32,
        "use_expert_bias": True,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
    },
    lfm2.LAYOUT + decoders.mixture_rules("model.layers.{layer}.feed_forward", "gate", shared=None),
    absent=(*lfm2.ABSENT, "full_attn_idxs"),
    ignored=lfm2.IGNORED,
    aliases={"tie_embedding": "tie_word_embeddings"},
    neutral=lfm2.NEUTRAL,
)
