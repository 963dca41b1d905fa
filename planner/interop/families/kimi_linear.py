"""Kimi Linear (arXiv:2510.26692): Kimi Delta Attention in most layers, latent attention without rotation in a few.

``moonshotai/Kimi-Linear-48B-A3B-Instruct`` keeps the fields of its linear attention in a mapping of their own,
``linear_attn_config``, and there counts layers from one.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Reader, refusal, rules

_INNER = {"full_attn_layers": None, "kda_layers": None, "head_dim": None, "num_heads": None}
_INNER |= {"short_conv_kernel_size": None}


def _is_linear(reader: Reader, inner: Reader) -> list[bool]:
    """Whether each layer has linear attention: as either list says, else all but every fourth after the first."""
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is not None:
        kinds = reader.strings("layer_types", count, ("full_attention", "linear_attention"))
        return [kind == "linear_attention" for kind in kinds]
    full, linear = (f"linear_attn_config.{name}" for name in ("full_attn_layers", "kda_layers"))
    if inner.value(full) is None or inner.value(linear) is None:
        return [index == 0 or index % 4 != 0 for index in range(count)]
    chosen = inner.integers(linear)
    if sorted(inner.integers(full) + chosen) != list(range(1, count + 1)):
        raise refusal(
            full, "These layers and kda_layers together are not each layer once.", f"Write 1 to {count} between them."
        )
    return [index + 1 in chosen for index in range(count)]


def _within(reader: Reader, inner: Reader, name: str, theirs: str) -> int:
    """A field of linear attention: that of the mapping where it has one."""
    own = f"linear_attn_config.{theirs}"
    return reader.integer(name) if inner.value(own) is None else inner.integer(own)


def _build(reader: Reader) -> dict[str, Any]:
    inner = layouts.nested(reader, "linear_attn_config", _INNER)
    is_linear = _is_linear(reader, inner)
    head_dim = _within(reader, inner, "linear_head_dim", "head_dim")
    delta = {
        "kind": "kimi_delta_attention",
        "num_heads": _within(reader, inner, "linear_num_heads", "num_heads"),
        "head_dim": head_dim,
        "gate_rank": head_dim,
        "conv_kernel": _within(reader, inner, "linear_conv_kernel_dim", "short_conv_kernel_size"),
        "activation": reader.activation("hidden_act"),
    }
    latent = layouts.latent_attention(
        reader, rotated=False, softmax_scale=None, latent_norm_epsilon=layouts.latent_epsilon(reader)
    )
    first = reader.integer("first_k_dense_replace", least=0)
    is_sparse = decoders.sparse_layers(reader, lambda index: index >= first)
    dense = decoders.gated_mlp(reader)
    mixture = layouts.sigmoid_mixture(reader, of="num_local_experts") if any(is_sparse) else {}
    layers = [
        {"sequence_mixer": delta if linear else latent, "channel_mixer": mixture if sparse else dense}
        for linear, sparse in zip(is_linear, is_sparse, strict=True)
    ]
    # transformers gives the head a matrix of its own, whatever tie_word_embeddings says.
    return decoders.decoder(reader, layers, theta=1.0, positions={"kind": "none"}, tie_word_embeddings=False)


_THEIRS, _OURS = "model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer."
_DELTA = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "conv1d": "conv1d",
    "decay_a_proj": "forget_gate.f_a_proj",
    "decay_b_proj": "forget_gate.f_b_proj",
    "dt_bias": "forget_gate.dt_bias",
    "A_log": "forget_gate.A_log",
    "beta_proj": "b_proj",
    "gate_a_proj": "g_a_proj",
    "gate_b_proj": "g_b_proj",
    "norm": "o_norm",
    "o_proj": "o_proj",
}

KIMI_LINEAR = decoders.like_llama(
    "kimi_linear",
    _build,
    {
        "vocab_size": 163840,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_hidden_layers": 27,
        "n_shared_experts": 1,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.446,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "attention_bias": False,
        "rms_norm_eps": 1e-5,
        "layer_types": None,
        "mlp_layer_types": None,
        "first_k_dense_replace": 1,
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
        "linear_attn_config": None,
    },
    (
        *decoders.OUTER,
        *decoders.PRE_NORMS,
        *rules(_THEIRS, _OURS, _DELTA, kind="kimi_delta_attention"),
        *rules(_THEIRS, _OURS, layouts.LATENT_ATTENTION, kind="latent_attention"),
        *decoders.MLP,
        *decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    ),
    absent=("num_key_value_heads", "head_dim", "rope_parameters", "rope_theta"),
    aliases={
        "num_experts": "num_local_experts",
        "num_experts_per_token": "num_experts_per_tok",
        "num_shared_experts": "n_shared_experts",
        "num_expert_group": "n_group",
        "moe_renormalize": "norm_topk_prob",
    },
    # Nothing is rotated, latent attention has no KV heads, and transformers makes head_dim of the others.
    ignored={
        "head_dim",
        "model_max_length",
        "num_nextn_predict_layers",
        "num_key_value_heads",
        "qk_head_dim",
        "rope_parameters",
        "rope_theta",
        "use_grouped_topk",
    },
    neutral={"mla_use_nope": (True,), "moe_layer_freq": (1,), "moe_router_activation_func": ("sigmoid",)},
    notes=layouts.PREDICTION_NOTES,
)
