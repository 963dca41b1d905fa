"""Falcon: one KV head or a few, and attention beside the MLP (arXiv:2311.16867)."""

from __future__ import annotations

from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, LayoutRule, Reader, refusal
from planner.spec import ArchitectureSpec


def _key_value_heads(reader: Reader, heads: int, newer: bool) -> int:
    written = reader.optional_integer("num_kv_heads") or heads
    if newer:
        if heads % written:
            raise refusal(
                "num_kv_heads",
                f"{heads} query heads cannot share {written} KV heads evenly.",
                f"Choose a divisor of {heads}.",
            )
        return written
    if layouts.truth(reader, "multi_query"):
        return 1
    if written != heads:
        raise refusal(
            "num_kv_heads",
            "Without new_decoder_architecture every query head has its own keys and values, or all share one.",
            f"Write {heads}, or set multi_query or new_decoder_architecture.",
        )
    return heads


def _residual(reader: Reader, newer: bool) -> str:
    """How the mixers stand, for the combinations of which transformers makes a model that runs."""
    parallel = layouts.truth(reader, "parallel_attn")
    norms = reader.optional_integer("num_ln_in_parallel_attn", least=0)
    if newer and not parallel:
        raise refusal(
            "parallel_attn", "The new decoder architecture has its mixers side by side.", "Set parallel_attn to true."
        )
    if not parallel:
        return "sequential"
    if newer and norms in (None, 2):
        return "parallel"
    if norms == 2 or (newer and norms != 1):
        raise refusal(
            "num_ln_in_parallel_attn",
            f"{norms} norms before the mixers make no model here.",
            "Write 1, or 2 with new_decoder_architecture.",
        )
    return "parallel_shared_norm"


def _build(reader: Reader) -> dict[str, Any]:
    heads, head_dim = layouts.split_heads(reader)
    bias, newer = layouts.truth(reader, "bias"), layouts.truth(reader, "new_decoder_architecture")
    biased = layouts.truth(reader, "alibi")
    width = reader.optional_integer("ffn_hidden_size") or 4 * reader.integer("hidden_size")
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": _key_value_heads(reader, heads, newer),
            "head_dim": head_dim,
            "rope_share": 0.0 if biased else 1.0,
            "query_key_value_bias": bias,
            "output_bias": bias,
        },
        "channel_mixer": layouts.plain_mlp(reader, width, bias, act="activation"),
        "residual": _residual(reader, newer),
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions={"kind": "alibi"} if biased else layouts.rotary(reader),
    )


def _layout(spec: ArchitectureSpec) -> tuple[LayoutRule, ...]:
    """Two norms side by side have other names than two that follow each other."""
    (layer,) = {layer for _, layer in spec.iterate_layers()}
    beside = {"sequence_norm": "ln_attn", "channel_norm": "ln_mlp"}
    own = "transformer.h.{layer}."
    return (
        layouts.paired(
            {"embed_tokens": "transformer.word_embeddings", "final_norm": "transformer.ln_f", "lm_head": "lm_head"}
        )
        + layouts.paired(beside if layer.residual == "parallel" else layouts.PRE_NORMS, own, "layers.{layer}.")
        + layouts.fused_heads(f"{own}self_attention.query_key_value", by="num_key_value_heads")
        + layouts.paired({"o_proj": "dense"}, f"{own}self_attention.", "layers.{layer}.sequence_mixer.")
        + layouts.paired(layouts.FOUR_TIMES, f"{own}mlp.", "layers.{layer}.channel_mixer.")
    )


FALCON = Adapter(
    "falcon",
    {
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_ln_in_parallel_attn": None,
        "layer_norm_epsilon": 1e-5,
        "num_kv_heads": None,
        "alibi": False,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "ffn_hidden_size": None,
        "activation": "gelu",
        "rope_parameters": None,
        "rope_theta": None,
        "tie_word_embeddings": True,
    },
    _build,
    _layout,
    aliases={"n_embed": "hidden_size"},
    ignored=frozenset({"hidden_dropout", "max_position_embeddings", "rope_scaling"}),
    neutral={"apply_residual_connection_post_layernorm": (False,), "ff_factor": (4,)},
    # Falcon divides its linear biases by the root of a head's channels too, and rounds their slopes.
    unmodelled={"alibi": (False, None)},
)
