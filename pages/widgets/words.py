"""Components in words: their kinds, titles and sizes as a diagram and a list show them."""

from __future__ import annotations

from typing import Any

from planner.components import Component

_KINDS = {
    "moe": "Mixture of experts",
    "rg_lru": "RG-LRU",
    "mamba1": "Mamba-1",
    "mamba2": "Mamba-2",
    "rms_norm": "RMSNorm",
    "layer_norm": "LayerNorm",
}
_ACRONYMS = {"mlp", "lm", "rwkv"}


def kind_label(kind: str) -> str:
    """A component's kind for people: ``latent_attention`` as ``Latent attention``."""
    first, *rest = kind.split("_")
    spelled = first.upper() if first in _ACRONYMS else first.capitalize()
    return _KINDS.get(kind, " ".join((spelled, *rest)))


_SETTINGS = {
    "adamw": "AdamW",
    "adamw_8bit": "8-bit AdamW",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "muon": "Muon",
    "sgd": "SGD",
}


def setting(value: str) -> str:
    """A setting of a plan for people: ``adamw`` as ``AdamW``, ``bf16_mixed`` as ``bf16 mixed``."""
    return _SETTINGS.get(value, value.replace("_", " "))


def title(part: Component) -> str:
    """A component and its variety: ``Attention · grouped-query, full``."""
    kind = getattr(part, "kind", "")
    name = "MoE" if kind == "moe" else kind_label(kind)
    variety = part.variety()
    return f"{name} · {variety}" if variety else name


def note(part: Component) -> str:
    """A component's sizes in a few words: ``32 heads, 8 KV, 128 wide``."""
    return part.describe()


def described(part: Any) -> str:
    """A mixer in a few words, for a list or a hover: ``Attention, window 4,096``."""
    return kind_label(part.kind) + (f", {part.pattern.words()}" if getattr(part, "sees_a_part", False) else "")


def pattern(layers: Any) -> str:
    """A group's pattern in a few words: its sequence mixers, the commonest first."""
    counts: dict[str, int] = {}
    for layer in layers:
        mixer = layer.sequence_mixer
        if mixer is None:
            name = "no sequence mixer"
        elif mixer.kind == "attention":
            name = mixer.pattern.words() if mixer.sees_a_part else "full attention"
        else:
            name = kind_label(mixer.kind)
        counts[name] = counts.get(name, 0) + 1
    if len(layers) == 1:
        return next(iter(counts))
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{times} × {name}" for name, times in ranked)
