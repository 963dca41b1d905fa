"""nanochat: norms without weights, one right after the embedding, squared ReLU and bounded logits.

Source: the repository karpathy/nanochat.
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import LayoutRule, Reader, rules


def _build(reader: Reader) -> dict[str, Any]:
    layer = {
        "sequence_mixer": decoders.attention(
            reader,
            query_key_norm="head",
            query_key_norm_weight=False,
            query_key_norm_after_rope=True,
            **decoders.biases(reader),
        ),
        "channel_mixer": decoders.gated_mlp(reader, gated=False),
    }
    return decoders.decoder(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm={"kind": "rms_norm", "epsilon": reader.number("rms_norm_eps"), "has_weight": False},
        embedding_norm=True,
        final_logit_softcap=reader.optional_number("final_logit_softcapping"),
    )


NANOCHAT = decoders.like_llama(
    "nanochat",
    _build,
    {
        "vocab_size": 50304,
        "hidden_size": 768,
        "intermediate_size": 8192,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "hidden_act": "relu2",
        "final_logit_softcapping": 15.0,
        "attention_bias": False,
    },
    (
        LayoutRule("model.embed_tokens.weight", ("embed_tokens.weight",)),
        LayoutRule("lm_head.weight", ("lm_head.weight",)),
        *decoders.ATTENTION,
        *rules("model.layers.{layer}.mlp.", "layers.{layer}.channel_mixer.", {"up_proj": "fc1", "down_proj": "fc2"}),
    ),
    rotary_backwards=True,
)
