"""What the families with attention share: fields of a Llama-like configuration and names of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from planner.interop.base import Adapter, LayoutRule, Reader, positive, refusal, rules
from planner.spec import ArchitectureSpec

LLAMA_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "o_proj"}
HEAD_NORMS = {"q_norm.weight": "q_norm.weight", "k_norm.weight": "k_norm.weight"}
GATED_MLP = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}

OUTER = (
    LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
    LayoutRule("model.norm.weight", ("final_norm.weight",)),
    LayoutRule("lm_head.weight", ("lm_head.weight",)),
)
PRE_NORMS = (
    LayoutRule("model.layers.{layer}.input_layernorm.weight", ("layers.{layer}.sequence_norm.weight",)),
    LayoutRule("model.layers.{layer}.post_attention_layernorm.weight", ("layers.{layer}.channel_norm.weight",)),
)
ATTENTION = rules("model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer.", LLAMA_ATTENTION | HEAD_NORMS)
MLP = rules("model.layers.{layer}.mlp.", "layers.{layer}.channel_mixer.", GATED_MLP)
LLAMA_LAYOUT = OUTER + PRE_NORMS + ATTENTION + MLP


def layer_norms(**theirs: str) -> tuple[LayoutRule, ...]:
    """The norms of a layer: our name of each, and theirs."""
    return rules("model.layers.{layer}.", "layers.{layer}.", theirs)


POST_NORMS = layer_norms(sequence_post_norm="post_attention_layernorm", channel_post_norm="post_feedforward_layernorm")
"""Norms on the output of each mixer alone, as OLMo 2 has them."""


def layer_norms_with_biases(**theirs: str) -> tuple[LayoutRule, ...]:
    """LayerNorms with their biases: our name of each, in a layer or not, and theirs in full."""
    return tuple(
        LayoutRule(f"{name}.{end}", (f"{'layers.{layer}.' if '{layer}' in name else ''}{ours}.{end}",))
        for ours, name in theirs.items()
        for end in ("weight", "bias")
    )


def fused(theirs: str, *ours: str) -> tuple[LayoutRule, ...]:
    """One projection of a layer that holds the rows of several of ours, with their biases."""
    return tuple(
        LayoutRule(f"model.layers.{{layer}}.{theirs}.{end}", tuple(f"layers.{{layer}}.{name}.{end}" for name in ours))
        for end in ("weight", "bias")
    )


FUSED_ATTENTION = fused("self_attn.qkv_proj", *(f"sequence_mixer.{part}_proj" for part in "qkv")) + fused(
    "self_attn.o_proj", "sequence_mixer.o_proj"
)
FUSED_MLP = fused("mlp.gate_up_proj", "channel_mixer.gate_proj", "channel_mixer.up_proj") + fused(
    "mlp.down_proj", "channel_mixer.down_proj"
)


def mixture_rules(prefix: str, router: str, shared: str | None = "shared_experts") -> tuple[LayoutRule, ...]:
    """The tensors of a mixture of stacked experts under ``prefix``; ``shared`` is absent where they are elsewhere."""
    ours = "layers.{layer}.channel_mixer."
    return (
        LayoutRule(f"{prefix}.{router}.weight", (f"{ours}router.weight",)),
        LayoutRule(f"{prefix}.experts.gate_up_proj", (f"{ours}experts.gate_up_proj",)),
        LayoutRule(f"{prefix}.experts.down_proj", (f"{ours}experts.down_proj",)),
        *(rules(f"{prefix}.{shared}.", f"{ours}shared_expert.", GATED_MLP) if shared is not None else ()),
    )


LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "rope_theta": None,
}
LLAMA_IGNORED = frozenset({"max_position_embeddings", "rope_scaling"})


def like_llama(
    model_type: str,
    build: Callable[[Reader], dict[str, Any]],
    defaults: Mapping[str, Any],
    layout: tuple[LayoutRule, ...] | Callable[[ArchitectureSpec], tuple[LayoutRule, ...]] = LLAMA_LAYOUT,
    absent: Iterable[str] = (),
    ignored: Iterable[str] = (),
    notes: dict[str, str] | None = None,
    **extra: Any,
) -> Adapter:
    """An adapter with Llama's fields but for those ``absent``, and with its own ``defaults`` in place of Llama's."""
    kept = {name: value for name, value in LLAMA_DEFAULTS.items() if name not in set(absent)}
    return Adapter(
        model_type,
        kept | dict(defaults),
        build,
        layout,
        ignored=LLAMA_IGNORED | set(ignored),
        notes=notes or {},
        **extra,
    )


def latent_scale(reader: Reader) -> float | None:
    """The factor on the scores of latent attention, where scaled rotation changes it too (DeepSeek's
    ``mscale_all_dim``: squared, since it is meant for queries and keys alike); absent: the usual one."""
    mscale, kind = reader.rope_parameter("mscale_all_dim"), reader.rope_parameter("rope_type")
    if (kind or reader.rope_parameter("type")) in (None, "default") or not mscale:
        return None
    factor = positive("rope_parameters.factor", reader.rope_parameter("factor"))
    channels = reader.integer("qk_nope_head_dim") + reader.integer("qk_rope_head_dim")
    if factor <= 1:
        return None
    temperature = 0.1 * positive("rope_parameters.mscale_all_dim", mscale) * math.log(factor) + 1.0
    return channels**-0.5 * temperature**2


def windowed_layers(reader: Reader, by_default: Callable[[int], bool]) -> list[bool]:
    """Whether each layer has a window: as ``layer_types`` says, else as the family does by the layer's index."""
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is None:
        return [by_default(index) for index in range(count)]
    kinds = reader.strings("layer_types", count, ("full_attention", "sliding_attention"))
    return [kind == "sliding_attention" for kind in kinds]


def sparse_layers(reader: Reader, by_default: Callable[[int], bool]) -> list[bool]:
    """Whether each layer has a mixture: as ``mlp_layer_types`` says, else as the family does by the layer's index."""
    count = reader.integer("num_hidden_layers")
    if reader.value("mlp_layer_types") is None:
        return [by_default(index) for index in range(count)]
    return [kind == "sparse" for kind in reader.strings("mlp_layer_types", count, ("dense", "sparse"))]


def biases(reader: Reader, name: str = "attention_bias") -> dict[str, bool]:
    """One flag for the biases of queries, keys, values and output."""
    return {"query_key_value_bias": reader.flag(name), "output_bias": reader.flag(name)}


def divided(reader: Reader) -> None:
    """Refuse heads that do not divide the channels, in the families where that leaves no working model."""
    if reader.integer("hidden_size") % reader.integer("num_attention_heads"):
        raise refusal("num_attention_heads", "It does not divide hidden_size.", "Choose a divisor of hidden_size.")


def head_sizes(reader: Reader) -> tuple[int, int, int]:
    """Query heads, KV heads and the size of a head, as Llama-like configurations mean them."""
    heads = reader.integer("num_attention_heads")
    key_value_heads = reader.optional_integer("num_key_value_heads") or heads
    if heads % key_value_heads:
        raise refusal(
            "num_key_value_heads",
            f"{heads} query heads cannot share {key_value_heads} KV heads evenly.",
            f"Choose a divisor of {heads}.",
        )
    head_dim = reader.optional_integer("head_dim") or reader.integer("hidden_size") // heads
    if head_dim < 1:
        raise refusal("num_attention_heads", "More heads than channels.", "Lower it, or set head_dim.")
    if head_dim % 2:
        raise refusal("head_dim", f"{head_dim} channels cannot be rotated in pairs.", "Choose an even number.")
    return heads, key_value_heads, head_dim


def attention(reader: Reader, **extra: Any) -> dict[str, Any]:
    """The attention of a Llama-like configuration, as plain data."""
    heads, key_value_heads, head_dim = head_sizes(reader)
    return {
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        **extra,
    }


def gated_mlp(
    reader: Reader, width: str = "intermediate_size", act: str = "hidden_act", **extra: Any
) -> dict[str, Any]:
    """The gated MLP of a Llama-like configuration, as plain data."""
    activation = reader.activation(act)
    return {"kind": "mlp", "intermediate_size": reader.integer(width), "activation": activation, **extra}


def mixture(reader: Reader, experts: str, **extra: Any) -> dict[str, Any]:
    """A mixture of gated experts as wide as ``intermediate_size``, their number in the field ``experts``."""
    for name in ("num_experts_per_tok", "intermediate_size"):
        if name not in extra:
            extra[name] = reader.integer(name)
    return {
        "kind": "moe",
        "num_experts": reader.integer(experts),
        "activation": reader.activation("hidden_act"),
        **extra,
    }


def rotations(
    reader: Reader, older: str, default: float = 10_000.0, local_default: float | None = None
) -> tuple[float, dict[bool, dict[str, Any]]]:
    """The base of layers without a window, and the rotary fields of layers with a window (True) and without (False).

    ``older`` is the field that gave the base of windowed layers before ``rope_parameters`` did, ``default`` (and
    ``local_default``, where it differs) the base where nothing does. Scalings stand in the layers, since none of a
    layer's own would mean the model's.
    """
    theta = reader.rope_theta("full_attention", default=default)
    local = reader.rope_theta("sliding_attention", older=older, default=local_default or default)
    return theta, {
        True: {
            "rope_theta": local if local != theta else None,
            "rope_scaling": reader.rope_scaling("sliding_attention"),
        },
        False: {"rope_scaling": reader.rope_scaling("full_attention")},
    }


def factor(reader: Reader, name: str, inverse: bool = False) -> float | None:
    """A factor (or its inverse); one is none."""
    value = reader.number(name)
    if value == 1:
        return None
    return 1 / value if inverse else value


def number_a_layer(reader: Reader, name: str) -> list[int]:
    """A whole number for every layer, from one for all or from a list of at least as many."""
    count = reader.integer("num_hidden_layers")
    if not isinstance(reader.value(name), list):
        return [reader.integer(name)] * count
    numbers = reader.integers(name)
    if len(numbers) < count or any(number < 1 for number in numbers):
        raise refusal(name, f"A list of {count} numbers from 1 is expected.", "Write one a layer.")
    return numbers[:count]


def decoder(
    reader: Reader,
    layers: list[dict[str, Any]],
    theta: float | None = None,
    norm: dict[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A model with rotary positions (of base ``theta``, else as the configuration says) and RMSNorm, as plain data."""
    from planner.interop.base import groups

    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": reader.integer("hidden_size"),
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
        "positions": {"kind": "rotary", "theta": reader.rope_theta(), "scaling": reader.rope_scaling()}
        if theta is None
        else {"kind": "rotary", "theta": theta},
        "norm": norm or {"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps")},
        "layer_groups": groups(layers),
        **extra,
    }


def windows_by_layer(reader: Reader, window: int | None) -> list[int | None]:
    """The window of every layer, from ``layer_types`` or from ``max_window_layers``."""
    count = reader.integer("num_hidden_layers")
    if reader.value("layer_types") is not None:
        kinds = reader.strings("layer_types", count, ("full_attention", "sliding_attention"))
        return [window if kind == "sliding_attention" else None for kind in kinds]
    first = reader.integer("max_window_layers", least=0)
    return [window if index >= first else None for index in range(count)]
