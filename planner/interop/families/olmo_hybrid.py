"""OLMo Hybrid: gated delta nets with norms before them in most layers, OLMo 3's attention in every fourth.

The published models rotate nothing, which they say with a rotary base of null. The delta rule's strength reaches 2
(arXiv:2411.12537); the gated delta net is arXiv:2412.06464.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Reader, refusal, rules

OUTPUT_NORM_EPSILON = 1e-5
"""Of the norm over each head's output; transformers sets it, whatever ``rms_norm_eps`` is."""
KINDS = ("full_attention", "linear_attention")


def _linear(reader: Reader) -> dict[str, Any]:
    """The gated delta net, as plain data; what is not written follows from the heads of attention."""
    heads = reader.integer("num_attention_heads")
    key_heads = reader.optional_integer("linear_num_key_heads") or heads
    key_head_dim = reader.optional_integer("linear_key_head_dim")
    if key_head_dim is None:
        key_head_dim = int(0.75 * reader.integer("hidden_size") / key_heads)
        if key_head_dim < 1:
            raise refusal("linear_num_key_heads", "More heads of keys than channels.", "Set linear_key_head_dim.")
    return {
        "kind": "gated_delta_net",
        "num_key_heads": key_heads,
        "num_value_heads": reader.optional_integer("linear_num_value_heads") or heads,
        "key_head_dim": key_head_dim,
        "value_head_dim": reader.optional_integer("linear_value_head_dim") or 2 * key_head_dim,
        "conv_kernel": reader.integer("linear_conv_kernel_dim"),
        "activation": reader.activation("hidden_act"),
        "negative_eigenvalues": reader.flag("linear_allow_neg_eigval"),
        "norm_epsilon": OUTPUT_NORM_EPSILON,
    }


def _are_whole(reader: Reader) -> list[bool]:
    """Whether each layer has attention: every fourth, and the last where there are fewer than four."""
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is None:
        whole = [index % 4 == 3 for index in range(count)]
        whole[-1] |= not any(whole)
    else:
        whole = [kind == "full_attention" for kind in reader.strings("layer_types", count, KINDS)]
    if all(whole) or not any(whole):
        raise refusal("layer_types", "transformers wants layers of both kinds.", f"Write {' and '.join(KINDS)}.")
    return whole


def _build(reader: Reader) -> dict[str, Any]:
    channel = decoders.gated_mlp(reader)
    attention = decoders.attention(reader, query_key_norm="projection", **decoders.biases(reader))
    layers: dict[bool, dict[str, Any]] = {
        True: {"sequence_mixer": attention, "channel_mixer": channel, "norm_placement": "post"},
        False: {"sequence_mixer": _linear(reader), "channel_mixer": channel},
    }
    return layouts.model(
        reader,
        [layers[is_whole] for is_whole in _are_whole(reader)],
        norm={"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps")},
        positions=layouts.rotary(reader) if reader.has_rope_theta() else {"kind": "none"},
    )


_LINEAR = {
    **{f"{name}.weight": f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "conv1d")},
    "gate_proj.weight": "g_proj.weight",
    "beta_proj.weight": "b_proj.weight",
    "decay_proj.weight": "a_proj.weight",
    "norm.weight": "o_norm.weight",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
}
_OURS = "layers.{layer}.sequence_mixer."
OLMO_HYBRID = decoders.like_llama(
    "olmo_hybrid",
    _build,
    {
        "vocab_size": 100352,
        "hidden_size": 3840,
        "num_attention_heads": 30,
        "attention_bias": False,
        "rope_theta": 10_000.0,
        "layer_types": None,
        "linear_num_key_heads": None,
        "linear_num_value_heads": None,
        "linear_key_head_dim": None,
        "linear_value_head_dim": None,
        "linear_conv_kernel_dim": 4,
        "linear_allow_neg_eigval": True,
    },
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.POST_NORMS
    + decoders.MLP
    + rules("model.layers.{layer}.self_attn.", _OURS, decoders.LLAMA_ATTENTION | decoders.HEAD_NORMS, kind="attention")
    + rules("model.layers.{layer}.linear_attn.", _OURS, _LINEAR, kind="gated_delta_net"),
    # How decays and time steps are initialized.
    ignored=("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor"),
)
