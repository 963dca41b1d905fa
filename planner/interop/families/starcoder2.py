"""StarCoder2: LayerNorm and biases around rotary, grouped-query attention (arXiv:2402.19173)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader, rules


def _build(reader: Reader) -> dict[str, Any]:
    bias = reader.flag("use_bias")
    layer = {
        "sequence_mixer": decoders.attention(
            reader,
            query_key_value_bias=bias,
            output_bias=bias,
            sliding_window=reader.optional_integer("sliding_window"),
        ),
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("intermediate_size"), bias),
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader, "norm_epsilon"),
        positions=layouts.rotary(reader),
    )


STARCODER2 = Adapter(
    "starcoder2",
    layouts.replaced(
        decoders.LLAMA_DEFAULTS,
        without=("rms_norm_eps",),
        vocab_size=49152,
        hidden_size=3072,
        intermediate_size=12288,
        num_hidden_layers=30,
        num_attention_heads=24,
        num_key_value_heads=2,
        hidden_act="gelu_pytorch_tanh",
        norm_epsilon=1e-5,
        tie_word_embeddings=True,
        sliding_window=None,
        use_bias=True,
    ),
    _build,
    layouts.paired(layouts.OUTER)
    + layouts.paired(layouts.PRE_NORMS, "model.layers.{layer}.", "layers.{layer}.")
    + decoders.ATTENTION
    + rules("model.layers.{layer}.mlp.", "layers.{layer}.channel_mixer.", {"up_proj": "c_fc", "down_proj": "c_proj"}),
    # Published files also carry the names of the code that trained them, which transformers does not read.
    ignored=decoders.LLAMA_IGNORED
    | {
        "attention_softmax_in_fp32",
        "embedding_dropout",
        "layer_norm_epsilon",
        "residual_dropout",
        "scale_attention_softmax_in_fp32",
    },
    neutral={"mlp_type": ("default",), "norm_type": ("layer_norm",), "scale_attn_weights": (True,)},
)
