"""GPT-NeoX and Pythia: attention and MLP side by side, queries, keys and values head by head (arXiv:2204.06745)."""

from __future__ import annotations

from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, Reader


def _build(reader: Reader) -> dict[str, Any]:
    heads, head_dim = layouts.split_heads(reader)
    bias = reader.flag("attention_bias")
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "query_key_value_bias": bias,
            "output_bias": bias,
            "rope_share": reader.rope_share(head_dim),
        },
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("intermediate_size"), bias=True),
        "residual": "parallel" if reader.flag("use_parallel_residual") else "sequential",
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader),
        positions={
            "kind": "rotary",
            "theta": reader.rope_theta(older="rotary_emb_base"),
            "scaling": reader.rope_scaling(),
        },
    )


GPT_NEOX = Adapter(
    "gpt_neox",
    {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "rope_parameters": None,
        "rotary_emb_base": None,
        "rotary_pct": 0.25,
        "attention_bias": True,
    },
    _build,
    layouts.paired(
        {"embed_tokens": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "lm_head": "lm_head"}
    )
    + layouts.paired(layouts.PRE_NORMS, "gpt_neox.layers.{layer}.", "layers.{layer}.")
    + layouts.fused_heads("gpt_neox.layers.{layer}.attention.query_key_value")
    + layouts.paired({"o_proj": "dense"}, "gpt_neox.layers.{layer}.attention.", "layers.{layer}.sequence_mixer.")
    + layouts.paired(layouts.FOUR_TIMES, "gpt_neox.layers.{layer}.mlp.", "layers.{layer}.channel_mixer."),
    # The base is rotary_emb_base here; transformers does not read rope_theta, which older files have beside it.
    ignored=frozenset(
        {
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "hidden_dropout",
            "hidden_dropout_prob",
            "max_position_embeddings",
            "rope_scaling",
            "rope_theta",
        }
    ),
)
