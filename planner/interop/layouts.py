"""Parts of configurations and layouts that families beyond Llama's kin share."""

from __future__ import annotations

from typing import Any

from planner.interop.base import LayoutRule, Reader, groups, refusal

_LAYER = "model.layers.{layer}"
_CHANNEL = "layers.{layer}.channel_mixer"

SHARED_EXPERT_GATE = (
    LayoutRule(f"{_LAYER}.mlp.shared_expert_gate.weight", (f"{_CHANNEL}.shared_expert_gate.weight",)),
)


def sparse_steps(reader: Reader, experts: int) -> list[bool]:
    """Whether each layer is a mixture: every ``decoder_sparse_step``-th, but none of ``mlp_only_layers``."""
    dense, step = set(reader.integers("mlp_only_layers")), reader.integer("decoder_sparse_step")
    if any(index < 0 for index in dense):
        raise refusal("mlp_only_layers", "Layers are counted from 0.", "Write whole numbers from 0.")
    count = reader.integer("num_hidden_layers")
    return [index not in dense and experts > 0 and (index + 1) % step == 0 for index in range(count)]


def norms(names: dict[str, str], layer: str = _LAYER, bias: bool = True) -> tuple[LayoutRule, ...]:
    """Norms of a layer, our name to theirs, with a bias where LayerNorm has one."""
    endings = ("weight", "bias") if bias else ("weight",)
    return tuple(
        LayoutRule(f"{layer}.{theirs}.{end}", (f"layers.{{layer}}.{ours}.{end}",))
        for ours, theirs in names.items()
        for end in endings
    )


def outer(names: dict[str, str]) -> tuple[LayoutRule, ...]:
    """Tensors outside the layers, our name to theirs, each with a weight and perhaps a bias."""
    return tuple(
        LayoutRule(f"{theirs}.{end}", (f"{ours}.{end}",))
        for ours, theirs in names.items()
        for end in ("weight", "bias")
    )


PRE_NORMS = {"sequence_norm": "input_layernorm", "channel_norm": "post_attention_layernorm"}
OUTER = {"embed_tokens": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}


def plain_mlp(reader: Reader, width: int, bias: bool, act: str = "hidden_act") -> dict[str, Any]:
    """An MLP of two projections, as plain data."""
    activation = reader.activation(act)
    return {"kind": "mlp", "intermediate_size": width, "gated": False, "activation": activation, "bias": bias}


def layer_norm(reader: Reader, name: str = "layer_norm_eps", bias: bool = True) -> dict[str, Any]:
    """LayerNorm, as plain data."""
    return {"kind": "layer_norm", "epsilon": reader.number(name), "bias": bias}


def replaced(defaults: dict[str, Any], without: tuple[str, ...] = (), **other: Any) -> dict[str, Any]:
    """Defaults of one family made from those of another."""
    return {name: value for name, value in defaults.items() if name not in without} | other


def model(
    reader: Reader, layers: list[dict[str, Any]], norm: dict[str, Any], positions: dict[str, Any], **extra: Any
) -> dict[str, Any]:
    """A model with any norm and any positions, as plain data."""
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": reader.integer("hidden_size"),
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
        "positions": positions,
        "norm": norm,
        "layer_groups": groups(layers),
        **extra,
    }


def rotary(reader: Reader) -> dict[str, Any]:
    """Rotary positions, as plain data."""
    return {"kind": "rotary", "theta": reader.rope_theta()}
