"""BLOOM: linear biases on the scores in place of positions, and a norm after the embedding (arXiv:2211.05100)."""

from __future__ import annotations

from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, Reader


def _build(reader: Reader) -> dict[str, Any]:
    heads, head_dim = layouts.split_heads(reader, "n_head")
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "rope_share": 0.0,
            "query_key_value_bias": True,
            "output_bias": True,
        },
        "channel_mixer": {
            "kind": "mlp",
            "intermediate_size": 4 * reader.integer("hidden_size"),
            "gated": False,
            "activation": "gelu_tanh",
            "bias": True,
        },
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("n_layer"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions={"kind": "alibi"},
        embedding_norm=True,
    )


_LAYER = "transformer.h.{layer}."
BLOOM = Adapter(
    "bloom",
    {
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    _build,
    layouts.paired(
        {
            "embed_tokens": "transformer.word_embeddings",
            "embedding_norm": "transformer.word_embeddings_layernorm",
            "final_norm": "transformer.ln_f",
            "lm_head": "lm_head",
        }
    )
    + layouts.paired(layouts.PRE_NORMS, _LAYER, "layers.{layer}.")
    + layouts.fused_heads(f"{_LAYER}self_attention.query_key_value")
    + layouts.paired({"o_proj": "dense"}, f"{_LAYER}self_attention.", "layers.{layer}.sequence_mixer.")
    + layouts.paired(layouts.FOUR_TIMES, f"{_LAYER}mlp.", "layers.{layer}.channel_mixer."),
    aliases={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
    # How the training code fused.
    ignored=frozenset(
        {
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "hidden_dropout",
            "masked_softmax_fusion",
            "offset_alibi",
            "seq_length",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "unk_token_id",
        }
    ),
    neutral={"n_inner": (None,)},
    # slow_but_exact sums in the order of the parts of the training, and transformers then leaves out the biases of
    # attention's output and of the MLP's.
    unmodelled={"apply_residual_connection_post_layernorm": (False,), "slow_but_exact": (False,)},
)
