"""OPT and Galactica: learned positions behind two unused rows, a narrower embedding in the 350m (arXiv:2205.01068)."""

from __future__ import annotations

from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, Reader


def _build(reader: Reader) -> dict[str, Any]:
    hidden = reader.integer("hidden_size")
    heads, head_dim = layouts.split_heads(reader)
    bias, before, learned = (
        reader.flag(name) for name in ("enable_bias", "do_layer_norm_before", "layer_norm_elementwise_affine")
    )
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "rope_share": 0.0,
            "query_key_value_bias": bias,
            "output_bias": bias,
        },
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("ffn_dim"), bias, act="activation_function"),
        "norm_placement": "pre" if before else "after_residual",
    }
    width = reader.optional_integer("word_embed_proj_dim") or hidden
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm={"kind": "layer_norm", "bias": learned, "has_weight": learned},
        positions={"kind": "learned", "num_positions": reader.integer("max_position_embeddings"), "offset": 2},
        embedding_size=width if width != hidden else None,
        final_norm=before and not reader.flag("_remove_final_layer_norm"),
    )


OPT = Adapter(
    "opt",
    {
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
    _build,
    layouts.paired(
        {
            "embed_tokens": "embed_tokens",
            "embed_positions": "embed_positions",
            "embedding_in": "project_in",
            "embedding_out": "project_out",
            "final_norm": "final_layer_norm",
        },
        "model.decoder.",
    )
    + layouts.paired({"lm_head": "lm_head"})
    + layouts.paired(
        {"sequence_norm": "self_attn_layer_norm", "channel_norm": "final_layer_norm"},
        "model.decoder.layers.{layer}.",
        "layers.{layer}.",
    )
    + layouts.paired(
        {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"},
        "model.decoder.layers.{layer}.self_attn.",
        "layers.{layer}.sequence_mixer.",
    )
    + layouts.paired(
        {"up_proj": "fc1", "down_proj": "fc2"}, "model.decoder.layers.{layer}.", "layers.{layer}.channel_mixer."
    ),
    ignored=frozenset({"activation_dropout", "dropout", "init_std", "layerdrop"}),
    # Galactica's files have these.
    neutral={"learned_embeddings": (True,), "scale_embeddings": (False,)},
)
