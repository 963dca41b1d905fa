"""EXAONE 4 (arXiv:2507.11407): norms after each mixer, and of queries and keys; only windowed layers rotate."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _build(reader: Reader) -> dict[str, Any]:
    window = reader.optional_integer("sliding_window")
    if window is None and reader.value("layer_types") is None:
        raise refusal(
            "layer_types", "Without a window, no pattern says what the layers are.", "Write one word a layer."
        )
    windowed = decoders.windowed_layers(
        reader, lambda index: (index + 1) % reader.integer("sliding_window_pattern") != 0
    )
    mlp = decoders.gated_mlp(reader)
    layers = [
        {
            "sequence_mixer": decoders.attention(
                reader,
                query_key_norm="head",
                sliding_window=window if used else None,
                rope_share=1.0 if used or window is None else 0.0,
            ),
            "channel_mixer": mlp,
            "norm_placement": "post",
        }
        for used in windowed
    ]
    return decoders.decoder(reader, layers)


EXAONE4 = decoders.like_llama(
    "exaone4",
    _build,
    {
        "vocab_size": 102400,
        "intermediate_size": 16384,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "layer_types": None,
    },
    decoders.OUTER + decoders.POST_NORMS + decoders.ATTENTION + decoders.MLP,
)
