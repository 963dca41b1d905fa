"""Hunyuan: Llama with norms of queries and keys after the rotation; a mixture with a shared expert in the larger one.

The mixture is arXiv:2411.02265's, without its sharing of keys and values.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, positive, refusal, rules


def _decoder(reader: Reader, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A model whose ``alpha`` stretches the rotary base, whatever the length; the files call that dynamic."""
    alpha = reader.rope_parameter("alpha")
    if not alpha or (reader.rope_parameter("rope_type") or reader.rope_parameter("type")) != "dynamic":
        return decoders.decoder(reader, layers)
    _, _, head_dim = decoders.head_sizes(reader)
    if head_dim == 2:
        raise refusal("head_dim", "Two channels have one frequency, which alpha cannot stretch.", "Choose 4 or more.")
    stretch = positive("rope_parameters.alpha", alpha) ** (head_dim / (head_dim - 2))
    return decoders.decoder(reader, layers, theta=positive("rope_parameters.alpha", reader.rope_theta() * stretch))


def _attention(reader: Reader) -> dict[str, Any]:
    norm = {"query_key_norm": "head", "query_key_norm_after_rope": True}
    return decoders.attention(reader, **decoders.biases(reader), **norm)


def _dense(reader: Reader) -> dict[str, Any]:
    layer = {"sequence_mixer": _attention(reader), "channel_mixer": decoders.gated_mlp(reader)}
    return _decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _moe(reader: Reader) -> dict[str, Any]:
    mixer, width = _attention(reader), reader.integer("intermediate_size")
    # transformers reads neither: its experts are all as wide as the MLP, and one of them is shared.
    for name, expected in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
        if reader.value(name) is not None and set(decoders.number_a_layer(reader, name)) != {expected}:
            raise refusal(name, f"Only {expected} in every layer is supported.", f"Write {expected}.")
    layers = [
        {
            "sequence_mixer": mixer,
            "channel_mixer": decoders.mixture(
                reader, "num_experts", num_experts_per_tok=chosen, shared_intermediate_size=width
            ),
        }
        for chosen in decoders.number_a_layer(reader, "moe_topk")
    ]
    return _decoder(reader, layers)


_COMMON: dict[str, Any] = {"vocab_size": 290943, "rms_norm_eps": 1e-5, "attention_bias": False}
_NORMS = rules(
    "model.layers.{layer}.self_attn.",
    "layers.{layer}.sequence_mixer.",
    {"q_norm.weight": "query_layernorm.weight", "k_norm.weight": "key_layernorm.weight"},
)
_PROJECTIONS = rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", decoders.LLAMA_ATTENTION)
_LAYOUT = decoders.OUTER + decoders.PRE_NORMS + _PROJECTIONS + _NORMS

_IGNORED = (
    # Names of sizes that follow from others, token ids, types, and what selects rows or drops tokens in training.
    "attention_head_dim", "cla_share_factor", "class_num", "dense_list", "enable_lm_head_fp32", "eod_token_id",
    "im_end_id", "im_newline_id", "im_start_id", "image_token_id", "mask_init_id", "moe_drop_tokens",
    "moe_random_routing_dropped_token", "num_media_embeds", "org_vocab_size", "pool_type", "skip_cls_token",
    "text_end_id", "text_start_id", "video_end_id", "video_start_id", "xdrope_section",
    # Of an image encoder that these language models are published without.
    "anyres_pooling_size", "anyres_vit_max_image_size", "anyres_vit_two_views", "vit_add_patchemb_bias",
    "vit_input_resolution", "vit_mapping_type", "vit_norm_type", "vit_patch", "vit_remove_prenorm", "vit_token",
    "vit_used_rms_norm",
)  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_classification_head": (False,),
    "group_limited_greedy": (False,),
    "kv_lora_rank": (None,),
    "mlp_bias": (False,),
    "moe_layer_num_skipped": (0,),
    "n_group": (False, None),
    "norm_topk_prob": (True,),
    "norm_type": ("hf_rms", "rms"),
    "position_embedding_xdrope": (False,),
    "q_lora_rank": (None,),
    "qk_nope_head_dim": (None,),
    "qk_rope_head_dim": (None,),
    "routed_scaling_factor": (False, 1.0),
    "topk_group": (False, None),
    "use_cla": (False,),
    "use_mixed_mlp_moe": (True,),
    "use_mla": (False,),
    "use_qk_norm": (True,),
    "use_rotary_pos_emb": (True,),
    "v_head_dim": (None,),
    "vit_path": (None,),
    "vit_type": (None,),
}
"""Fields of the code that came with the files, at the values that transformers' class stands for."""
_READ: dict[str, Any] = {"ignored": _IGNORED, "rotary_in_base": frozenset({"dynamic"})}

HUNYUAN_V1_DENSE = decoders.like_llama(
    "hunyuan_v1_dense",
    _dense,
    _COMMON,
    _LAYOUT + decoders.MLP,
    neutral=_NEUTRAL | {"num_experts": (1,), "use_mixed_mlp_moe": (False,)},
    **_READ,
)
HUNYUAN_V1_MOE = decoders.like_llama(
    "hunyuan_v1_moe",
    _moe,
    _COMMON | {"num_experts": 1, "moe_topk": 1, "moe_intermediate_size": None, "num_shared_expert": None},
    _LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate.wg", "shared_mlp"),
    aliases={"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    neutral=_NEUTRAL,
    **_READ,
)
