"""LFM2: gated short convolutions in most layers, grouped-query attention in a few (arXiv:2511.23404)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, positive, refusal, rules, shown

AS_WIDE = ("block_dim", "conv_dim", "conv_dim_out")
"""Fields of published files that transformers leaves unread, having only models where they are ``hidden_size``."""

BASE = 1_000_000.0
"""Rotary base where a file has none."""


def _feed_forward_width(reader: Reader) -> int:
    """Width of the MLP: two thirds of what is written, scaled, in whole multiples, unless it stands as it is."""
    width = reader.integer("intermediate_size")
    if not reader.flag("block_auto_adjust_ff_dim"):
        return width
    width = int(2 * width / 3)
    if reader.value("block_ffn_dim_multiplier") is not None:
        multiple = reader.integer("block_multiple_of")
        widened = positive("block_ffn_dim_multiplier", reader.number("block_ffn_dim_multiplier") * width)
        width = multiple * -(-int(widened) // multiple)
    if width < 1:
        raise refusal("intermediate_size", "Two thirds of it leave no channel.", "Write at least 2.", "too_small")
    return width


def _is_attention(reader: Reader) -> list[bool]:
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is not None:
        return [kind == "full_attention" for kind in reader.strings("layer_types", count, ("full_attention", "conv"))]
    if reader.value("full_attn_idxs") is None:
        return [True] * count
    chosen = reader.integers("full_attn_idxs")
    return [index in chosen for index in range(count)]


def mixers(reader: Reader) -> list[dict[str, Any]]:
    """The sequence mixer of every layer."""
    for name in AS_WIDE:
        if reader.value(name) not in (None, reader.integer("hidden_size")):
            raise refusal(name, f"{shown(reader.value(name))} is not hidden_size.", "Write hidden_size, or remove it.")
    attention = decoders.attention(reader, query_key_norm="head")
    convolution = {
        "kind": "short_convolution",
        "conv_kernel": reader.integer("conv_L_cache"),
        "use_bias": reader.flag("conv_bias"),
    }
    return [attention if is_attention else convolution for is_attention in _is_attention(reader)]


def _build(reader: Reader) -> dict[str, Any]:
    channel = {"kind": "mlp", "intermediate_size": _feed_forward_width(reader)}
    layers = [{"sequence_mixer": mixer, "channel_mixer": channel} for mixer in mixers(reader)]
    return decoders.decoder(
        reader,
        layers,
        positions=layouts.rotary(reader, default=BASE),
        norm={"kind": "rms_norm", "epsilon": reader.number("norm_eps")},
    )


DEFAULTS: dict[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_key_value_heads": 8,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "layer_types": None,
    "full_attn_idxs": None,
    **dict.fromkeys(AS_WIDE),
}
ABSENT = ("hidden_act", "rms_norm_eps")
IGNORED = frozenset(
    {
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_xavier_init",
        "conv_use_xavier_init",
        "num_heads",
        "theta",
    }
)
"""How the weights were made, and other names of fields that transformers reads under its own."""
NEUTRAL = {"block_use_swiglu": (True,), "use_pos_enc": (True,)}

_LAYER, _OURS = "model.layers.{layer}.", "layers.{layer}."
_ATTENTION = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "o_proj": "out_proj",
    "q_norm": "q_layernorm",
    "k_norm": "k_layernorm",
}
_CONVOLUTION = {"conv1d": "conv", "in_proj": "in_proj", "out_proj": "out_proj"}
_MLP = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
LAYOUT = (
    LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
    LayoutRule("model.embedding_norm.weight", ("final_norm.weight",)),
    LayoutRule("lm_head.weight", ("lm_head.weight",)),
    *rules(_LAYER, _OURS, {"sequence_norm": "operator_norm", "channel_norm": "ffn_norm"}),
    *rules(f"{_LAYER}self_attn.", f"{_OURS}sequence_mixer.", _ATTENTION),
    *rules(f"{_LAYER}conv.", f"{_OURS}sequence_mixer.", _CONVOLUTION),
    *rules(f"{_LAYER}feed_forward.", f"{_OURS}channel_mixer.", _MLP),
)

LFM2 = decoders.like_llama(
    "lfm2",
    _build,
    DEFAULTS
    | {
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    LAYOUT,
    absent=ABSENT,
    ignored=IGNORED,
    aliases={"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
    neutral=NEUTRAL,
)
