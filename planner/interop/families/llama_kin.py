"""Families that are Llama with other defaults, another norm, or neighbours rotated.

EXAONE 3 (arXiv:2408.03541), InternLM3, IQuest-Coder, Jais 2, ERNIE 4.5 (dense), Ministral 3 (arXiv:2601.08584).
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _model(
    reader: Reader, attention_bias: str | None, mlp_bias: str | None, gated: bool = True, **extra: Any
) -> dict[str, Any]:
    """A model of equal layers; the fields of its biases are absent where it has none."""
    layer = {
        "sequence_mixer": decoders.attention(
            reader, **(decoders.biases(reader, attention_bias) if attention_bias else {})
        ),
        "channel_mixer": decoders.gated_mlp(reader, gated=gated, bias=mlp_bias is not None and reader.flag(mlp_bias)),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"), **extra)


def _llama(reader: Reader) -> dict[str, Any]:
    decoders.divided(reader)
    return _model(reader, "attention_bias", "mlp_bias")


def _internlm3(reader: Reader) -> dict[str, Any]:
    if reader.flag("attention_bias") != reader.flag("mlp_bias"):
        raise refusal("mlp_bias", "transformers has this family with both biases or none.", "Write both alike.")
    return _llama(reader)


def _jais2(reader: Reader) -> dict[str, Any]:
    decoders.divided(reader)
    norm = {"kind": "layer_norm", "epsilon": reader.number("layer_norm_eps")}
    return _model(reader, "attention_bias", "mlp_bias", gated=False, norm=norm)


def _ernie(reader: Reader) -> dict[str, Any]:
    if reader.value("use_bias") is None:
        return _model(reader, None, None)
    return _model(reader, "use_bias", "use_bias")


def _ministral3(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": decoders.attention(reader, sliding_window=reader.optional_integer("sliding_window")),
        "channel_mixer": decoders.gated_mlp(reader),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


_BIASES: dict[str, Any] = {"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5}

EXAONE = decoders.like_llama(
    "exaone",
    _llama,
    _BIASES | {"vocab_size": 102400, "intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 500_000.0},
    aliases={
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
    ignored=("embed_dropout",),
)
INTERNLM3 = decoders.like_llama(
    "internlm3",
    _internlm3,
    _BIASES
    | {
        "vocab_size": 128512,
        "intermediate_size": 10240,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
)
IQUESTCODER = decoders.like_llama(
    "iquestcoder",
    _llama,
    _BIASES
    | {
        "vocab_size": 76800,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 80,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    neutral={"clip_qkv": (None,), "use_sliding_window": (False,), "sliding_window": (None,)},
    ignored=("max_window_layers",),
)
JAIS2 = decoders.like_llama(
    "jais2",
    _jais2,
    {
        "vocab_size": 150272,
        "hidden_size": 3328,
        "intermediate_size": 26624,
        "num_attention_heads": 26,
        "hidden_act": "relu2",
        "attention_bias": True,
        "mlp_bias": True,
        "layer_norm_eps": 1e-5,
    },
    decoders.OUTER
    + decoders.layer_norms_with_biases(
        final_norm="model.norm",
        sequence_norm="model.layers.{layer}.input_layernorm",
        channel_norm="model.layers.{layer}.post_attention_layernorm",
    )
    + decoders.ATTENTION
    + decoders.MLP,
    absent=("rms_norm_eps",),
)
ERNIE4_5 = decoders.like_llama(
    "ernie4_5",
    _ernie,
    {
        "vocab_size": 103424,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
    rotary_in_pairs=True,
)
MINISTRAL3 = decoders.like_llama(
    "ministral3",
    _ministral3,
    {
        "vocab_size": 131072,
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "max_position_embeddings": 262144,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    # Queries grow with the logarithm of the position, from the end of the original context on.
    unmodelled={f"{name}.llama_4_scaling_beta": (None, 0, 0.0) for name in ("rope_scaling", "rope_parameters")},
)
