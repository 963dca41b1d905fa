"""SmolLM3: Llama whose every fourth layer leaves queries and keys unrotated (NoPE; arXiv:2501.18795)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def rotated_layers(reader: Reader) -> list[bool]:
    """Whether each layer rotates: a list of ones and zeros, or every layer but each of an interval's last."""
    count = reader.integer("num_hidden_layers")
    if reader.value("no_rope_layers") is None:
        interval = reader.integer("no_rope_layer_interval")
        return [(index + 1) % interval != 0 for index in range(count)]
    flags = reader.integers("no_rope_layers")
    if len(flags) < count:
        raise refusal("no_rope_layers", f"{len(flags)} flags do not say it of {count} layers.", "Write one a layer.")
    return [flag != 0 for flag in flags[:count]]


def _build(reader: Reader) -> dict[str, Any]:
    rotated = rotated_layers(reader)
    window = reader.optional_integer("sliding_window")
    uses = reader.flag("use_sliding_window") and window is not None
    windowed = decoders.windowed_layers(reader, lambda index: uses and not rotated[index])
    mlp = decoders.gated_mlp(reader, bias=reader.flag("mlp_bias"))
    layers = [
        {
            "sequence_mixer": decoders.attention(
                reader,
                **decoders.biases(reader),
                sliding_window=window if has_window else None,
                rope_share=1.0 if rotates else 0.0,
            ),
            "channel_mixer": mlp,
        }
        for has_window, rotates in zip(windowed, rotated, strict=True)
    ]
    return decoders.decoder(reader, layers)


SMOLLM3 = decoders.like_llama(
    "smollm3",
    _build,
    {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    ignored=("max_window_layers",),
)
