"""RecurrentGemma: Griffin's recurrent block in two layers of three, attention with a window in the third.

arXiv:2404.07839; the recurrent block is arXiv:2402.19427.
"""

from __future__ import annotations

import math
from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import LayoutRule, Reader, refusal, rules

KINDS = ("recurrent", "attention")


def _in_bfloat16(value: float) -> float:
    """The nearest number of eight significant bits, which transformers keeps the embedding's factor in."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, 8)), exponent - 8)


def _blocks(reader: Reader) -> list[str]:
    """The kind of every layer: ``block_types`` over and over."""
    pattern, count = reader.value("block_types"), reader.integer("num_hidden_layers")
    if not isinstance(pattern, list | tuple) or not pattern or any(word not in KINDS for word in pattern):
        raise refusal("block_types", "A list of words is expected.", f"Each is one of {', '.join(KINDS)}.")
    if count > 100 * len(pattern):
        raise refusal("block_types", "transformers repeats it a hundred times at most.", "Write a longer pattern.")
    return [pattern[index % len(pattern)] for index in range(count)]


def _recurrent(reader: Reader) -> dict[str, Any]:
    width = reader.optional_integer("lru_width") or reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    if width % heads:
        raise refusal("lru_width", f"{width} channels are no {heads} equal heads.", f"Choose a multiple of {heads}.")
    return {
        "kind": "rg_lru",
        "num_heads": heads,
        "head_dim": width // heads,
        "conv_kernel": reader.integer("conv1d_width"),
        "activation": reader.activation("hidden_activation"),
    }


def _build(reader: Reader) -> dict[str, Any]:
    if reader.rope_scaling() is not None:
        raise refusal("rope_parameters.rope_type", "This family's rotation is not scaled.", "Write default.")
    mixers = {
        "recurrent": _recurrent(reader),
        "attention": layouts.attention(
            reader,
            sliding_window=reader.integer("attention_window_size"),
            query_key_value_bias=reader.flag("attention_bias"),
            output_bias=True,
        ),
    }
    channel = {
        "kind": "mlp",
        "intermediate_size": reader.integer("intermediate_size", least=2) // 2,
        "activation": reader.activation("hidden_activation"),
        "bias": True,
    }
    return decoders.decoder(
        reader,
        [{"sequence_mixer": mixers[kind], "channel_mixer": channel} for kind in _blocks(reader)],
        norm={"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps"), "zero_centered": True},
        embedding_scale=_in_bfloat16(math.sqrt(reader.integer("hidden_size"))),
        final_logit_softcap=reader.number("logits_soft_cap"),
    )


_LAYER, _OURS = "model.layers.{layer}.", "layers.{layer}."
_BLOCK = {"gate_proj": "linear_y", "in_proj": "linear_x", "conv1d": "conv_1d", "out_proj": "linear_out"}
_RECURRENCE = {
    "decay": "recurrent_param",
    "input_gate.weight": "input_gate_weight",
    "input_gate.bias": "input_gate_bias",
    "recurrence_gate.weight": "recurrent_gate_weight",
    "recurrence_gate.bias": "recurrent_gate_bias",
}
RECURRENT_GEMMA = decoders.like_llama(
    "recurrent_gemma",
    _build,
    {
        "vocab_size": 256000,
        "hidden_size": 2560,
        "intermediate_size": 7680,
        "num_hidden_layers": 26,
        "num_attention_heads": 10,
        "lru_width": None,
        "attention_window_size": 2048,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "partial_rotary_factor": 0.5,
        "block_types": ("recurrent", "recurrent", "attention"),
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    (
        LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
        LayoutRule("model.final_norm.weight", ("final_norm.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        *decoders.layer_norms(sequence_norm="temporal_pre_norm", channel_norm="channel_pre_norm"),
        *rules(f"{_LAYER}temporal_block.", f"{_OURS}sequence_mixer.", decoders.LLAMA_ATTENTION),
        *rules(f"{_LAYER}temporal_block.", f"{_OURS}sequence_mixer.", _BLOCK),
        *(
            LayoutRule(f"{_LAYER}temporal_block.rg_lru.{theirs}", (f"{_OURS}sequence_mixer.{ours}",))
            for ours, theirs in _RECURRENCE.items()
        ),
        *rules(f"{_LAYER}mlp_block.", f"{_OURS}channel_mixer.", decoders.GATED_MLP),
    ),
    absent=("hidden_act",),
    ignored=("final_w_init_variance_scale", "w_init_variance_scale"),  # how the weights were made
    aliases={"sliding_window": "attention_window_size"},
    neutral={"embeddings_scale_by_sqrt_dim": (True,)},
)
