"""Phi-3 and Phi-4: Llama with queries, keys and values in one tensor, gate and up in another.

arXiv:2404.14219; Phi-4-mini rotates three quarters of each head (arXiv:2503.01743).
"""

from __future__ import annotations

from typing import Any

from planner.interop import decoders
from planner.interop.base import Reader, refusal


def _build(reader: Reader) -> dict[str, Any]:
    if (reader.rope_parameter("rope_type") or reader.rope_parameter("type")) == "yarn":
        raise refusal("rope_parameters.rope_type", "transformers reads yarn as longrope here.", "Write longrope.")
    mixer = decoders.attention(reader, sliding_window=reader.optional_integer("sliding_window"))
    layer = {
        "sequence_mixer": mixer | {"rope_share": reader.rope_share(mixer["head_dim"])},
        "channel_mixer": decoders.gated_mlp(reader),
    }
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


PHI3 = decoders.like_llama(
    "phi3",
    _build,
    {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 4096,
    },
    decoders.OUTER + decoders.PRE_NORMS + decoders.FUSED_ATTENTION + decoders.FUSED_MLP,
    ignored=(
        "embd_pdrop",
        "full_attn_mod",
        "interpolate_factor",
        "resid_pdrop",
    ),
    # Keys of published files that the class has no use for: it never has these biases.
    neutral={"attention_bias": (False,), "lm_head_bias": (False,), "mlp_bias": (False,)},
)
