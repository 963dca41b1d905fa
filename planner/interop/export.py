"""Hugging Face configurations from specifications, for decoders of equal layers: Llama and its kin.

A configuration is written for each family that might express the specification and read back by the family's adapter;
the first that gives the very same specification is the answer. So what is exported is what would be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.components import MLP, Attention, MoE, RMSNorm
from planner.errors import PlannerError, UnsupportedArchitecture
from planner.interop import from_huggingface
from planner.spec import ArchitectureSpec, RotaryPositions

ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def to_huggingface(spec: ArchitectureSpec) -> dict[str, Any]:
    """The ``config.json`` of a specification, in the family of Llama, Mistral, Mixtral, Qwen2 or Qwen3.

    Raises
    ------
    UnsupportedArchitecture
        where none of these families can express the specification.
    """
    for config in _candidates(spec):
        try:
            back = from_huggingface(config)
        except PlannerError:
            continue  # this family cannot say it
        if back.content_hash() == spec.content_hash():
            return config
    raise UnsupportedArchitecture.of(
        "No family of Hugging Face configurations that can be written here expresses this design.",
        path="layer_groups",
        remedy="Export it as YAML or JSON instead. Written are llama, mistral, mixtral, qwen2 and qwen3.",
        code="no_family",
    )


def _candidates(spec: ArchitectureSpec) -> Iterator[dict[str, Any]]:
    layers = {layer for group in spec.layer_groups for layer in group.layers}
    if len(layers) != 1 or not isinstance(spec.positions, RotaryPositions) or not isinstance(spec.norm, RMSNorm):
        return
    (layer,) = layers
    attention, channel = layer.sequence_mixer, layer.channel_mixer
    if not isinstance(attention, Attention) or not isinstance(channel, (MLP, MoE)):
        return
    if channel.activation not in ACTIVATION_NAMES:
        return
    common: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": channel.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "hidden_act": ACTIVATION_NAMES[channel.activation],
        "rms_norm_eps": spec.norm.epsilon,
        "rope_theta": spec.positions.theta,
        "tie_word_embeddings": spec.tie_word_embeddings,
    }
    if isinstance(channel, MoE):
        experts = {"num_local_experts": channel.num_experts, "num_experts_per_tok": channel.num_experts_per_tok}
        yield {"model_type": "mixtral", **common, **experts, "sliding_window": attention.sliding_window}
        return
    biases = {"attention_bias": attention.output_bias, "mlp_bias": channel.bias}
    yield {"model_type": "llama", **common, **biases}
    yield {"model_type": "mistral", **common, "sliding_window": attention.sliding_window}
    without_head_dim = {key: value for key, value in common.items() if key != "head_dim"}
    yield {"model_type": "qwen2", **without_head_dim}
    yield {"model_type": "qwen3", **common}
