"""Qwen3-Next and Qwen3.5: gated delta nets in most layers, attention with a gate on its output in every fourth.

Gated delta net: arXiv:2412.06464; gated attention: arXiv:2505.06708. Qwen3-Next interleaves what it fuses, head of keys
by head of keys. Qwen3.5's positions have three coordinates, which are one and the same where there is only text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, LayoutRule, Reader, rules

KINDS = ("full_attention", "linear_attention")


def _mixers(reader: Reader) -> list[dict[str, Any]]:
    """The sequence mixer of every layer."""
    attention = layouts.attention(reader, query_key_norm="head", output_gate="elementwise", **decoders.biases(reader))
    linear = {
        "kind": "gated_delta_net",
        "num_key_heads": reader.integer("linear_num_key_heads"),
        "num_value_heads": reader.integer("linear_num_value_heads"),
        "key_head_dim": reader.integer("linear_key_head_dim"),
        "value_head_dim": reader.integer("linear_value_head_dim"),
        "conv_kernel": reader.integer("linear_conv_kernel_dim"),
        "activation": reader.activation("hidden_act"),
    }
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is not None:
        whole = [kind == "full_attention" for kind in reader.strings("layer_types", count, KINDS)]
    else:
        interval = reader.integer("full_attention_interval")
        whole = [(index + 1) % interval == 0 for index in range(count)]
    return [attention if is_whole else linear for is_whole in whole]


def _mixture(reader: Reader, normalized: bool) -> dict[str, Any]:
    return {
        "kind": "moe",
        "num_experts": reader.integer("num_experts", least=0),
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("moe_intermediate_size"),
        "shared_intermediate_size": reader.integer("shared_expert_intermediate_size"),
        "shared_expert_gate": True,
        "activation": reader.activation("hidden_act"),
        "normalize_weights": normalized,
    }


def _model(reader: Reader, channels: list[dict[str, Any]]) -> dict[str, Any]:
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": channel}
        for mixer, channel in zip(_mixers(reader), channels, strict=True)
    ]
    norm = {"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps"), "zero_centered": True}
    return decoders.decoder(reader, layers, norm=norm)


def _next(reader: Reader) -> dict[str, Any]:
    mixture, dense = _mixture(reader, reader.flag("norm_topk_prob")), decoders.gated_mlp(reader)
    sparse = layouts.sparse_steps(reader, mixture["num_experts"])
    return _model(reader, [mixture if is_sparse else dense for is_sparse in sparse])


def _dense(reader: Reader) -> dict[str, Any]:
    return _model(reader, [decoders.gated_mlp(reader)] * reader.integer("num_hidden_layers"))


def _sparse(reader: Reader) -> dict[str, Any]:
    return _model(reader, [_mixture(reader, True)] * reader.integer("num_hidden_layers"))


_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "head_dim": 256,
    "attention_bias": False,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "layer_types": None,
    "full_attention_interval": 4,
}
_MIXTURE: dict[str, Any] = {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}

_LAYER, _OURS = "model.layers.{layer}.", "layers.{layer}.sequence_mixer."
_ATTENTION = {"k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "o_proj"} | decoders.HEAD_NORMS
_LINEAR = {
    "conv1d.weight": "conv1d.weight",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "norm.weight": "norm.weight",
    "o_proj.weight": "out_proj.weight",
}


def _joined(theirs: str, *ours: str, by: str | None = None, kind: str = "gated_delta_net") -> tuple[LayoutRule, ...]:
    """One of their projections that holds several of ours, block by block where a field ``by`` counts blocks."""
    return layouts.both(f"{_LAYER}{theirs}", *(f"{_OURS}{name}" for name in ours), interleaved_by=by, kind=kind)


_COMMON = (
    decoders.OUTER
    + decoders.PRE_NORMS
    + _joined("self_attn.q_proj", "q_proj", "gate_proj", by="num_attention_heads", kind="attention")
    + rules(f"{_LAYER}self_attn.", _OURS, _ATTENTION, kind="attention")
    + rules(f"{_LAYER}linear_attn.", _OURS, _LINEAR, kind="gated_delta_net")
)
_GROUPED = _joined("linear_attn.in_proj_qkvz", "q_proj", "k_proj", "v_proj", "gate_proj", by="num_key_heads") + _joined(
    "linear_attn.in_proj_ba", "beta_proj", "decay_proj", by="num_key_heads"
)
_SEPARATE = (
    _joined("linear_attn.in_proj_qkv", "q_proj", "k_proj", "v_proj")
    + _joined("linear_attn.in_proj_z", "gate_proj")
    + _joined("linear_attn.in_proj_b", "beta_proj")
    + _joined("linear_attn.in_proj_a", "decay_proj")
)
_EXPERTS = (
    decoders.mixture_rules("model.layers.{layer}.mlp", "gate", shared="shared_expert") + layouts.SHARED_EXPERT_GATE
)

# What published files have beside the class's fields: the number of windowed layers of a model without windows, how
# states are kept, and layers that predict further tokens.
_IGNORED = ("max_window_layers", "mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
_NOTES = {"mtp_num_hidden_layers": layouts.PREDICTION_NOTES["num_nextn_predict_layers"]}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_output_gate": (True,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
}


def _family(
    model_type: str,
    build: Callable[[Reader], dict[str, Any]],
    defaults: dict[str, Any],
    layout: tuple[LayoutRule, ...],
    ignored: tuple[str, ...] = (),
    **extra: Any,
) -> Adapter:
    return decoders.like_llama(
        model_type, build, _DEFAULTS | defaults, _COMMON + layout, ignored=_IGNORED + ignored, notes=_NOTES, **extra
    )


QWEN3_NEXT = _family(
    "qwen3_next",
    _next,
    _MIXTURE
    | {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "decoder_sparse_step": 1,
        "num_experts_per_tok": 10,
        "num_experts": 512,
        "norm_topk_prob": True,
        "mlp_only_layers": None,
    },
    _GROUPED + _EXPERTS + decoders.MLP,
    neutral=_NEUTRAL,
)
QWEN3_5_TEXT = _family(
    "qwen3_5_text",
    _dense,
    {"vocab_size": 248320, "intermediate_size": 12288, "num_key_value_heads": 4},
    _SEPARATE + decoders.MLP,
    neutral=_NEUTRAL | {"mlp_only_layers": ([], None)},
)
QWEN3_5_MOE_TEXT = _family(
    "qwen3_5_moe_text",
    _sparse,
    _MIXTURE
    | {
        "vocab_size": 248320,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 8,
        "num_experts": 256,
    },
    _SEPARATE + _EXPERTS,
    absent=("intermediate_size",),
    ignored=("intermediate_size",),  # there is no dense layer
    neutral=_NEUTRAL | {"mlp_only_layers": ([], None), "norm_topk_prob": (True,)},
)
