"""EXAONE 4 (arXiv:2507.11407): norms after each mixer, and of queries and keys; only windowed layers rotate.

EXAONE-MoE (K-EXAONE, arXiv:2601.01739) has the same attention, norms before each mixer, and mixtures as DeepSeek-V3's.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _mixers(reader: Reader) -> list[dict[str, Any]]:
    """The attention of every layer."""
    window = reader.optional_integer("sliding_window")
    if window is None and reader.value("layer_types") is None:
        raise refusal(
            "layer_types", "Without a window, no pattern says what the layers are.", "Write one word a layer."
        )
    windowed = decoders.windowed_layers(
        reader, lambda index: (index + 1) % reader.integer("sliding_window_pattern") != 0
    )
    return [
        decoders.attention(
            reader,
            query_key_norm="head",
            sliding_window=window if used else None,
            rope_share=1.0 if used or window is None else 0.0,
        )
        for used in windowed
    ]


def _exaone4(reader: Reader) -> dict[str, Any]:
    mlp = decoders.gated_mlp(reader)
    return decoders.decoder(
        reader,
        [{"sequence_mixer": mixer, "channel_mixer": mlp, "norm_placement": "post"} for mixer in _mixers(reader)],
    )


def _exaone_moe(reader: Reader) -> dict[str, Any]:
    mixers, width = _mixers(reader), reader.integer("moe_intermediate_size")
    dense = decoders.gated_mlp(reader)
    mixture = decoders.mixture(
        reader,
        "num_experts",
        intermediate_size=width,
        shared_intermediate_size=reader.integer("num_shared_experts", least=0) * width or None,
        router_scores="sigmoid",
        normalize_weights=reader.flag("norm_topk_prob"),
        routed_scaling_factor=reader.number("routed_scaling_factor"),
        num_expert_groups=reader.integer("n_group"),
        groups_per_tok=reader.integer("topk_group"),
        score_correction_bias=True,
    )
    sparse = decoders.sparse_layers(reader, lambda index: index >= reader.integer("first_k_dense_replace", least=0))
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": mixture if is_sparse else dense}
        for mixer, is_sparse in zip(mixers, sparse, strict=True)
    ]
    return decoders.decoder(reader, layers)


_COMMON: dict[str, Any] = {
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
}

EXAONE4 = decoders.like_llama(
    "exaone4", _exaone4, _COMMON, decoders.OUTER + decoders.POST_NORMS + decoders.ATTENTION + decoders.MLP
)
EXAONE_MOE = decoders.like_llama(
    "exaone_moe",
    _exaone_moe,
    _COMMON
    | {
        "mlp_layer_types": None,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
    },
    decoders.LLAMA_LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    # Published files name the layers three times, and layers for multi-token prediction, which the class leaves out.
    ignored=("first_last_k_dense_replace", "is_moe_layer", "num_nextn_predict_layers"),
    neutral={"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    notes={"num_nextn_predict_layers": "Layers for multi-token prediction are no part of the model that generates."},
)
