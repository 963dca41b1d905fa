"""Qwen2 (biases on queries, keys and values), Qwen3 (norms on queries and keys) and Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Adapter, Reader, refusal


def _window(reader: Reader) -> int | None:
    return reader.optional_integer("sliding_window") if reader.flag("use_sliding_window") else None


def _qwen2(reader: Reader) -> dict[str, Any]:
    mlp = decoders.gated_mlp(reader)
    layers = [
        {
            "sequence_mixer": decoders.attention(reader, query_key_value_bias=True, sliding_window=window),
            "channel_mixer": mlp,
        }
        for window in decoders.windows_by_layer(reader, _window(reader))
    ]
    return decoders.decoder(reader, layers)


def _qwen3(reader: Reader) -> dict[str, Any]:
    mlp = decoders.gated_mlp(reader)
    bias = reader.flag("attention_bias")
    extra = {"query_key_value_bias": bias, "output_bias": bias, "query_key_norm": "head"}
    layers = [
        {"sequence_mixer": decoders.attention(reader, sliding_window=window, **extra), "channel_mixer": mlp}
        for window in decoders.windows_by_layer(reader, _window(reader))
    ]
    return decoders.decoder(reader, layers)


def _qwen3_moe(reader: Reader) -> dict[str, Any]:
    count = reader.integer("num_hidden_layers")
    bias = reader.flag("attention_bias")
    mixer = decoders.attention(
        reader,
        query_key_value_bias=bias,
        output_bias=bias,
        query_key_norm="head",
        sliding_window=_window(reader),
    )
    dense = decoders.gated_mlp(reader)
    experts = reader.integer("num_experts", least=0)
    mixture = {
        "kind": "moe",
        "num_experts": experts,
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": reader.integer("moe_intermediate_size"),
        "activation": reader.activation("hidden_act"),
        "normalize_weights": reader.flag("norm_topk_prob"),
    }
    dense_layers = set(reader.integers("mlp_only_layers"))
    step = reader.integer("decoder_sparse_step")
    if any(index < 0 for index in dense_layers):
        raise refusal("mlp_only_layers", "Layers are counted from 0.")
    layers = [
        {
            "sequence_mixer": mixer,
            "channel_mixer": mixture
            if index not in dense_layers and experts > 0 and (index + 1) % step == 0
            else dense,
        }
        for index in range(count)
    ]
    return decoders.decoder(reader, layers)


_COMMON = decoders.LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_LAYOUT = decoders.OUTER + decoders.PRE_NORMS + decoders.ATTENTION + decoders.MLP

QWEN2 = Adapter(
    "qwen2",
    _COMMON,
    _qwen2,
    _LAYOUT,
    ignored=decoders.LLAMA_IGNORED,
    neutral={"use_mrope": (False,)},  # of the code that came with the first files
)
QWEN3 = Adapter(
    "qwen3",
    _COMMON | {"head_dim": 128, "attention_bias": False},
    _qwen3,
    _LAYOUT,
    ignored=decoders.LLAMA_IGNORED,
)
QWEN3_MOE = Adapter(
    "qwen3_moe",
    {name: value for name, value in _COMMON.items() if name not in ("max_window_layers", "layer_types")}
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
        "mlp_only_layers": None,
    },
    _qwen3_moe,
    _LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    # The class has the field num_experts and applies the other name after it.
    aliases={"num_local_experts": "num_experts"},
    ignored=decoders.LLAMA_IGNORED | {"max_window_layers"},
)
