"""Falcon-H1 (arXiv:2507.22448): Mamba-2 beside attention in every layer, with muP multipliers of what each reads."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, positive, refusal, rules, shown
from planner.interop.families.bamba import MAMBA2_DEFAULTS, mamba2
from planner.interop.families.mamba import MAMBA2_TENSORS


def _inner_size(reader: Reader) -> int:
    if reader.value("mamba_d_ssm") is not None:
        return reader.integer("mamba_d_ssm")
    return reader.integer("mamba_expand") * reader.integer("hidden_size")


def _multipliers(reader: Reader, name: str, count: int) -> list[float]:
    """A list of factors; absent: ones."""
    values = reader.value(name)
    if values is None:
        return [1.0] * count
    if not isinstance(values, list) or len(values) != count:
        raise refusal(name, f"A list of {count} numbers is expected, got {shown(values)}.", "Write that many.")
    return [positive(name, value) for value in values]


def _or_none(factor: float) -> float | None:
    return None if factor == 1 else factor


def _before_projection(reader: Reader, name: str, bias: bool) -> float:
    """A factor on what a projection reads, which is one on what it gives where nothing is added to it."""
    factor = reader.number(name)
    if factor != 1 and bias:
        raise refusal(name, "A factor before a projection with a bias is not modelled.", "Write 1.0, or no bias.")
    return factor


def _mamba2(reader: Reader) -> dict[str, Any]:
    bias = layouts.truth(reader, "mamba_proj_bias")
    if bias != layouts.truth(reader, "projectors_bias"):
        raise refusal("projectors_bias", "A bias on one of Mamba's projections alone is not modelled.", "Write both.")
    inside = _before_projection(reader, "ssm_in_multiplier", bias)
    factors = [inside * factor for factor in _multipliers(reader, "ssm_multipliers", 5)]
    return mamba2(
        reader,
        _inner_size(reader),
        norm=layouts.truth(reader, "mamba_rms_norm"),
        norm_before_gate=layouts.truth(reader, "mamba_norm_before_gate"),
        projection_multipliers=None if factors == [1.0] * 5 else factors,
    )


def _build(reader: Reader) -> dict[str, Any]:
    biases = decoders.biases(reader)
    own = decoders.attention(reader, **biases)
    # The input's factor reaches the scores by queries and by keys, and the output by values.
    inside = _before_projection(reader, "attention_in_multiplier", biases["query_key_value_bias"])
    in_scores = inside * inside * reader.number("key_multiplier")
    own["softmax_scale"] = None if in_scores == 1 else own["head_dim"] ** -0.5 * in_scores
    mixer = {
        "kind": "parallel_mixers",
        "first": _mamba2(reader),
        "second": own,
        "first_multiplier": decoders.factor(reader, "ssm_out_multiplier"),
        "second_multiplier": _or_none(inside * reader.number("attention_out_multiplier")),
    }
    of_gate, of_output = _multipliers(reader, "mlp_multipliers", 2)
    channel = decoders.gated_mlp(
        reader,
        bias=reader.flag("mlp_bias"),
        gate_multiplier=_or_none(of_gate),
        output_multiplier=_or_none(of_output),
    )
    return decoders.decoder(
        reader,
        [{"sequence_mixer": mixer, "channel_mixer": channel}] * reader.integer("num_hidden_layers"),
        embedding_scale=decoders.factor(reader, "embedding_multiplier"),
        logit_scale=decoders.factor(reader, "lm_head_multiplier"),
    )


_FACTORS = dict.fromkeys(
    (
        "attention_in_multiplier",
        "attention_out_multiplier",
        "embedding_multiplier",
        "key_multiplier",
        "lm_head_multiplier",
        "ssm_in_multiplier",
        "ssm_out_multiplier",
    ),
    1.0,
)
_LAYER, _OURS = "model.layers.{layer}.", "layers.{layer}."

FALCON_H1 = decoders.like_llama(
    "falcon_h1",
    _build,
    MAMBA2_DEFAULTS
    | _FACTORS
    | {
        "vocab_size": 128000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "mamba_d_ssm": 1024,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        "projectors_bias": False,
        "mlp_multipliers": None,
        "ssm_multipliers": None,
    },
    (
        LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
        LayoutRule("model.final_layernorm.weight", ("final_norm.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        *decoders.layer_norms(sequence_norm="input_layernorm", channel_norm="pre_ff_layernorm"),
        *rules(f"{_LAYER}mamba.", f"{_OURS}sequence_mixer.first.", MAMBA2_TENSORS),
        *rules(f"{_LAYER}self_attn.", f"{_OURS}sequence_mixer.second.", decoders.LLAMA_ATTENTION),
        *rules(f"{_LAYER}feed_forward.", f"{_OURS}channel_mixer.", decoders.GATED_MLP),
    ),
    # How the weights were made and how many logits a prompt gives; the width of the MLP stands in intermediate_size.
    ignored={
        "mamba_use_mlp",
        "mlp_expansion_factor",
        "num_logits_to_keep",
        "time_step_floor",
        "time_step_max",
        "time_step_min",
        "time_step_rank",
        "use_mamba_kernels",
    },
    neutral={"attn_layer_indices": (None,), "sliding_window": (None,)},
)
