"""Mixtures routed as DeepSeek-V3's are, behind other attention, and latent attention before other channel mixers.

dots.llm1 (arXiv:2506.05767), Solar Open, Sarvam's two mixtures, GLM-4.7-Flash, Youtu-LLM
(arXiv:2512.24618) and MiniCPM3 (arXiv:2404.06395, whose factors it has).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader, refusal, rules
from planner.interop.families.glm import GLM4_MOE


def _latent(reader: Reader, **extra: Any) -> dict[str, Any]:
    """Latent attention, whose latents' norms have an epsilon of their own."""
    return layouts.latent_attention(reader, latent_norm_epsilon=layouts.latent_epsilon(reader), **extra)


def _dots1(reader: Reader) -> dict[str, Any]:
    window = reader.optional_integer("sliding_window")
    mixers = [
        decoders.attention(reader, sliding_window=used, query_key_norm="head", **decoders.biases(reader))
        for used in decoders.windows_by_layer(reader, window)
    ]
    mixture, dense = _shared_mixture(reader), decoders.gated_mlp(reader)
    return decoders.decoder(reader, layouts.dense_then_sparse(reader, mixers, mixture, dense))


def _shared_mixture(reader: Reader) -> dict[str, Any]:
    """A mixture whose number of shared experts must be written, though it may be none."""
    reader.integer("n_shared_experts", least=0)
    return layouts.sigmoid_mixture(reader)


def _solar_open(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": decoders.attention(reader, query_key_value_bias=reader.flag("attention_bias")),
        "channel_mixer": _shared_mixture(reader),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _glm4_moe_lite(reader: Reader) -> dict[str, Any]:
    mixer, mixture, dense = _latent(reader), _shared_mixture(reader), decoders.gated_mlp(reader)
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": mixture if sparse else dense}
        for sparse in decoders.sparse_layers(reader, lambda index: index > 0)
    ]
    return decoders.decoder(reader, layers)


def _sarvam_mla(reader: Reader) -> dict[str, Any]:
    mixture, dense = _shared_mixture(reader), decoders.gated_mlp(reader)
    mixers = [_latent(reader)] * reader.integer("num_hidden_layers")
    return decoders.decoder(reader, layouts.dense_then_sparse(reader, mixers, mixture, dense))


def _youtu(reader: Reader) -> dict[str, Any]:
    layouts.rotated_head(reader)
    layer = {"sequence_mixer": _latent(reader), "channel_mixer": decoders.gated_mlp(reader)}
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _minicpm3(reader: Reader) -> dict[str, Any]:
    heads, hidden, count = (reader.integer(n) for n in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    if hidden % heads:
        raise refusal("num_attention_heads", "It does not divide hidden_size.", "Choose a divisor of hidden_size.")
    mixer = _latent(reader, v_head_dim=reader.optional_integer("v_head_dim") or hidden // heads)
    layer = {"sequence_mixer": mixer, "channel_mixer": decoders.gated_mlp(reader, bias=reader.flag("mlp_bias"))}
    depth, base = reader.optional_number("scale_depth"), reader.optional_number("dim_model_base")
    return decoders.decoder(
        reader,
        [layer] * count,
        embedding_scale=reader.number("scale_emb"),
        residual_multiplier=None if depth is None else depth / math.sqrt(count),
        logit_scale=None if base is None else base / hidden,
    )


_LATENT_LAYOUT = rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", layouts.LATENT_ATTENTION)
_MIXTURE_LAYOUT = decoders.mixture_rules("model.layers.{layer}.mlp", "gate")
_ROUTED: dict[str, Any] = {
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "attention_bias": False,
}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "attention_bias": False,
}
_ROUTED_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "moe_layer_freq": (1,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
}
_NOT_READ = frozenset({"aux_loss_alpha", "ep_size", "num_mtp_layers", "num_nextn_predict_layers", "seq_aux"})


_NOT_LATENT = ("head_dim", "num_key_value_heads")
"""Fields of other attention; latent attention has no KV heads, and each head's channels follow from two fields."""
_DERIVED = frozenset({"num_key_value_heads", "qk_head_dim"})


def _interleaved(config: Mapping[str, Any]) -> bool:
    """Whether channels that are rotated together are neighbours."""
    return bool(config.get("rope_interleave", True))


DOTS1 = decoders.like_llama(
    "dots1",
    _dots1,
    _ROUTED
    | {
        "vocab_size": 152064,
        "hidden_size": 4608,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 62,
        "num_key_value_heads": 32,
        "n_routed_experts": None,
        "n_shared_experts": None,
        "num_experts_per_tok": None,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "sliding_window": 4096,
        "max_window_layers": 62,
        "layer_types": None,
    },
    decoders.LLAMA_LAYOUT + _MIXTURE_LAYOUT,
    aliases={"num_local_experts": "n_routed_experts"},
    # The published files name the method for the scores, which are sigmoid all the same.
    neutral=_ROUTED_NEUTRAL | {"scoring_func": ("sigmoid", "noaux_tc"), "use_sliding_window": (False,)},
    ignored=_NOT_READ,
)
SOLAR_OPEN = decoders.like_llama(
    "solar_open",
    _solar_open,
    _ROUTED
    | {
        "vocab_size": 196608,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "moe_intermediate_size": 1280,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
    },
    decoders.OUTER + decoders.PRE_NORMS + decoders.ATTENTION + _MIXTURE_LAYOUT,
    absent=("intermediate_size",),
    aliases={"num_local_experts": "n_routed_experts"},
    # Every layer is a mixture: the width of a dense MLP stands in files and is read by none.
    ignored=_NOT_READ | {"intermediate_size"},
    neutral=_ROUTED_NEUTRAL | {"first_k_dense_replace": (0,), "partial_rotary_factor": (1.0,), "use_qk_norm": (False,)},
)
GLM4_MOE_LITE = decoders.like_llama(
    "glm4_moe_lite",
    _glm4_moe_lite,
    _ROUTED
    | _LATENT
    | {
        "vocab_size": 154880,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "n_shared_experts": 1,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "v_head_dim": 256,
        "qk_nope_head_dim": 192,
        "num_experts_per_tok": 4,
        "rms_norm_eps": 1e-5,
        "mlp_layer_types": None,
    },
    decoders.OUTER + decoders.PRE_NORMS + _LATENT_LAYOUT + decoders.MLP + _MIXTURE_LAYOUT,
    absent=_NOT_LATENT,
    aliases={"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
    ignored=_NOT_READ | _DERIVED | {"rope_interleave"},
    # transformers has one dense layer first, whatever this older field says.
    neutral=_ROUTED_NEUTRAL | {"first_k_dense_replace": (1,), "partial_rotary_factor": (1.0,)},
    notes=layouts.PREDICTION_NOTES,
    rotary_in_pairs=_interleaved,
)
SARVAM_MOE = Adapter(
    "sarvam_moe",
    {
        **GLM4_MOE.defaults,
        "vocab_size": 262144,
        "intermediate_size": 8192,
        "num_hidden_layers": 19,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "moe_intermediate_size": 1024,
        "num_experts_per_tok": 6,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "rope_theta": 8_000_000.0,
        "partial_rotary_factor": 1.0,
    },
    GLM4_MOE.build,
    GLM4_MOE.layout,
    aliases={
        "num_local_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
        "use_qkv_bias": "attention_bias",
    },
    # moe_router_enable_expert_bias and moe_shared_expert_intermediate_size are the original code's, and not read.
    ignored=GLM4_MOE.ignored | {"num_mtp_layers", "num_nextn_predict_layers"},
    neutral={"score_function": ("sigmoid",), "moe_router_enable_expert_bias": (True,), "use_bias": (False,)},
    notes=layouts.PREDICTION_NOTES,
)
SARVAM_MLA = decoders.like_llama(
    "sarvam_mla",
    _sarvam_mla,
    _ROUTED
    | _LATENT
    | {
        "vocab_size": 262144,
        "intermediate_size": 16384,
        "moe_intermediate_size": 2048,
        "num_attention_heads": 64,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 2.5,
        "q_lora_rank": None,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
    },
    decoders.OUTER + decoders.PRE_NORMS + _LATENT_LAYOUT + decoders.MLP + _MIXTURE_LAYOUT,
    absent=_NOT_LATENT,
    aliases={
        "num_local_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
    },
    ignored=_NOT_READ | _DERIVED | {"head_dim", "q_head_dim", "rope_interleave"},
    neutral=_ROUTED_NEUTRAL | {"score_function": ("sigmoid",), "moe_router_enable_expert_bias": (True,)},
    notes=layouts.PREDICTION_NOTES,
    rotary_in_pairs=_interleaved,
)
YOUTU = decoders.like_llama(
    "youtu",
    _youtu,
    _LATENT
    | {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "q_lora_rank": 1536,
        "tie_word_embeddings": True,
    },
    decoders.OUTER + decoders.PRE_NORMS + _LATENT_LAYOUT + decoders.MLP,
    absent=("num_key_value_heads",),
    ignored=_DERIVED | {"embedding_initializer_range", "rope_interleave"},
    neutral={"mlp_bias": (False,)},
    rotary_in_pairs=_interleaved,
)
MINICPM3 = decoders.like_llama(
    "minicpm3",
    _minicpm3,
    _LATENT
    | {
        "vocab_size": 73448,
        "hidden_size": 2560,
        "intermediate_size": 6400,
        "num_hidden_layers": 62,
        "num_attention_heads": 40,
        "kv_lora_rank": 256,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "mlp_bias": False,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    },
    decoders.OUTER + decoders.PRE_NORMS + _LATENT_LAYOUT + decoders.MLP,
    absent=_NOT_LATENT,
    ignored=_DERIVED | {"head_dim"},
)
