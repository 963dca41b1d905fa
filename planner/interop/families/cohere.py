"""Command R, R7B and Aya: attention and MLP side by side behind one norm, scaled logits (arXiv:2504.00698)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader, refusal, shown


def _model(reader: Reader, mixers: list[dict[str, Any]], theta: float) -> dict[str, Any]:
    """``theta`` is the family's rotary base where a file has none."""
    mlp = decoders.gated_mlp(reader)
    layers = [{"sequence_mixer": mixer, "channel_mixer": mlp, "residual": "parallel_shared_norm"} for mixer in mixers]
    return layouts.model(
        reader,
        layers,
        norm=layouts.layer_norm(reader, bias=False),
        positions=layouts.rotary(reader, theta),
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
    return _model(reader, [mixer] * reader.integer("num_hidden_layers"), theta=500_000.0)


def _cohere2(reader: Reader) -> dict[str, Any]:
    windowed = decoders.windowed_layers(
        reader, lambda index: (index + 1) % reader.integer("sliding_window_pattern") != 0
    )
    window = reader.integer("sliding_window")
    mixers = {
        True: decoders.attention(reader, **decoders.biases(reader), sliding_window=window),
        False: decoders.attention(reader, **decoders.biases(reader), rope_share=0.0),
    }
    return _model(reader, [mixers[narrow] for narrow in windowed], theta=10_000.0)


def _cohere2_moe(reader: Reader) -> dict[str, Any]:
    count, hidden = reader.integer("num_hidden_layers"), reader.integer("intermediate_size")
    prefix = reader.integer("first_k_dense_replace", least=0)
    if prefix > count:
        raise refusal("first_k_dense_replace", f"There are only {count} layers.", f"Write at most {count}.")
    early, late = (reader.integer(f"{stem}sliding_window_pattern") for stem in ("prefix_dense_", ""))
    windowed = decoders.windowed_layers(
        reader, lambda index: (index + 1) % early != 0 if index < prefix else (index - prefix + 1) % late != 0
    )
    sparse = decoders.sparse_layers(reader, lambda index: index >= prefix)
    window, biases = reader.optional_integer("sliding_window"), decoders.biases(reader)
    shared = reader.integer("num_shared_experts", least=0) * hidden
    half = _choice(reader, "shared_expert_combination_strategy", ("average", "sum")) == "average" and shared > 0
    scores = _choice(reader, "expert_selection_fn", ("softmax", "sigmoid"))
    mixture = decoders.mixture(
        reader,
        "num_experts",
        router_scores=scores,
        normalize_weights=scores == "softmax" or reader.flag("norm_topk_prob"),
        shared_intermediate_size=shared or None,
        routed_scaling_factor=0.5 if half else 1.0,
        shared_scaling_factor=0.5 if half else 1.0,
    )
    width = reader.optional_integer("prefix_dense_intermediate_size")
    dense = decoders.gated_mlp(reader) | ({} if width is None else {"intermediate_size": width})
    layers = [
        {
            "sequence_mixer": decoders.attention(
                reader,
                **biases,
                sliding_window=window if narrow else None,
                rope_share=1.0 if (narrow and window is not None) or (not routed and early == 1) else 0.0,
            ),
            "channel_mixer": mixture if routed else dense,
            "residual": "parallel_shared_norm",
        }
        for narrow, routed in zip(windowed, sparse, strict=True)
    ]
    epsilon = reader.optional_number("rms_norm_eps")
    norm = layouts.layer_norm(reader, bias=False) if epsilon is None else {"kind": "rms_norm", "epsilon": epsilon}
    return layouts.model(
        reader, layers, norm=norm, positions=layouts.rotary(reader), logit_scale=reader.number("logit_scale")
    )


def _choice(reader: Reader, name: str, words: tuple[str, ...]) -> str:
    """One of a few words."""
    word = reader.value(name)
    if not isinstance(word, str) or word not in words:
        raise refusal(name, f"{shown(word)} is not known for this family.", f"Write one of {', '.join(words)}.")
    return word


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
COHERE2_MOE = Adapter(
    "cohere2_moe",
    _DEFAULTS
    | {
        "head_dim": 128,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "layer_types": None,
        "num_experts_per_tok": 2,
        "num_experts": 8,
        "num_shared_experts": 0,
        "shared_expert_combination_strategy": "average",
        "expert_selection_fn": "softmax",
        "mlp_layer_types": None,
        "first_k_dense_replace": 0,
        "prefix_dense_sliding_window_pattern": 1,
        "prefix_dense_intermediate_size": None,
        "norm_topk_prob": True,
        "rms_norm_eps": None,
    },
    _cohere2_moe,
    _LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    ignored=decoders.LLAMA_IGNORED | {"cache_implementation"},
    rotary_in_pairs=True,
)
