"""Bamba: Mamba-2 in most layers and attention that rotates half of each head in a few, a gated MLP in each.

ibm-ai-platform/Bamba-9B-v1; Mamba-2 is arXiv:2405.21060.
"""

from __future__ import annotations

import math
from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, refusal, rules
from planner.interop.families.mamba import MAMBA2_TENSORS, time_step_limits

ROTATED_SHARE = 0.5
"""transformers sets it, whatever a file says beside ``rope_parameters``."""


def mamba2(reader: Reader, inner: int | None = None, **extra: Any) -> dict[str, Any]:
    """Mamba-2 by the names of fields that Bamba gave them, as plain data; ``inner`` channels, else by the expansion."""
    heads = reader.integer("mamba_n_heads")
    inner = inner or reader.integer("mamba_expand") * reader.integer("hidden_size")
    if inner % heads:
        raise refusal("mamba_n_heads", f"It does not divide {inner} channels.", f"Choose a divisor of {inner}.")
    if reader.value("mamba_d_head") != "auto" and reader.integer("mamba_d_head") * heads != inner:
        raise refusal(
            "mamba_d_head",
            f"{heads} heads of this size are not {inner} channels.",
            f"Write {inner // heads}, or auto.",
        )
    return {
        "kind": "mamba2",
        "num_heads": heads,
        "head_dim": inner // heads,
        "state_size": reader.integer("mamba_d_state"),
        "n_groups": reader.integer("mamba_n_groups"),
        "conv_kernel": reader.integer("mamba_d_conv"),
        "chunk_size": reader.integer("mamba_chunk_size"),
        "activation": reader.activation("hidden_act"),
        "use_bias": layouts.truth(reader, "mamba_proj_bias"),
        "use_conv_bias": layouts.truth(reader, "mamba_conv_bias"),
        **time_step_limits(reader),
        **extra,
    }


MAMBA2_DEFAULTS: dict[str, Any] = {
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "time_step_limit": (0.0, math.inf),
}
MAMBA2_LAYOUT = rules("model.layers.{layer}.mamba.", "layers.{layer}.sequence_mixer.", MAMBA2_TENSORS)


def attention(reader: Reader, **extra: Any) -> dict[str, Any]:
    """Attention without rotation, whose heads may have any size, as plain data."""
    heads = reader.integer("num_attention_heads")
    head_dim = reader.optional_integer("head_dim") or reader.integer("hidden_size") // heads
    if head_dim < 1:
        raise refusal("num_attention_heads", "More heads than channels.", "Lower it, or set head_dim.")
    return {
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": reader.optional_integer("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "rope_share": 0.0,
        **extra,
    }


def _build(reader: Reader) -> dict[str, Any]:
    if reader.value("partial_rotary_factor") != ROTATED_SHARE:
        raise refusal(
            "partial_rotary_factor",
            "transformers rotates half of Bamba's channels, whatever this field says.",
            "Write 0.5, or say it in rope_parameters.",
        )
    own = attention(reader, **decoders.biases(reader))
    own["rope_share"] = reader.rope_share(own["head_dim"])
    mixer = mamba2(reader)
    chosen = set(reader.integers("attn_layer_indices"))
    channel = decoders.gated_mlp(reader, bias=reader.flag("mlp_bias"))
    layers = [
        {"sequence_mixer": own if index in chosen else mixer, "channel_mixer": channel}
        for index in range(reader.integer("num_hidden_layers"))
    ]
    return decoders.decoder(reader, layers)


BAMBA = decoders.like_llama(
    "bamba",
    _build,
    MAMBA2_DEFAULTS
    | {
        "vocab_size": 128000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "attn_layer_indices": None,
        "partial_rotary_factor": ROTATED_SHARE,
    },
    (
        LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
        LayoutRule("model.final_layernorm.weight", ("final_norm.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        *decoders.layer_norms(sequence_norm="input_layernorm", channel_norm="pre_ff_layernorm"),
        *decoders.ATTENTION,
        *MAMBA2_LAYOUT,
        *rules("model.layers.{layer}.feed_forward.", "layers.{layer}.channel_mixer.", decoders.GATED_MLP),
    ),
    # The number of rotated channels, which transformers does not read, and a term of the loss.
    ignored={"attn_rotary_emb", "num_logits_to_keep", "use_mamba_kernels", "z_loss_coefficient"},
    neutral={"sliding_window": (None,)},
)
