"""The language models inside Qwen's multimodal models: Qwen2 and Qwen3 with positions of three coordinates.

Where there is only text, the three are one and the same, and the model is the one that it was made from (Qwen2-VL,
arXiv:2409.12191; Qwen2.5-VL, arXiv:2502.13923; Qwen2.5-Omni, arXiv:2503.20215; Qwen3-VL, arXiv:2511.21631). Visual
features that Qwen3-VL adds to the first layers come from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.interop import decoders
from planner.interop.base import Adapter, Reader
from planner.interop.families.qwen import QWEN2
from planner.interop.layouts import sparse_steps


def _mixer(reader: Reader) -> dict[str, Any]:
    return decoders.attention(reader, query_key_norm="head", **decoders.biases(reader))


def _qwen3_vl(reader: Reader) -> dict[str, Any]:
    layer = {"sequence_mixer": _mixer(reader), "channel_mixer": decoders.gated_mlp(reader)}
    return decoders.decoder(reader, [layer] * reader.integer("num_hidden_layers"))


def _mixture(normalized: Callable[[Reader], bool]) -> Callable[[Reader], dict[str, Any]]:
    """A model of mixtures whose chosen weights sum to one as ``normalized`` says."""

    def build(reader: Reader) -> dict[str, Any]:
        mixer, dense = _mixer(reader), decoders.gated_mlp(reader)
        experts = reader.integer("num_experts", least=0)
        mixture = {
            "kind": "moe",
            "num_experts": experts,
            "num_experts_per_tok": reader.integer("num_experts_per_tok"),
            "intermediate_size": reader.integer("moe_intermediate_size"),
            "activation": reader.activation("hidden_act"),
            "normalize_weights": normalized(reader),
        }
        return decoders.decoder(
            reader,
            [
                {"sequence_mixer": mixer, "channel_mixer": mixture if sparse else dense}
                for sparse in sparse_steps(reader, experts)
            ],
        )

    return build


def _qwen2(reader: Reader) -> dict[str, Any]:
    decoders.divided(reader)
    return QWEN2.build(reader)


def _like_qwen2(model_type: str, **defaults: Any) -> Adapter:
    return Adapter(
        model_type,
        {**QWEN2.defaults, "rope_theta": 1_000_000.0, **defaults},
        _qwen2,
        QWEN2.layout,
        ignored=QWEN2.ignored,
    )


_LARGE: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
}
QWEN2_VL_TEXT = _like_qwen2("qwen2_vl_text", **_LARGE)
QWEN2_5_VL_TEXT = _like_qwen2("qwen2_5_vl_text", **_LARGE)
QWEN2_5_OMNI_TEXT = _like_qwen2(
    "qwen2_5_omni_text",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    sliding_window=32768,
    tie_word_embeddings=True,
)
QWEN3_VL_TEXT = decoders.like_llama(
    "qwen3_vl_text",
    _qwen3_vl,
    {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "attention_bias": False,
        "rope_theta": 500_000.0,
    },
)
_MIXTURE: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "mlp_only_layers": None,
    "tie_word_embeddings": True,
    "rope_theta": 500_000.0,
}
QWEN3_VL_MOE_TEXT = decoders.like_llama(
    "qwen3_vl_moe_text",
    _mixture(lambda reader: True),
    _MIXTURE,
    decoders.LLAMA_LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "num_experts"},
    # The weights of the chosen experts always sum to one; published files say so in a field that no class reads.
    neutral={"norm_topk_prob": (True,), "sliding_window": (None,)},
)
QWEN3_OMNI_MOE_TEXT = decoders.like_llama(
    "qwen3_omni_moe_text",
    _mixture(lambda reader: reader.flag("norm_topk_prob")),
    _MIXTURE
    | {
        "vocab_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0,
    },
    decoders.LLAMA_LAYOUT + decoders.mixture_rules("model.layers.{layer}.mlp", "gate"),
    aliases={"num_local_experts": "num_experts"},
    ignored=("use_qk_norm",),
    neutral={"sliding_window": (None,), "shared_expert_intermediate_size": (0, None)},
)
