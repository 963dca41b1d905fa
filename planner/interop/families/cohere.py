"""Command R, R7B and Aya: attention and MLP side by side behind one norm, scaled logits (arXiv:2504.00698)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader

_THETA = 500_000.0


def _model(reader: Reader, mixers: list[dict[str, Any]]) -> dict[str, Any]:
    mlp = decoders.gated_mlp(reader)
    layers = [{"sequence_mixer": mixer, "channel_mixer": mlp, "residual": "parallel_shared_norm"} for mixer in mixers]
    return layouts.model(
        reader,
        layers,
        norm=layouts.layer_norm(reader, bias=False),
        positions=layouts.rotary(reader, _THETA),
        logit_scale=reader.number("logit_scale"),
    )


def _cohere(reader: Reader) -> dict[str, Any]:
    normed = layouts.truth(reader, "use_qk_norm")
    mixer = decoders.attention(
        reader,
        **decoders.biases(reader),
        query_key_norm="each_head" if normed else None,
        query_key_norm_kind="layer_norm" if normed else "rms_norm",
    )
    return _model(reader, [mixer] * reader.integer("num_hidden_layers"))


def _cohere2(reader: Reader) -> dict[str, Any]:
    windowed = decoders.windowed_layers(
        reader, lambda index: (index + 1) % reader.integer("sliding_window_pattern") != 0
    )
    window = reader.integer("sliding_window")
    mixers = {
        True: decoders.attention(reader, **decoders.biases(reader), sliding_window=window),
        False: decoders.attention(reader, **decoders.biases(reader), rope_share=0.0),
    }
    return _model(reader, [mixers[narrow] for narrow in windowed])


_DEFAULTS = layouts.replaced(
    decoders.LLAMA_DEFAULTS,
    without=("rms_norm_eps",),
    vocab_size=256000,
    hidden_size=8192,
    intermediate_size=22528,
    num_hidden_layers=40,
    num_attention_heads=64,
    layer_norm_eps=1e-5,
    logit_scale=0.0625,
    tie_word_embeddings=True,
    attention_bias=False,
)
_LAYOUT = (
    layouts.paired(layouts.OUTER)
    + layouts.paired({"sequence_norm": "input_layernorm"}, "model.layers.{layer}.", "layers.{layer}.")
    + decoders.ATTENTION
    + decoders.MLP
)
COHERE = Adapter(
    "cohere",
    _DEFAULTS | {"use_qk_norm": False},
    _cohere,
    _LAYOUT,
    ignored=decoders.LLAMA_IGNORED | {"model_max_length"},
    rotary_in_pairs=True,
)
COHERE2 = Adapter(
    "cohere2",
    _DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None},
    _cohere2,
    _LAYOUT,
    # layer_switch says sliding_window_pattern once more; the tied head is tie_word_embeddings here.
    ignored=decoders.LLAMA_IGNORED | {"cache_implementation", "layer_switch", "use_embedding_sharing"},
    neutral={
        "order_of_interleaved_layers": ("local_attn_first",),
        "position_embedding_type": ("rope_gptj",),
        "rotary_pct": (1.0,),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_parallel_embedding": (False,),
    },
    rotary_in_pairs=True,
)
