"""MiniMax-01 (arXiv:2501.08313) and MiniMax-M2: lightning attention in most layers of the first, none of the second.

MiniMax-01 norms the stream itself before each mixer, which then is added to what it read. So its norms stand after the
residual of the mixer before: the first layer's after the embedding, and the last one's is the model's final norm.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, refusal, rules
from planner.spec import ArchitectureSpec

LIGHTNING_NORM_EPSILON = 1e-6
"""transformers gives the norm of lightning attention no epsilon, so that it has its class's own."""


def _factors(reader: Reader, name: str) -> list[float] | None:
    """How a mixer is added: factors on the stream and on its output."""
    factors = [reader.number(f"{name}_alpha_factor"), reader.number(f"{name}_beta_factor")]
    return None if factors == [1.0, 1.0] else factors


def _minimax(reader: Reader) -> dict[str, Any]:
    count = reader.integer("num_hidden_layers")
    kinds = ["linear_attention" if index % 2 else "full_attention" for index in range(count)]
    if reader.value("layer_types") is not None:
        kinds = reader.strings("layer_types", count, ("full_attention", "linear_attention"))
    own = decoders.attention(reader, sliding_window=reader.optional_integer("sliding_window"))
    lightning = {
        "kind": "lightning_attention",
        "num_attention_heads": own["num_attention_heads"],
        "head_dim": own["head_dim"],
        "chunk_size": reader.integer("block_size"),
        "activation": reader.activation("hidden_act"),
        "norm_epsilon": LIGHTNING_NORM_EPSILON,
    }
    around = {
        "channel_mixer": decoders.mixture(reader, "num_local_experts"),
        "norm_placement": "after_residual",
        "channel_multipliers": _factors(reader, "mlp"),
    }
    layer_of = {
        "full_attention": {"sequence_mixer": own, "sequence_multipliers": _factors(reader, "full_attn")},
        "linear_attention": {"sequence_mixer": lightning, "sequence_multipliers": _factors(reader, "linear_attn")},
    }
    return decoders.decoder(
        reader,
        [{**layer_of[kind], **around} for kind in kinds],
        positions={
            "kind": "rotary",
            "theta": reader.rope_theta(default=1_000_000.0),
            "scaling": reader.rope_scaling(),
        },
        embedding_norm=True,
        final_norm=False,
    )


def _layout(spec: ArchitectureSpec) -> tuple[LayoutRule, ...]:
    """The names of tensors; each norm of theirs is one of ours of the layer before."""
    last = spec.num_layers - 1
    norms = [LayoutRule("model.layers.0.input_layernorm.weight", ("embedding_norm.weight",))]
    for index in range(spec.num_layers):
        theirs = "model.norm.weight" if index == last else f"model.layers.{index + 1}.input_layernorm.weight"
        norms.append(LayoutRule(theirs, (f"layers.{index}.channel_norm.weight",)))
    theirs_attention, ours_attention = "model.layers.{layer}.self_attn.", "layers.{layer}.sequence_mixer."
    own = {"gate_proj": "output_gate", "norm": "norm", "o_proj": "out_proj"}
    return (
        LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        *norms,
        *decoders.layer_norms(sequence_norm="post_attention_layernorm"),
        *rules(theirs_attention, ours_attention, decoders.LLAMA_ATTENTION, kind="attention"),
        LayoutRule(
            f"{theirs_attention}qkv_proj.weight",
            tuple(f"{ours_attention}{part}_proj.weight" for part in "qkv"),
            interleaved_by="num_attention_heads",
            kind="lightning_attention",
        ),
        *rules(theirs_attention, ours_attention, own, kind="lightning_attention"),
        *decoders.mixture_rules("model.layers.{layer}.mlp", "gate", shared=None),
    )


_FACTORS: dict[str, Any] = {
    f"{mixer}_{name}_factor": 1 for mixer in ("full_attn", "linear_attn", "mlp") for name in ("alpha", "beta")
}

MINIMAX = decoders.like_llama(
    "minimax",
    _minimax,
    _FACTORS
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "layer_types": None,
        "block_size": 256,
    },
    _layout,
    aliases={"num_experts": "num_local_experts"},
    # MiniMax's own code rotates part of each head, transformers' all of it, whatever this field says.
    unmodelled={"rotary_dim": (None,)},
)


def _rotated_share(reader: Reader, head_dim: int) -> float:
    """Share of a head that is rotated: by either spelling of the factor, else ``rotary_dim`` channels."""
    written = reader.value("partial_rotary_factor"), reader.rope_parameter("partial_rotary_factor")
    if reader.value("rotary_dim") is None or written != (None, None):
        return reader.rope_share(head_dim)
    channels = reader.integer("rotary_dim")
    if channels > head_dim:
        raise refusal("rotary_dim", "It is more than head_dim.", f"Choose at most {head_dim}.")
    return (channels + channels % 2) / head_dim


def _minimax_m2(reader: Reader) -> dict[str, Any]:
    own = layouts.attention(reader, query_key_norm="projection")
    own["rope_share"] = _rotated_share(reader, own["head_dim"])
    kinds = reader.value("attn_type_list")
    if kinds is not None and any(kind != 1 for kind in reader.integers("attn_type_list")):
        raise refusal("attn_type_list", "Softmax attention, 1, is all that this family has.", "Write 1 a layer.")
    mixture = decoders.mixture(reader, "num_local_experts", router_scores="sigmoid", score_correction_bias=True)
    layer = {"sequence_mixer": own, "channel_mixer": mixture}
    positions = layouts.rotary(reader, default=5_000_000.0)
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"), positions=positions)


MINIMAX_M2 = decoders.like_llama(
    "minimax_m2",
    _minimax_m2,
    {
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
        "partial_rotary_factor": None,
        "rotary_dim": None,
        "attn_type_list": None,
    },
    (
        *decoders.OUTER,
        *decoders.PRE_NORMS,
        *decoders.ATTENTION,
        *decoders.mixture_rules("model.layers.{layer}.mlp", "gate", shared=None),
    ),
    aliases={"num_experts": "num_local_experts"},
    ignored={"mlp_intermediate_size", "mtp_transformer_layers", "num_mtp_modules", "use_mtp"},
    neutral={
        "qk_norm_type": ("per_layer",),
        "scoring_func": ("sigmoid",),
        "shared_intermediate_size": (0, None),
        "use_qk_norm": (True,),
        "use_routing_bias": (True,),
    },
    notes={"num_mtp_modules": "Layers for multi-token prediction are no part of the model that generates."},
)
