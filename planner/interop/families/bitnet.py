"""BitNet b1.58: Llama with a norm before each block's last projection (arXiv:2504.12285).

The weights are trained to be ternary; how they are stored is said by ``quantization_config``, not here.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import LayoutRule, Reader, refusal


def _build(reader: Reader) -> dict[str, Any]:
    heads, _, head_dim = decoders.head_sizes(reader)
    hidden = reader.integer("hidden_size")
    if heads * head_dim != hidden:  # transformers makes the norm of the mixed values as wide as the stream
        raise refusal("head_dim", f"{heads} heads of {head_dim} are not {hidden} channels.", "Remove it.")
    layer = {
        "sequence_mixer": decoders.attention(reader, sub_norm=True, **decoders.biases(reader)),
        "channel_mixer": decoders.gated_mlp(reader, sub_norm=True),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


BITNET = decoders.like_llama(
    "bitnet",
    _build,
    {
        "vocab_size": 128256,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 30,
        "num_attention_heads": 20,
        "num_key_value_heads": 5,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "attention_bias": False,
    },
    decoders.LLAMA_LAYOUT
    + tuple(
        LayoutRule(f"model.layers.{{layer}}.{theirs}.weight", (f"layers.{{layer}}.{ours}.sub_norm.weight",))
        for theirs, ours in (("self_attn.attn_sub_norm", "sequence_mixer"), ("mlp.ffn_sub_norm", "channel_mixer"))
    ),
    neutral={"mlp_bias": (False,)},
)
