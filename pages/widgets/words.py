"""Components in words: their kinds, titles and sizes as a diagram and a list show them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pages.widgets.spec_fields import fields_of, text_of

_KINDS = {
    "mlp": "MLP",
    "moe": "Mixture of experts",
    "mamba1": "Mamba-1",
    "mamba2": "Mamba-2",
    "rms_norm": "RMSNorm",
    "layer_norm": "LayerNorm",
    "lm_head": "LM head",
}
_ACTIVATIONS = {"silu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELU", "relu": "ReLU", "relu_squared": "ReLU²"}
_GATED = {"silu": "SwiGLU", "gelu": "GeGLU", "gelu_tanh": "GeGLU", "relu": "ReGLU"}


def kind_label(kind: str) -> str:
    """A component's kind for people: ``latent_attention`` as ``Latent attention``."""
    return _KINDS.get(kind, kind.replace("_", " ").capitalize())


def title(part: Any) -> str:
    """A component and its variety: ``Attention · grouped-query, full``."""
    name = "MoE" if part.kind == "moe" else kind_label(part.kind)
    if part.kind == "attention":
        heads, shared = part.num_attention_heads, part.num_key_value_heads
        sharing = "multi-head" if shared == heads else "multi-query" if shared == 1 else "grouped-query"
        return f"{name} · {sharing}, {_reach(part)}"
    if part.kind in ("mlp", "moe"):
        gated = _GATED.get(part.activation, f"gated {part.activation}")
        return f"{name} · {gated if part.gated else _ACTIVATIONS.get(part.activation, part.activation)}"
    return name


def _reach(part: Any) -> str:
    if part.sliding_window is None:
        return "full"
    return f"{'dilated window' if part.dilation is not None else 'window'} {part.sliding_window:,}"


def note(part: Any) -> str:
    """A component's sizes in a few words: ``32 heads, 8 KV, 128 wide``."""
    if part.kind == "attention":
        return f"{part.num_attention_heads:,} heads, {part.num_key_value_heads:,} KV, {part.head_dim:,} wide"
    if part.kind == "latent_attention":
        return f"{part.num_attention_heads:,} heads, latent {part.kv_lora_rank:,}"
    if part.kind == "mlp":
        return f"{part.intermediate_size:,}"
    if part.kind == "moe":
        return f"{part.num_experts_per_tok:,} of {part.num_experts:,} experts, {part.intermediate_size:,} each"
    if part.kind == "mamba2":
        return f"{part.num_heads:,} heads of {part.head_dim:,}, state {part.state_size:,}"
    return sizes(part)


def sizes(part: BaseModel) -> str:
    """Any component's first required sizes, in its own field names."""
    views = [view for view in fields_of(type(part)) if view.required][:3]
    return ", ".join(f"{view.label.lower()} {text_of(getattr(part, view.name))}" for view in views)


def described(part: Any) -> str:
    """A mixer in a few words, for a list or a hover: ``Attention, window 4,096``."""
    window = getattr(part, "sliding_window", None)
    return kind_label(part.kind) + (f", window {window:,}" if window is not None else "")


def pattern(layers: Any) -> str:
    """A group's pattern in a few words: its sequence mixers, the commonest first."""
    counts: dict[str, int] = {}
    for layer in layers:
        mixer = layer.sequence_mixer
        if mixer is None:
            name = "no sequence mixer"
        elif mixer.kind == "attention":
            name = "full attention" if mixer.sliding_window is None else f"window {mixer.sliding_window:,}"
            if mixer.dilation is not None:
                name = f"dilated, stride {mixer.dilation:,}"
        else:
            name = kind_label(mixer.kind)
        counts[name] = counts.get(name, 0) + 1
    if len(layers) == 1:
        return next(iter(counts))
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{times} × {name}" for name, times in ranked)
