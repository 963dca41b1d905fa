"""Granite: Llama with factors on embedding, scores, residuals and logits (arXiv:2408.13359); mixtures in GraniteMoE.

GraniteMoE-shared adds an expert that sees every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader


def _model(reader: Reader, channel_mixer: dict[str, Any]) -> dict[str, Any]:
    scale = reader.number("attention_multiplier")
    layer = {
        "sequence_mixer": decoders.attention(reader, softmax_scale=scale, **decoders.biases(reader)),
        "channel_mixer": channel_mixer,
    }
    return decoders.decoder(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        embedding_scale=decoders.factor(reader, "embedding_multiplier"),
        residual_multiplier=decoders.factor(reader, "residual_multiplier"),
        logit_scale=decoders.factor(reader, "logits_scaling", inverse=True),
    )


def _granite(reader: Reader) -> dict[str, Any]:
    return _model(reader, decoders.gated_mlp(reader, bias=reader.flag("mlp_bias")))


def _mixture(shared: bool) -> Callable[[Reader], dict[str, Any]]:
    def build(reader: Reader) -> dict[str, Any]:
        width = reader.integer("shared_intermediate_size", least=0) if shared else 0
        mixture = decoders.mixture(reader, "num_local_experts", shared_intermediate_size=width or None)
        return _model(reader, mixture)

    return build


_FACTORS: dict[str, Any] = {
    "attention_bias": False,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
}
_MOE = _FACTORS | {"num_local_experts": 8, "num_experts_per_tok": 2}
_MOE_LAYOUT = (
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.mixture_rules("model.layers.{layer}.block_sparse_moe", "router", shared=None)
)

GRANITE = decoders.like_llama("granite", _granite, _FACTORS | {"mlp_bias": False})
GRANITEMOE = decoders.like_llama("granitemoe", _mixture(shared=False), _MOE, _MOE_LAYOUT)
GRANITEMOESHARED = decoders.like_llama(
    "granitemoeshared",
    _mixture(shared=True),
    _MOE | {"shared_intermediate_size": 0},
    _MOE_LAYOUT
    + decoders.fused("shared_mlp.input_linear", *(f"channel_mixer.shared_expert.{p}_proj" for p in ("gate", "up")))
    + decoders.fused("shared_mlp.output_linear", "channel_mixer.shared_expert.down_proj"),
)
