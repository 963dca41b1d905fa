"""Granite: Llama with factors on embedding, scores, residuals and logits (arXiv:2408.13359), and its kin.

GraniteMoE has mixtures, GraniteMoE-shared an expert beside them that sees every token; both Granite-SWA have windows,
sinks, and a rotary base a layer. HyperCLOVA X has the factors and a norm after each mixer too (arXiv:2506.22403).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.interop import decoders
from planner.interop.base import LayoutRule, Reader, positive, refusal

Mixers = Callable[[Reader, dict[str, Any]], list[dict[str, Any]]]


def _alike(reader: Reader, common: dict[str, Any]) -> list[dict[str, Any]]:
    """The same attention in every layer."""
    return [decoders.attention(reader, **common)] * reader.integer("num_hidden_layers")


def _with_sinks(reader: Reader, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Attention with sinks and, but for every fourth layer, a window; a base of zero leaves a layer unrotated."""
    window = reader.optional_integer("sliding_window")
    windowed = decoders.windowed_layers(reader, lambda index: index % 4 != 0)
    theta, bases = reader.rope_theta(), reader.value("layer_rope_theta")
    if bases is None:
        bases = [theta] * len(windowed)
    if not isinstance(bases, list) or len(bases) < len(windowed):
        raise refusal("layer_rope_theta", f"A list of {len(windowed)} numbers is expected.", "Write one a layer.")
    return [
        decoders.attention(
            reader,
            sliding_window=window if used else None,
            sinks=True,
            rope_share=1.0 if base else 0.0,
            rope_theta=positive("layer_rope_theta", base) if base and base != theta else None,
            **common,
        )
        for used, base in zip(windowed, bases, strict=False)
    ]


def _model(
    reader: Reader, channel_mixer: dict[str, Any], mixers: Mixers = _alike, divides: bool = True, **layer: Any
) -> dict[str, Any]:
    """A model whose logits are divided by ``logits_scaling``, or multiplied (HyperCLOVA X)."""
    scale = decoders.head_sizes(reader)[2] ** -0.5
    if divides or reader.value("attention_multiplier") is not None:
        scale = reader.number("attention_multiplier")
    common = decoders.biases(reader) | {"softmax_scale": scale}
    return decoders.decoder(
        reader,
        [{"sequence_mixer": mixer, "channel_mixer": channel_mixer, **layer} for mixer in mixers(reader, common)],
        embedding_scale=decoders.factor(reader, "embedding_multiplier"),
        residual_multiplier=decoders.factor(reader, "residual_multiplier"),
        logit_scale=decoders.factor(reader, "logits_scaling", inverse=divides),
    )


def _dense(mixers: Mixers) -> Callable[[Reader], dict[str, Any]]:
    def build(reader: Reader) -> dict[str, Any]:
        return _model(reader, decoders.gated_mlp(reader, bias=reader.flag("mlp_bias")), mixers)

    return build


def _mixture(shared: bool, mixers: Mixers) -> Callable[[Reader], dict[str, Any]]:
    def build(reader: Reader) -> dict[str, Any]:
        width = reader.integer("shared_intermediate_size", least=0) if shared else 0
        mixture = decoders.mixture(reader, "num_local_experts", shared_intermediate_size=width or None)
        return _model(reader, mixture, mixers)

    return build


def _hyperclovax(reader: Reader) -> dict[str, Any]:
    decoders.divided(reader)
    mlp = decoders.gated_mlp(reader, bias=reader.flag("mlp_bias"))
    placement = "sandwich" if reader.flag("use_post_norm") else "pre"
    return _model(reader, mlp, divides=False, norm_placement=placement)


_FACTORS: dict[str, Any] = {
    "attention_bias": False,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
}
_DENSE = _FACTORS | {"mlp_bias": False}
_MOE = _FACTORS | {"num_local_experts": 8, "num_experts_per_tok": 2}
_SWA: dict[str, Any] = {"sliding_window": 128, "layer_types": None, "layer_rope_theta": None}
_SINKS = (LayoutRule("model.layers.{layer}.self_attn.sinks", ("layers.{layer}.sequence_mixer.sinks",)),)
_MOE_LAYOUT = (
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.block_sparse_moe", "router", shared=None)
)
_SHARED_LAYOUT = (
    _MOE_LAYOUT
    + decoders.fused("shared_mlp.input_linear", *(f"channel_mixer.shared_expert.{p}_proj" for p in ("gate", "up")))
    + decoders.fused("shared_mlp.output_linear", "channel_mixer.shared_expert.down_proj")
)

GRANITE = decoders.like_llama("granite", _dense(_alike), _DENSE)
GRANITEMOE = decoders.like_llama("granitemoe", _mixture(False, _alike), _MOE, _MOE_LAYOUT)
GRANITEMOESHARED = decoders.like_llama(
    "granitemoeshared", _mixture(True, _alike), _MOE | {"shared_intermediate_size": 0}, _SHARED_LAYOUT
)
GRANITE_SWA = decoders.like_llama(
    "granite_swa",
    _dense(_with_sinks),
    _DENSE
    | _SWA
    | {
        "vocab_size": 100352,
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    decoders.LLAMA_LAYOUT + _SINKS,
)
GRANITEMOE_SWA = decoders.like_llama(
    "granitemoe_swa",
    _mixture(True, _with_sinks),
    _MOE | _SWA | {"shared_intermediate_size": 0},
    _SHARED_LAYOUT + _SINKS,
)
HYPERCLOVAX = decoders.like_llama(
    "hyperclovax",
    _hyperclovax,
    _DENSE | {"attention_multiplier": None, "use_post_norm": True},
    decoders.OUTER
    + decoders.layer_norms(
        sequence_norm="input_layernorm",
        sequence_post_norm="post_norm1",
        channel_norm="post_attention_layernorm",
        channel_post_norm="post_norm2",
    )
    + decoders.ATTENTION
    + decoders.MLP,
)
