"""MPT: linear biases on the scores, no bias anywhere else (MosaicML's published configurations, mosaicml/mpt-7b)."""

from __future__ import annotations

import json
from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, Reader, is_one_of, refusal


def _judge(reader: Reader) -> None:
    """Refuse what the model's own code builds otherwise than transformers, which reads none of these."""
    for name, meant in (
        ("expansion_ratio", (4,)),
        ("no_bias", (True,)),
        ("norm_type", ("low_precision_layernorm", "layernorm")),
    ):
        if not is_one_of(reader.value(name), meant):
            raise refusal(
                name,
                "The model's own code follows this field and transformers does not: they build different models.",
                f"Write {json.dumps(meant[0])} for the model that both build.",
            )


def _build(reader: Reader) -> dict[str, Any]:
    _judge(reader)
    hidden = reader.integer("d_model")
    heads, head_dim = layouts.split_heads(reader, "n_heads", "d_model")
    inner = layouts.nested(
        reader,
        "attn_config",
        {"clip_qkv": None, "softmax_scale": None},
        ignored={"alibi_bias_max", "attn_impl", "attn_pdrop", "attn_uses_sequence_id", "model_type"},
        neutral={
            "alibi": (True,),
            "attn_type": ("multihead_attention",),
            "prefix_lm": (False,),
            "qk_ln": (False,),
        },
    )
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "rope_share": 0.0,
            "query_key_value_clip": inner.optional_number("attn_config.clip_qkv"),
            "softmax_scale": inner.optional_number("attn_config.softmax_scale"),
        },
        "channel_mixer": {"kind": "mlp", "intermediate_size": 4 * hidden, "gated": False, "activation": "gelu"},
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("n_layers"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon", bias=False),
        positions={"kind": "alibi"},
        channels="d_model",
    )


_LAYER = "transformer.blocks.{layer}."
MPT = Adapter(
    "mpt",
    {
        "vocab_size": 50368,
        "d_model": 2048,
        "n_heads": 16,
        "n_layers": 24,
        "attn_config": None,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "expansion_ratio": 4,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
    },
    _build,
    layouts.paired({"embed_tokens": "transformer.wte", "final_norm": "transformer.norm_f", "lm_head": "lm_head"})
    + layouts.paired({"sequence_norm": "norm_1", "channel_norm": "norm_2"}, _LAYER, "layers.{layer}.")
    + layouts.fused_heads(f"{_LAYER}attn.Wqkv", by=None)
    + layouts.paired({"o_proj": "out_proj"}, f"{_LAYER}attn.", "layers.{layer}.sequence_mixer.")
    + layouts.paired(
        {"up_proj": "up_proj", "down_proj": "down_proj"}, f"{_LAYER}ffn.", "layers.{layer}.channel_mixer."
    ),
    aliases={"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"},
    # Where the scores have linear biases, the original code makes no learned positions whatever learned_pos_emb says.
    ignored=frozenset(
        {
            "emb_pdrop",
            "embedding_fraction",
            "init_config",
            "init_device",
            "learned_pos_emb",
            "max_seq_len",
            "resid_pdrop",
            "tokenizer_name",
            "verbose",
        }
    ),
    unmodelled={"logit_scale": (None,)},
)
