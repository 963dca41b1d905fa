"""GPT-OSS: mixtures with biases and a clamped gate, attention with sinks, every other window (arXiv:2508.10925)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, LayoutRule, Reader

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""What transformers takes where a file says nothing of its rotation."""


def _build(reader: Reader) -> dict[str, Any]:
    windowed = decoders.windowed_layers(reader, lambda index: index % 2 == 0)
    window = reader.integer("sliding_window") if any(windowed) else None
    mixture = {
        "kind": "moe",
        "num_experts": reader.integer("num_local_experts"),
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("intermediate_size"),
        "activation": "clamped_swiglu",
        "router_bias": True,
        "expert_bias": True,
    }
    layers = [
        {
            "sequence_mixer": decoders.attention(
                reader, **decoders.biases(reader), sinks=True, sliding_window=window if narrow else None
            ),
            "channel_mixer": mixture,
        }
        for narrow in windowed
    ]
    return decoders.decoder(reader, layers, positions=layouts.rotary(reader, 150_000.0))


_MIXTURE = "layers.{layer}.channel_mixer."
GPT_OSS = Adapter(
    "gpt_oss",
    layouts.replaced(
        decoders.LLAMA_DEFAULTS,
        without=("hidden_act",),
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=36,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_parameters=_YARN,
        sliding_window=128,
        rope_theta=150_000.0,
        layer_types=None,
        num_local_experts=128,
        num_experts_per_tok=4,
        attention_bias=True,
    ),
    _build,
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + (LayoutRule("model.layers.{layer}.self_attn.sinks", ("layers.{layer}.sequence_mixer.sinks",)),)
    + layouts.paired({"router": "router"}, "model.layers.{layer}.mlp.", _MIXTURE)
    + tuple(
        LayoutRule(
            f"model.layers.{{layer}}.mlp.experts.{name}",
            (f"{_MIXTURE}experts.{name}",),
            transposed=not name.endswith("bias"),
            halves_in_turn=name.startswith("gate_up"),
        )
        for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    ),
    aliases={"num_experts": "num_local_experts"},
    # Experts have their own activation; the first files say num_experts_per_tok and max_position_embeddings twice.
    ignored=decoders.LLAMA_IGNORED | {"experts_per_token", "hidden_act", "initial_context_length"},
    unmodelled={"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
)
