"""Ministral and CWM (arXiv:2510.02387): Llama whose layers have a window or none, by a list or a pattern."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader


def _layers(reader: Reader, window: int | None, windowed: list[bool], **mlp: Any) -> dict[str, Any]:
    mixer = decoders.gated_mlp(reader, **mlp)
    return decoders.decoder(
        reader,
        [
            {
                "sequence_mixer": decoders.attention(reader, sliding_window=window if used else None),
                "channel_mixer": mixer,
            }
            for used in windowed
        ],
    )


def _ministral(reader: Reader) -> dict[str, Any]:
    window = reader.optional_integer("sliding_window")
    return _layers(reader, window, decoders.windowed_layers(reader, lambda index: window is not None))


def _cwm(reader: Reader) -> dict[str, Any]:
    decoders.divided(reader)
    window = reader.optional_integer("sliding_window", least=0) or None
    windowed = decoders.windowed_layers(reader, lambda index: index % 4 != 0)
    return _layers(reader, window, windowed, bias=reader.flag("mlp_bias"))


MINISTRAL = decoders.like_llama(
    "ministral",
    _ministral,
    {"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096, "layer_types": None},
)
CWM = decoders.like_llama(
    "cwm",
    _cwm,
    {
        "vocab_size": 128256,
        "hidden_size": 6144,
        "intermediate_size": 21504,
        "num_hidden_layers": 64,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "rope_parameters": {
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "mlp_bias": False,
        "sliding_window": 8192,
        "layer_types": None,
    },
    neutral={"attention_bias": (False,)},
)
