"""Mamba, FalconMamba (arXiv:2410.05355) and Mamba-2: a stack of state space layers without channel mixers."""

from __future__ import annotations

import math
from typing import Any

from planner.interop.base import LARGEST_WHOLE_NUMBER, Adapter, LayoutRule, Reader, groups, refusal, rules, shown


def time_step_rank(reader: Reader, name: str) -> int:
    """The rank of the time steps; ``auto`` is a sixteenth of the hidden size, rounded up."""
    if reader.value(name) == "auto":
        return math.ceil(reader.integer("hidden_size") / 16)
    return reader.integer(name)


def _bound(value: object) -> float:
    """One end of ``time_step_limit``; transformers writes what JSON has no number for as a mapping."""
    if isinstance(value, dict):
        value = {"Infinity": math.inf, "-Infinity": -math.inf}.get(str(value.get("__float__")))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise refusal("time_step_limit", f"A number is expected, got {shown(value)}.", "Write two numbers.")
    return value if abs(value) <= LARGEST_WHOLE_NUMBER else math.copysign(math.inf, value)


def time_step_limits(reader: Reader) -> dict[str, float | None]:
    """The range that time steps are clamped to, as plain data; no range where it holds every time step."""
    limits = reader.value("time_step_limit")
    if limits is None:
        return {}
    if not isinstance(limits, (list, tuple)) or len(limits) != 2:
        raise refusal("time_step_limit", f"Two numbers are expected, got {shown(limits)}.", "Write two numbers.")
    shortest, longest = (_bound(value) for value in limits)
    if longest <= 0 or shortest > longest:
        raise refusal("time_step_limit", f"No time step lies in {shown(limits)}.", "Write a range above zero.")
    return {
        "shortest_time_step": float(shortest) if shortest > 0 else None,
        "longest_time_step": float(longest) if math.isfinite(longest) else None,
    }


def _stack(reader: Reader, mixer: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": reader.integer("hidden_size"),
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
        "positions": {"kind": "none"},
        "norm": {"kind": "rms_norm", "epsilon": reader.number("layer_norm_epsilon")},
        "layer_groups": groups([{"sequence_mixer": mixer}] * reader.integer("num_hidden_layers")),
    }


def _inner_size(reader: Reader) -> int:
    """Channels within a layer: ``intermediate_size`` where a file has it, as in transformers, else by ``expand``."""
    product = reader.number("expand") * reader.integer("hidden_size")
    written = reader.optional_integer("intermediate_size")
    if written is not None:
        return written
    if not 1 <= product <= LARGEST_WHOLE_NUMBER:
        raise refusal("expand", "expand · hidden_size gives no usable number of channels.", "Choose another value.")
    return int(product)


def _mixer(reader: Reader) -> dict[str, Any]:
    return {
        "kind": "mamba1",
        "intermediate_size": _inner_size(reader),
        "state_size": reader.integer("state_size"),
        "conv_kernel": reader.integer("conv_kernel"),
        "time_step_rank": time_step_rank(reader, "time_step_rank"),
        "activation": reader.activation("hidden_act"),
        "use_bias": reader.flag("use_bias"),
        "use_conv_bias": reader.flag("use_conv_bias"),
    }


def _mamba(reader: Reader) -> dict[str, Any]:
    return _stack(reader, _mixer(reader))


def _falcon_mamba(reader: Reader) -> dict[str, Any]:
    norms = {"parameter_norms": True, "parameter_norm_weights": False}
    return _stack(reader, _mixer(reader) | norms | {"parameter_norm_epsilon": reader.number("mixer_rms_eps")})


def _mamba2(reader: Reader) -> dict[str, Any]:
    heads, head_dim = reader.integer("num_heads"), reader.integer("head_dim")
    if reader.number("expand") * reader.integer("hidden_size") != heads * head_dim:
        raise refusal(
            "num_heads",
            "num_heads · head_dim differs from expand · hidden_size.",
            "Choose them so that both products are equal.",
        )
    return _stack(
        reader,
        {
            "kind": "mamba2",
            "num_heads": heads,
            "head_dim": head_dim,
            "state_size": reader.integer("state_size"),
            "n_groups": reader.integer("n_groups"),
            "conv_kernel": reader.integer("conv_kernel"),
            "chunk_size": reader.integer("chunk_size"),
            "activation": reader.activation("hidden_act"),
            "use_bias": reader.flag("use_bias"),
            "use_conv_bias": reader.flag("use_conv_bias"),
            **time_step_limits(reader),
        },
    )


MAMBA1_TENSORS = {
    "in_proj": "in_proj",
    "conv1d": "conv1d",
    "x_proj": "x_proj",
    "dt_proj": "dt_proj",
    "A_log": "A_log",
    "D": "D",
    "out_proj": "out_proj",
}
MAMBA2_TENSORS = {
    "in_proj": "in_proj",
    "conv1d": "conv1d",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "norm.weight": "norm.weight",
    "out_proj": "out_proj",
}
_OUTER = (
    LayoutRule("backbone.embeddings.weight", ("embed_tokens.weight",)),
    LayoutRule("backbone.norm_f.weight", ("final_norm.weight",)),
    LayoutRule("lm_head.weight", ("lm_head.weight",)),
    LayoutRule("backbone.layers.{layer}.norm.weight", ("layers.{layer}.sequence_norm.weight",)),
)
_IGNORED = frozenset(
    {
        "d_inner",
        "d_model",
        "fused_add_norm",
        "n_layer",
        "pad_vocab_size_multiple",
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "rms_norm_eps",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_scale",
        "use_associative_scan",
        "use_mambapy",
    }
)
"""The original code's names of sizes, which transformers does not read, and how weights are made and stepped."""
_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
}

_FIRST: dict[str, Any] = _COMMON | {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "time_step_rank": "auto",
    "intermediate_size": None,
    "tie_word_embeddings": True,
}
_FIRST_LAYOUT = _OUTER + rules("backbone.layers.{layer}.mixer.", "layers.{layer}.sequence_mixer.", MAMBA1_TENSORS)

MAMBA = Adapter(
    "mamba", _FIRST, _mamba, _FIRST_LAYOUT, ignored=_IGNORED, neutral={"rms_norm": (True,), "ssm_cfg": ({},)}
)
FALCON_MAMBA = Adapter(
    "falcon_mamba",
    _FIRST | {"mixer_rms_eps": 1e-6},
    _falcon_mamba,
    _FIRST_LAYOUT,
    ignored=_IGNORED | {"use_falcon_mambapy"},
)
MAMBA2 = Adapter(
    "mamba2",
    _COMMON
    | {
        "vocab_size": 32768,
        "hidden_size": 4096,
        "state_size": 128,
        "num_hidden_layers": 64,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "chunk_size": 256,
        "time_step_limit": (0.0, math.inf),
        "tie_word_embeddings": False,
    },
    _mamba2,
    _OUTER + rules("backbone.layers.{layer}.mixer.", "layers.{layer}.sequence_mixer.", MAMBA2_TENSORS),
    # Mamba-1's fields are read and never used: the sizes are num_heads · head_dim.
    ignored=_IGNORED | {"intermediate_size", "time_step_rank", "norm_before_gate"},
    neutral={"rms_norm": (True,)},
)
