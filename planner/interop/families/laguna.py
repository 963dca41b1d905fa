"""Laguna (poolside): windows, another number of heads in each layer, gated heads, and mixtures of experts.

Gates are softplus of a projection, one a head or one a channel.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import LayoutRule, Reader, is_one_of, refusal, rules


def _heads_by_layer(reader: Reader, heads: int, key_value_heads: int) -> list[int]:
    """Query heads of every layer."""
    count = reader.integer("num_hidden_layers")
    if reader.value("num_attention_heads_per_layer") is None:
        return [heads] * count
    each = reader.integers("num_attention_heads_per_layer")
    if len(each) != count or any(number < 1 or number % key_value_heads for number in each):
        raise refusal(
            "num_attention_heads_per_layer",
            f"{count} multiples of {key_value_heads} are expected.",
            "Write one a layer.",
        )
    return each


def _build(reader: Reader) -> dict[str, Any]:
    # transformers reads these from rope_parameters alone.
    if not is_one_of(reader.value("partial_rotary_factor"), (1.0,)):
        raise refusal("partial_rotary_factor", "transformers does not read it here.", "Write it in rope_parameters.")
    heads, key_value_heads, head_dim = decoders.head_sizes(reader)
    windowed = decoders.windowed_layers(reader, lambda _: False)
    theta, rotary = decoders.rotations(reader, "", 500_000.0, 10_000.0)
    gating = reader.value("gating")
    if not isinstance(gating, (bool, str)):
        raise refusal("gating", "true, or a word is expected.", "Write true, per-head or per-element.")
    alike = {
        "query_key_norm": "head",
        "output_gate": "headwise" if gating is True or gating == "per-head" else "elementwise",
        "output_gate_activation": "softplus",
    }
    kinds = {
        narrow: {
            **decoders.attention(reader, **alike),
            "sliding_window": reader.integer("sliding_window") if narrow else None,
            "rope_share": reader.rope_share(head_dim, "sliding_attention" if narrow else "full_attention"),
            **rotary[narrow],
        }
        for narrow in set(windowed)
    }
    mixture = decoders.mixture(
        reader,
        "num_experts",
        intermediate_size=reader.integer("moe_intermediate_size"),
        shared_intermediate_size=reader.integer("shared_expert_intermediate_size", least=0) or None,
        router_scores="sigmoid",
        routed_scaling_factor=reader.number("moe_routed_scaling_factor"),
        score_correction_bias=True,
        score_correction_is_parameter=True,
    )
    dense = decoders.gated_mlp(reader)
    layers = [
        {
            "sequence_mixer": kinds[narrow] | {"num_attention_heads": number},
            "channel_mixer": mixture if sparse else dense,
        }
        for narrow, number, sparse in zip(
            windowed,
            _heads_by_layer(reader, heads, key_value_heads),
            decoders.sparse_layers(reader, lambda index: index > 0),
            strict=True,
        )
    ]
    return decoders.decoder(reader, layers, theta=theta)


LAGUNA = decoders.like_llama(
    "laguna",
    _build,
    {
        "vocab_size": 100352,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 40,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_attention_heads_per_layer": None,
        "gating": True,
        "sliding_window": 512,
        "layer_types": None,
        "mlp_layer_types": None,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_routed_scaling_factor": 1.0,
        "partial_rotary_factor": 1.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        },
    },
    decoders.LLAMA_LAYOUT
    + rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", {"gate_proj": "g_proj"})
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate")
    + (
        LayoutRule(
            "model.layers.{layer}.mlp.gate.e_score_correction_bias",
            ("layers.{layer}.channel_mixer.router.score_correction_bias",),
        ),
    ),
    absent=("rope_theta",),
    # The gate has no bias where the other projections would have one; rotary bases stand in rope_parameters alone.
    neutral={"attention_bias": (False,), "moe_apply_router_weight_on_input": (False,)},
    unmodelled={"moe_router_logit_softcapping": (0.0, 0)},
)
