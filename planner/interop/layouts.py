"""Parts of configurations and layouts that families beyond Llama's kin share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from planner.interop.base import (
    IGNORED_EVERYWHERE,
    NEUTRAL_EVERYWHERE,
    Adapter,
    LayoutRule,
    Reader,
    groups,
    refusal,
)
from planner.interop.decoders import latent_scale

_LAYER = "model.layers.{layer}"
_CHANNEL = "layers.{layer}.channel_mixer"

SHARED_EXPERT_GATE = (
    LayoutRule(f"{_LAYER}.mlp.shared_expert_gate.weight", (f"{_CHANNEL}.shared_expert_gate.weight",)),
)
OUTER = {"embed_tokens": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}
PRE_NORMS = {"sequence_norm": "input_layernorm", "channel_norm": "post_attention_layernorm"}
LATENT_ATTENTION = {
    "q_proj.weight": "q_proj.weight",
    "q_a_proj": "q_a_proj",
    "q_a_norm.weight": "q_a_layernorm.weight",
    "q_b_proj.weight": "q_b_proj.weight",
    "kv_a_proj": "kv_a_proj_with_mqa",
    "kv_a_norm.weight": "kv_a_layernorm.weight",
    "kv_b_proj.weight": "kv_b_proj.weight",
    "o_proj": "o_proj",
}
"""DeepSeek's names of the tensors of latent attention."""

FOUR_TIMES = {"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
"""Megatron's names of the projections of an MLP."""
GPT_IGNORED = frozenset(
    {
        "attn_pdrop",
        "embd_pdrop",
        "gradient_checkpointing",
        "n_ctx",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    }
)
"""What GPT-2's kin have beside the model: dropout, and a head that classifies."""
PREDICTION_NOTES = {
    "num_nextn_predict_layers": "Layers for multi-token prediction are no part of the model that generates."
}


def both(theirs: str, *ours: str, **how: Any) -> tuple[LayoutRule, ...]:
    """The weight and the bias of one of their projections or norms, made of one or several of ours."""
    return tuple(
        LayoutRule(f"{theirs}.{end}", tuple(f"{name}.{end}" for name in ours), **how) for end in ("weight", "bias")
    )


def paired(names: dict[str, str], theirs: str = "", ours: str = "", **how: Any) -> tuple[LayoutRule, ...]:
    """The same for several that correspond one to one, our name to theirs, under a prefix each."""
    return tuple(rule for own, name in names.items() for rule in both(f"{theirs}{name}", f"{ours}{own}", **how))


def fused_heads(theirs: str, by: str | None = "num_attention_heads") -> tuple[LayoutRule, ...]:
    """A fused projection of queries, keys and values, in turn for each of as many heads as the field ``by`` says."""
    return both(theirs, *(f"layers.{{layer}}.sequence_mixer.{part}_proj" for part in "qkv"), interleaved_by=by)


def nested(
    reader: Reader,
    name: str,
    defaults: Mapping[str, Any],
    ignored: Iterable[str] = (),
    neutral: Mapping[str, tuple[Any, ...]] | None = None,
) -> Reader:
    """A reader of the fields of a mapping within a configuration, ``name.field``, judged as those outside are."""
    written = reader.value(name)
    if not isinstance(written, Mapping | None):
        raise refusal(name, "A mapping is expected.", "Write a mapping of fields.", "not_a_mapping")
    inner = Adapter(
        f"{name}",
        {f"{name}.{field}": value for field, value in defaults.items()},
        lambda _: {},
        (),
        ignored=frozenset(f"{name}.{field}" for field in ignored),
        neutral={f"{name}.{field}": values for field, values in (neutral or {}).items()},
    )
    # Every nested configuration that transformers writes has the fields of all configurations, too.
    fields = {
        field if field in IGNORED_EVERYWHERE or field in NEUTRAL_EVERYWHERE else f"{name}.{field}": value
        for field, value in (written or {}).items()
    }
    inner.judge(fields)
    return Reader(fields, inner.defaults, {})


def sparse_steps(reader: Reader, experts: int) -> list[bool]:
    """Whether each layer is a mixture: every ``decoder_sparse_step``-th, but none of ``mlp_only_layers``."""
    dense, step = set(reader.integers("mlp_only_layers")), reader.integer("decoder_sparse_step")
    if any(index < 0 for index in dense):
        raise refusal("mlp_only_layers", "Layers are counted from 0.", "Write whole numbers from 0.")
    count = reader.integer("num_hidden_layers")
    return [index not in dense and experts > 0 and (index + 1) % step == 0 for index in range(count)]


def truth(reader: Reader, name: str) -> bool:
    """A flag whose absence transformers reads as false."""
    return reader.value(name) is not None and reader.flag(name)


def split_heads(reader: Reader, heads: str = "num_attention_heads", channels: str = "hidden_size") -> tuple[int, int]:
    """Heads and their channels, in the families whose heads are equal parts of the stream."""
    count, hidden = reader.integer(heads), reader.integer(channels)
    if hidden % count:
        raise refusal(heads, f"It does not divide {channels} ({hidden}).", f"Choose a divisor of {hidden}.")
    return count, hidden // count


def attention(reader: Reader, **extra: Any) -> dict[str, Any]:
    """The attention of a Llama-like configuration whose heads are rotated in part, as plain data."""
    heads = reader.integer("num_attention_heads")
    key_value_heads = reader.optional_integer("num_key_value_heads") or heads
    head_dim = reader.optional_integer("head_dim") or reader.integer("hidden_size") // heads
    if head_dim < 1:
        raise refusal("num_attention_heads", "More heads than channels.", "Lower it, or set head_dim.")
    return {
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        "rope_share": reader.rope_share(head_dim),
        **extra,
    }


def expert_groups(reader: Reader, of: str = "n_routed_experts") -> dict[str, Any]:
    """The groups that experts, as many as the field ``of`` says, are chosen by first, as plain data."""
    experts, count, chosen = (reader.integer(name) for name in (of, "n_group", "topk_group"))
    if experts % count:
        raise refusal("n_group", f"It does not divide {of} ({experts}).", f"Choose a divisor of {experts}.")
    if chosen > count:
        raise refusal("topk_group", f"A token cannot choose {chosen} of {count} groups.", f"Choose at most {count}.")
    return {"num_expert_groups": count, "groups_per_tok": chosen}


def sigmoid_mixture(reader: Reader, of: str = "n_routed_experts", **extra: Any) -> dict[str, Any]:
    """A mixture as DeepSeek-V3 has it, by its names of the fields, of as many experts as ``of`` says, as plain data."""
    width = reader.integer("moe_intermediate_size")
    shared = (reader.optional_integer("n_shared_experts", least=0) or 0) * width
    return {
        "kind": "moe",
        "num_experts": reader.integer(of),
        "num_experts_per_tok": reader.integer("num_experts_per_tok"),
        "intermediate_size": width,
        "shared_intermediate_size": shared or None,
        "activation": reader.activation("hidden_act"),
        "router_scores": "sigmoid",
        "normalize_weights": truth(reader, "norm_topk_prob"),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
        "score_correction_bias": True,
        **expert_groups(reader, of),
        **extra,
    }


def dense_then_sparse(
    reader: Reader, mixers: list[dict[str, Any]], mixture: dict[str, Any], dense: dict[str, Any]
) -> list[dict[str, Any]]:
    """Layers of which the first ``first_k_dense_replace`` have an MLP and the rest a mixture."""
    first = reader.integer("first_k_dense_replace", least=0)
    return [
        {"sequence_mixer": mixer, "channel_mixer": mixture if index >= first else dense}
        for index, mixer in enumerate(mixers)
    ]


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


def rotary(reader: Reader, default: float = 10_000.0) -> dict[str, Any]:
    """Rotary positions, as plain data; ``default`` is the family's base where a file has none."""
    return {"kind": "rotary", "theta": reader.rope_theta(default=default), "scaling": reader.rope_scaling()}


def model(
    reader: Reader,
    layers: list[dict[str, Any]],
    norm: dict[str, Any],
    positions: dict[str, Any],
    channels: str = "hidden_size",
    **extra: Any,
) -> dict[str, Any]:
    """A model with any norm and any positions, as plain data."""
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": reader.integer(channels),
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
        "positions": positions,
        "norm": norm,
        "layer_groups": groups(layers),
        **extra,
    }


LATENT_EPSILON = 1e-6
"""That of the latents' norms in DeepSeek's families, whatever the configuration says of the others."""


def latent_epsilon(reader: Reader) -> float | None:
    """Epsilon of the latents' norms, where it is not that of the others."""
    return None if reader.number("rms_norm_eps") == LATENT_EPSILON else LATENT_EPSILON


def rotated_head(reader: Reader) -> None:
    """Refuse a ``head_dim``, by which some families count the rotated channels again, other than their number."""
    channels = reader.integer("qk_rope_head_dim")
    if reader.value("head_dim") not in (None, channels):
        raise refusal("head_dim", f"qk_rope_head_dim says {channels}.", "Remove it, or write both alike.")


def latent_attention(reader: Reader, **extra: Any) -> dict[str, Any]:
    """Latent attention by DeepSeek's names of its fields, as plain data."""
    if "v_head_dim" not in extra:
        extra["v_head_dim"] = reader.integer("v_head_dim")
    return {
        "kind": "latent_attention",
        "softmax_scale": latent_scale(reader),
        "num_attention_heads": reader.integer("num_attention_heads"),
        "q_lora_rank": reader.optional_integer("q_lora_rank"),
        "kv_lora_rank": reader.integer("kv_lora_rank"),
        "qk_nope_head_dim": reader.integer("qk_nope_head_dim"),
        "qk_rope_head_dim": reader.integer("qk_rope_head_dim"),
        "attention_bias": reader.flag("attention_bias"),
        **extra,
    }
