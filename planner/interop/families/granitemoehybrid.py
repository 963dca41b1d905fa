"""Granite 4: Mamba-2 or attention by layer, a mixture beside a shared expert (or that alone) in each.

ibm-granite/granite-4.0-h-small and its kin; the factors are Granite's (arXiv:2408.13359).
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal, shown
from planner.interop.families.bamba import MAMBA2_DEFAULTS, MAMBA2_LAYOUT, attention, mamba2

_IS_ATTENTION = {"mamba": False, "linear_attention": False, "attention": True, "full_attention": True}


def _is_attention(reader: Reader) -> list[bool]:
    """Whether each layer has attention; without a list none has."""
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is None:
        return [False] * count
    return [_IS_ATTENTION[kind] for kind in reader.strings("layer_types", count, tuple(_IS_ATTENTION))]


def _channel_mixer(reader: Reader) -> dict[str, Any]:
    experts = reader.integer("num_local_experts", least=0)
    if experts == 0:
        return decoders.gated_mlp(reader, "shared_intermediate_size")
    return decoders.mixture(
        reader, "num_local_experts", shared_intermediate_size=reader.integer("shared_intermediate_size")
    )


def _build(reader: Reader) -> dict[str, Any]:
    scale = {"softmax_scale": reader.number("attention_multiplier"), **decoders.biases(reader)}
    encoding = reader.value("position_embedding_type")
    if encoding not in (None, "nope", "rope"):
        raise refusal("position_embedding_type", f"{shown(encoding)} is not known.", "Write rope, or nope for none.")
    rotated = encoding == "rope"
    own = decoders.attention(reader, **scale) if rotated else attention(reader, **scale)
    mixer, channel = mamba2(reader), _channel_mixer(reader)
    layers = [
        {"sequence_mixer": own if is_attention else mixer, "channel_mixer": channel}
        for is_attention in _is_attention(reader)
    ]
    own_positions: dict[str, Any] = {} if rotated else {"positions": {"kind": "none"}}
    return decoders.decoder(
        reader,
        layers,
        **own_positions,
        embedding_scale=decoders.factor(reader, "embedding_multiplier"),
        residual_multiplier=decoders.factor(reader, "residual_multiplier"),
        logit_scale=decoders.factor(reader, "logits_scaling", inverse=True),
    )


def _shared(ours: str) -> tuple[Any, ...]:
    """The gated MLP that every token passes, under our name of it."""
    halves = (f"{ours}.gate_proj", f"{ours}.up_proj")
    return decoders.fused("shared_mlp.input_linear", *halves) + decoders.fused(
        "shared_mlp.output_linear", f"{ours}.down_proj"
    )


GRANITEMOEHYBRID = decoders.like_llama(
    "granitemoehybrid",
    _build,
    MAMBA2_DEFAULTS
    | {
        "attention_bias": False,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "position_embedding_type": None,
        "layer_types": None,
    },
    (
        *decoders.OUTER,
        *decoders.PRE_NORMS,
        *decoders.ATTENTION,
        *MAMBA2_LAYOUT,
        *decoders.mixture_rules("model.layers.{layer}.block_sparse_moe", "router", shared=None),
        *_shared("channel_mixer.shared_expert"),
        *_shared("channel_mixer"),
    ),
    aliases={"layers_block_type": "layer_types"},
    # How the weights were made, and how many logits a prompt gives.
    ignored={"init_method", "logits_to_keep", "use_mamba_kernels"},
    neutral={"normalization_function": ("rmsnorm",), "mlp_bias": (False,), "sliding_window": (None,)},
)
