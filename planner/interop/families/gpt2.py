"""GPT-2: LayerNorm, learned positions, biases everywhere, projections stored as (inputs, outputs)."""

from __future__ import annotations

from typing import Any

from planner.interop.base import Adapter, LayoutRule, Reader, groups, refusal


def _build(reader: Reader) -> dict[str, Any]:
    hidden, heads = reader.integer("n_embd"), reader.integer("n_head")
    if hidden % heads:
        raise refusal("n_head", f"It does not divide n_embd ({hidden}).", f"Choose a divisor of {hidden}.")
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": hidden // heads,
            "query_key_value_bias": True,
            "output_bias": True,
            "rope_share": 0.0,
        },
        "channel_mixer": {
            "kind": "mlp",
            "intermediate_size": reader.optional_integer("n_inner") or 4 * hidden,
            "gated": False,
            "activation": reader.activation("activation_function"),
            "bias": True,
        },
    }
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": hidden,
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
        "positions": {"kind": "learned", "num_positions": reader.integer("n_positions")},
        "norm": {"kind": "layer_norm", "epsilon": reader.number("layer_norm_epsilon")},
        "layer_groups": groups([layer] * reader.integer("n_layer")),
    }


_LAYER = "transformer.h.{layer}"


def _linear(theirs: str, ours: tuple[str, ...]) -> tuple[LayoutRule, LayoutRule]:
    return (
        LayoutRule(
            f"transformer.h.{{layer}}.{theirs}.weight", tuple(f"layers.{{layer}}.{o}.weight" for o in ours), True
        ),
        LayoutRule(f"transformer.h.{{layer}}.{theirs}.bias", tuple(f"layers.{{layer}}.{o}.bias" for o in ours)),
    )


def _norm(theirs: str, ours: str) -> tuple[LayoutRule, ...]:
    return tuple(LayoutRule(f"{theirs}.{end}", (f"{ours}.{end}",)) for end in ("weight", "bias"))


GPT2 = Adapter(
    "gpt2",
    {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    _build,
    (
        LayoutRule("transformer.wte.weight", ("embed_tokens.weight",)),
        LayoutRule("transformer.wpe.weight", ("embed_positions.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        *_norm("transformer.ln_f", "final_norm"),
        *_norm("transformer.h.{layer}.ln_1", "layers.{layer}.sequence_norm"),
        *_norm("transformer.h.{layer}.ln_2", "layers.{layer}.channel_norm"),
        *_linear("attn.c_attn", tuple(f"sequence_mixer.{part}_proj" for part in "qkv")),
        *_linear("attn.c_proj", ("sequence_mixer.o_proj",)),
        *_linear("mlp.c_fc", ("channel_mixer.up_proj",)),
        *_linear("mlp.c_proj", ("channel_mixer.down_proj",)),
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored=frozenset(
        {
            "attn_pdrop",
            "embd_pdrop",
            "n_ctx",
            "reorder_and_upcast_attn",
            "resid_pdrop",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
    unmodelled={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
)
