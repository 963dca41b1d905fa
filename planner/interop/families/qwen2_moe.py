"""Qwen1.5-MoE and Qwen2-MoE: routed experts beside a shared one that a sigmoid scales (Qwen2, arXiv:2407.10671)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader, refusal


def _windows(reader: Reader) -> list[int | None]:
    """The window of every layer: of every other one below ``max_window_layers``, where windows are used at all."""
    count = reader.integer("num_hidden_layers")
    used = reader.flag("use_sliding_window")
    if reader.value("layer_types") is None:
        first_whole = reader.integer("max_window_layers", least=0) if used else 0
        windowed = [index % 2 == 0 and index < first_whole for index in range(count)]
    else:
        kinds = reader.strings("layer_types", count, ("full_attention", "sliding_attention"))
        windowed = [kind == "sliding_attention" for kind in kinds]
        if any(windowed) and not used:
            raise refusal(
                "use_sliding_window",
                "layer_types has windowed layers, and without use_sliding_window their window is empty.",
                "Set use_sliding_window to true, or make every layer full_attention.",
            )
    window = reader.integer("sliding_window") if used else None
    return [window if narrow else None for narrow in windowed]


def _build(reader: Reader) -> dict[str, Any]:
    experts = reader.integer("num_experts", least=0)
    mixture = {
        "kind": "moe",
        "num_experts": experts,
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("moe_intermediate_size"),
        "shared_intermediate_size": reader.integer("shared_expert_intermediate_size"),
        "shared_expert_gate": True,
        "activation": reader.activation("hidden_act"),
        "normalize_weights": reader.flag("norm_topk_prob"),
    }
    dense = decoders.gated_mlp(reader)
    sparse = layouts.sparse_steps(reader, experts)
    layers = [
        {
            "sequence_mixer": decoders.attention(
                reader, query_key_value_bias=reader.flag("qkv_bias"), sliding_window=window
            ),
            "channel_mixer": mixture if sparse[index] else dense,
        }
        for index, window in enumerate(_windows(reader))
    ]
    return decoders.decoder(reader, layers)


QWEN2_MOE = Adapter(
    "qwen2_moe",
    decoders.LLAMA_DEFAULTS
    | {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
        "qkv_bias": True,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "norm_topk_prob": False,
        "mlp_only_layers": None,
    },
    _build,
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + decoders.MLP
    + decoders.mixture_rules("model.layers.{layer}.mlp", "gate", shared="shared_expert")
    + layouts.SHARED_EXPERT_GATE,
    ignored=decoders.LLAMA_IGNORED,
)
