"""Llama 4's text model: chunks of attention, layers without rotation, weights on the experts' inputs.

Source: the configuration of meta-llama/Llama-4-Scout-17B-16E.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import LayoutRule, Reader, refusal, rules
from planner.interop.families.smollm3 import rotated_layers


def _chunked(reader: Reader, rotated: list[bool]) -> list[bool]:
    """Whether each layer sees its chunk alone: as ``layer_types`` says, else where it rotates."""
    if reader.value("layer_types") is None:
        return [rotates and reader.value("attention_chunk_size") is not None for rotates in rotated]
    kinds = reader.strings("layer_types", len(rotated), ("full_attention", "chunked_attention"))
    return [kind == "chunked_attention" for kind in kinds]


def _mixtures(reader: Reader) -> set[int]:
    """Indices of the layers with a mixture."""
    if reader.value("moe_layers") is not None:
        return set(reader.integers("moe_layers"))
    step = reader.integer("interleave_moe_layer_step")
    return set(range(step - 1, reader.integer("num_hidden_layers"), step))


def _build(reader: Reader) -> dict[str, Any]:
    interval, flags = reader.integer("no_rope_layer_interval"), reader.integers("no_rope_layers")
    count = reader.integer("num_hidden_layers")
    if flags and reader.value("layer_types") is None and len(flags) != count:
        raise refusal("no_rope_layers", f"{len(flags)} flags do not fit {count} layers.", "Write one a layer.")
    rotated = rotated_layers(reader) if flags else [(index + 1) % interval != 0 for index in range(count)]
    norm = {"query_key_norm": "head", "query_key_norm_weight": False, "query_key_norm_after_rope": True}
    chunk, with_norm = reader.optional_integer("attention_chunk_size"), reader.flag("use_qk_norm")
    dense = decoders.gated_mlp(reader, "intermediate_size_mlp")
    mixture = decoders.mixture(
        reader,
        "num_local_experts",
        router_scores="sigmoid",
        normalize_weights=False,
        weights_on_input=True,
        shared_intermediate_size=reader.integer("intermediate_size"),
    )
    mixtures = _mixtures(reader)
    layers = [
        {
            "sequence_mixer": decoders.attention(
                reader,
                **decoders.biases(reader),
                rope_share=1.0 if rotates else 0.0,
                attention_chunk_size=chunk if chunked else None,
                **(norm if rotates and with_norm else {}),
            ),
            "channel_mixer": mixture if index in mixtures else dense,
        }
        for index, (rotates, chunked) in enumerate(zip(rotated, _chunked(reader, rotated), strict=True))
    ]
    return decoders.decoder(reader, layers)


_THEIRS, _OURS = "model.layers.{layer}.feed_forward.", "layers.{layer}.channel_mixer."

LLAMA4_TEXT = decoders.like_llama(
    "llama4_text",
    _build,
    {
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "moe_layers": None,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "layer_types": None,
        "attention_bias": False,
        "attn_temperature_tuning": True,
    },
    decoders.OUTER
    + decoders.PRE_NORMS
    + decoders.ATTENTION
    + rules(_THEIRS, _OURS, decoders.GATED_MLP)
    + rules(f"{_THEIRS}shared_expert.", f"{_OURS}shared_expert.", decoders.GATED_MLP)
    + (
        LayoutRule(f"{_THEIRS}router.weight", (f"{_OURS}router.weight",)),
        LayoutRule(f"{_THEIRS}experts.gate_up_proj", (f"{_OURS}experts.gate_up_proj",), transposed=True),
        LayoutRule(f"{_THEIRS}experts.down_proj", (f"{_OURS}experts.down_proj",), transposed=True),
    ),
    ignored=("attn_scale", "floor_scale", "for_llm_compressor"),
    # Layers that do not rotate scale their queries with the logarithm of the position, as the first two say.
    unmodelled={"attn_temperature_tuning": (False,)},
    rotary_in_pairs=True,
)
