"""Families like GPT-2 with another attention, other positions or the norms elsewhere.

GPT-1 (norms after each residual), GPT-Neo (every second layer local), StarCoder (arXiv:2305.06161; one KV head),
BioGPT (arXiv:2210.10341), GPT-NeoX Japanese, Persimmon (norms of queries and keys; partial rotation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, LayoutRule, Reader, refusal
from planner.spec import ArchitectureSpec

UNROTATED: dict[str, Any] = {"kind": "attention", "rope_share": 0.0}
MOST_ROUNDS = 10_000
"""Repeats of a pattern that one entry of GPT-Neo's ``attention_types`` may ask for."""


def _heads(reader: Reader, heads: str, channels: str) -> dict[str, Any]:
    """As many KV heads as query heads, each an equal part of the stream."""
    count, head_dim = layouts.split_heads(reader, heads, channels)
    return {"num_attention_heads": count, "num_key_value_heads": count, "head_dim": head_dim}


def _learned(reader: Reader, name: str, offset: int = 0) -> dict[str, Any]:
    """A table of learned positions, as plain data."""
    return {"kind": "learned", "num_positions": reader.integer(name), "offset": offset}


BOTH_BIASES: dict[str, Any] = {"query_key_value_bias": True, "output_bias": True}


def _gpt_bigcode(reader: Reader) -> dict[str, Any]:
    hidden = reader.integer("n_embd")
    mixer = UNROTATED | _heads(reader, "n_head", "n_embd") | BOTH_BIASES
    if reader.flag("multi_query"):
        mixer["num_key_value_heads"] = 1
    if not reader.flag("scale_attn_weights"):
        mixer["softmax_scale"] = 1.0
    inner = reader.optional_integer("n_inner") or 4 * hidden
    layer = {
        "sequence_mixer": mixer,
        "channel_mixer": layouts.plain_mlp(reader, inner, bias=True, act="activation_function"),
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("n_layer"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions=_learned(reader, "n_positions"),
        channels="n_embd",
    )


def _openai_gpt(reader: Reader) -> dict[str, Any]:
    hidden, activations = reader.integer("n_embd"), {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu"}
    activation = activations | {"swish": "silu"}
    if reader.value("afn") not in list(activation):
        raise refusal("afn", "The activation is not known for this family.", f"Supported are {', '.join(activation)}.")
    layer = {
        "sequence_mixer": UNROTATED | _heads(reader, "n_head", "n_embd") | BOTH_BIASES,
        "channel_mixer": {
            "kind": "mlp",
            "intermediate_size": 4 * hidden,
            "gated": False,
            "bias": True,
            "activation": activation[reader.value("afn")],
        },
        "norm_placement": "after_residual",
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("n_layer"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions=_learned(reader, "n_positions"),
        channels="n_embd",
        final_norm=False,
    )


def _local_layers(reader: Reader) -> list[bool]:
    """Whether each layer is local: ``attention_types`` holds patterns and how often each is repeated."""
    count, types = reader.integer("num_layers"), reader.value("attention_types")
    if types is None:
        types = [[["global", "local"], 12]]
    words: list[Any] = []
    for entry in types if isinstance(types, list) else [None]:
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not isinstance(entry[0], list)
            or isinstance(entry[1], bool)
            or not isinstance(entry[1], int)
            or not 0 <= entry[1] <= MOST_ROUNDS
        ):
            raise refusal("attention_types", "Patterns with a number of repeats each are expected.")
        words += entry[0] * min(entry[1], count + 1)
    written = reader.value("attention_layers")
    if len(words) != count or any(word not in ("global", "local") for word in words):
        raise refusal("attention_types", f"It does not say {count} times global or local.", "Write one a layer.")
    if written is not None and written != words:
        raise refusal("attention_layers", "It contradicts attention_types.", "Remove it, or write both alike.")
    return [word == "local" for word in words]


def _gpt_neo(reader: Reader) -> dict[str, Any]:
    hidden = reader.integer("hidden_size")
    inner = reader.optional_integer("intermediate_size") or 4 * hidden
    mlp = layouts.plain_mlp(reader, inner, bias=True, act="activation_function")
    mixer = UNROTATED | _heads(reader, "num_heads", "hidden_size") | {"output_bias": True, "softmax_scale": 1.0}
    window = reader.integer("window_size")
    layers = [
        {"sequence_mixer": mixer | {"sliding_window": window if local else None}, "channel_mixer": mlp}
        for local in _local_layers(reader)
    ]
    return layouts.model(
        reader,
        layers,
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions=_learned(reader, "max_position_embeddings"),
    )


def _biogpt(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": UNROTATED | _heads(reader, "num_attention_heads", "hidden_size") | BOTH_BIASES,
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("intermediate_size"), bias=True),
    }
    scaled = reader.flag("scale_embedding")
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm={"kind": "layer_norm"},
        positions=_learned(reader, "max_position_embeddings", offset=2),
        embedding_scale=math.sqrt(reader.integer("hidden_size")) if scaled else None,
    )


def _gpt_neox_japanese(reader: Reader) -> dict[str, Any]:
    """The output of the last layer's attention alone has a bias."""
    heads = _heads(reader, "num_attention_heads", "hidden_size")
    mixer = {"kind": "attention", "rope_share": reader.rope_share(heads["head_dim"]), **heads}
    width = reader.integer("hidden_size") * reader.integer("intermediate_multiple_size")
    mlp, count = layouts.plain_mlp(reader, width, bias=False), reader.integer("num_hidden_layers")
    layers = [
        {"sequence_mixer": {**mixer, "output_bias": index == count - 1}, "channel_mixer": mlp} for index in range(count)
    ]
    return layouts.model(
        reader,
        layers,
        norm=layouts.layer_norm(reader),
        positions={
            "kind": "rotary",
            "theta": reader.rope_theta(older="rotary_emb_base"),
            "scaling": reader.rope_scaling(),
        },
    )


def _persimmon(reader: Reader) -> dict[str, Any]:
    heads = _heads(reader, "num_attention_heads", "hidden_size")
    if reader.value("num_key_value_heads") not in (None, heads["num_attention_heads"]):
        raise refusal("num_key_value_heads", "This family has as many as query heads.", "Remove it.")
    norms = {"query_key_norm": "head", "query_key_norm_kind": "layer_norm", "query_key_norm_bias": True}
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "rope_share": reader.rope_share(heads["head_dim"]),
            **heads,
            **BOTH_BIASES,
            **(norms if reader.flag("qk_layernorm") else {}),
        },
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("intermediate_size"), bias=True),
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader),
        positions=layouts.rotary(reader),
    )


_GPT_LAYER = "transformer.h.{layer}."
_OURS = "layers.{layer}."
_MIXER = f"{_OURS}sequence_mixer."
_CHANNEL = f"{_OURS}channel_mixer."
_OUTER = {
    "embed_tokens": "transformer.wte",
    "embed_positions": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
_NORMS = {"sequence_norm": "ln_1", "channel_norm": "ln_2"}
_GPT_ALIASES: Mapping[str, str] = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _transposed(theirs: str, *ours: str) -> tuple[LayoutRule, ...]:
    """A projection that is stored as (inputs, outputs)."""
    return (
        LayoutRule(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), transposed=True),
        LayoutRule(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours)),
    )


def _bigcode_layout(spec: ArchitectureSpec) -> tuple[LayoutRule, ...]:
    """Queries before the one key and value of all heads, or queries, keys and values head by head."""
    shared = all(
        getattr(layer.sequence_mixer, "num_key_value_heads", 1)
        != getattr(layer.sequence_mixer, "num_attention_heads", 1)
        for _, layer in spec.iterate_layers()
    )
    return (
        layouts.paired(_OUTER)
        + layouts.paired(_NORMS, _GPT_LAYER, _OURS)
        + layouts.fused_heads(f"{_GPT_LAYER}attn.c_attn", by=None if shared else "num_attention_heads")
        + layouts.paired({"o_proj": "c_proj"}, f"{_GPT_LAYER}attn.", _MIXER)
        + layouts.paired({"up_proj": "c_fc", "down_proj": "c_proj"}, f"{_GPT_LAYER}mlp.", _CHANNEL)
    )


GPT_BIGCODE = Adapter(
    "gpt_bigcode",
    {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    _gpt_bigcode,
    _bigcode_layout,
    aliases=_GPT_ALIASES,
    # How the first code ran it, and the number of KV heads, which transformers derives from multi_query.
    ignored=layouts.GPT_IGNORED
    | {
        "attention_softmax_in_fp32",
        "inference_runner",
        "max_batch_size",
        "max_sequence_length",
        "num_key_value_heads",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "scale_attention_softmax_in_fp32",
        "validate_runner_input",
    },
)
OPENAI_GPT = Adapter(
    "openai-gpt",
    {
        "vocab_size": 40478,
        "n_positions": 512,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "afn": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    _openai_gpt,
    layouts.paired(
        {
            "embed_tokens": "transformer.tokens_embed",
            "embed_positions": "transformer.positions_embed",
            "lm_head": "lm_head",
        }
    )
    + layouts.paired(_NORMS, _GPT_LAYER, _OURS)
    + _transposed(f"{_GPT_LAYER}attn.c_attn", *(f"{_MIXER}{part}_proj" for part in "qkv"))
    + _transposed(f"{_GPT_LAYER}attn.c_proj", f"{_MIXER}o_proj")
    + _transposed(f"{_GPT_LAYER}mlp.c_fc", f"{_CHANNEL}up_proj")
    + _transposed(f"{_GPT_LAYER}mlp.c_proj", f"{_CHANNEL}down_proj"),
    aliases=_GPT_ALIASES,
    ignored=layouts.GPT_IGNORED | {"n_special", "predict_special_tokens"},
)
GPT_NEO = Adapter(
    "gpt_neo",
    {
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "attention_types": None,
        "attention_layers": None,
        "num_heads": 16,
        "intermediate_size": None,
        "window_size": 256,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    _gpt_neo,
    layouts.paired(_OUTER)
    + layouts.paired(_NORMS, _GPT_LAYER, _OURS)
    + layouts.paired(
        {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"},
        f"{_GPT_LAYER}attn.attention.",
        _MIXER,
    )
    + layouts.paired({"up_proj": "c_fc", "down_proj": "c_proj"}, f"{_GPT_LAYER}mlp.", _CHANNEL),
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    ignored=layouts.GPT_IGNORED | {"classifier_dropout", "embed_dropout", "resid_dropout"},
)
BIOGPT = Adapter(
    "biogpt",
    {
        "vocab_size": 42384,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "hidden_act": "gelu",
        "max_position_embeddings": 1024,
        "scale_embedding": True,
        "tie_word_embeddings": True,
    },
    _biogpt,
    layouts.paired({"lm_head": "output_projection"})
    + layouts.paired(
        {"embed_tokens": "embed_tokens", "embed_positions": "embed_positions", "final_norm": "layer_norm"}, "biogpt."
    )
    + layouts.paired(
        {"sequence_norm": "self_attn_layer_norm", "channel_norm": "final_layer_norm"},
        "biogpt.layers.{layer}.",
        _OURS,
    )
    + layouts.paired(
        {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"},
        "biogpt.layers.{layer}.self_attn.",
        _MIXER,
    )
    + layouts.paired({"up_proj": "fc1", "down_proj": "fc2"}, "biogpt.layers.{layer}.", _CHANNEL),
    # layer_norm_eps is in the files, and every norm is made without it.
    ignored=frozenset(
        {
            "activation_dropout",
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
            "layer_norm_eps",
            "layerdrop",
        }
    ),
)
GPT_NEOX_JAPANESE = Adapter(
    "gpt_neox_japanese",
    {
        "vocab_size": 32000,
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_multiple_size": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rope_parameters": None,
        "rotary_emb_base": None,
        "rotary_pct": 1.0,
        "tie_word_embeddings": True,
    },
    _gpt_neox_japanese,
    layouts.paired(
        {
            "embed_tokens": "gpt_neox_japanese.embed_in",
            "final_norm": "gpt_neox_japanese.final_layer_norm",
            "lm_head": "embed_out",
        }
    )
    + layouts.paired(layouts.PRE_NORMS, "gpt_neox_japanese.layers.{layer}.", _OURS)
    + layouts.fused_heads("gpt_neox_japanese.layers.{layer}.attention.query_key_value")
    + (
        LayoutRule("gpt_neox_japanese.layers.{layer}.attention.dense.weight", (f"{_MIXER}o_proj.weight",)),
        LayoutRule("gpt_neox_japanese.layers.{layer}.attention.dense_bias", (f"{_MIXER}o_proj.bias",)),
    )
    + layouts.paired(layouts.FOUR_TIMES, "gpt_neox_japanese.layers.{layer}.mlp.", _CHANNEL),
    ignored=frozenset({"hidden_dropout", "max_position_embeddings", "rope_scaling", "rope_theta"}),
)
PERSIMMON = Adapter(
    "persimmon",
    {
        "vocab_size": 262144,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": None,
        "hidden_act": "relu2",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": None,
        "rope_theta": None,
        "qk_layernorm": True,
        "partial_rotary_factor": 0.5,
    },
    _persimmon,
    layouts.paired(layouts.OUTER | {"final_norm": "model.final_layernorm"})
    + layouts.paired(layouts.PRE_NORMS, "model.layers.{layer}.", _OURS)
    + layouts.fused_heads("model.layers.{layer}.self_attn.query_key_value")
    + layouts.paired(
        {"o_proj": "dense", "q_norm": "q_layernorm", "k_norm": "k_layernorm"},
        "model.layers.{layer}.self_attn.",
        _MIXER,
    )
    + layouts.paired(layouts.FOUR_TIMES, "model.layers.{layer}.mlp.", _CHANNEL),
    ignored=frozenset({"hidden_dropout", "max_position_embeddings", "rope_scaling"}),
)
