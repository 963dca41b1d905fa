"""Published architectures, written out field by field from their configurations and papers, with published counts."""

from __future__ import annotations

from typing import Any

from planner import ArchitectureSpec, parse_spec


def attention(heads: int, key_value_heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        **more,
    }


def model(name: str, vocab_size: int, hidden_size: int, groups: list[dict[str, Any]], **more: Any) -> ArchitectureSpec:
    return parse_spec(
        {"name": name, "vocab_size": vocab_size, "hidden_size": hidden_size, "layer_groups": groups, **more}
    )


def uniform(
    repeats: int, sequence: dict[str, Any] | None, channel: dict[str, Any] | None, **more: Any
) -> dict[str, Any]:
    return {"repeats": repeats, "layers": [{"sequence_mixer": sequence, "channel_mixer": channel, **more}]}


# Llama 2: arXiv:2307.09288, and the configurations of meta-llama/Llama-2-7b-hf and -70b-hf.
LLAMA_2_7B = model(
    "Llama 2 7B", 32_000, 4096, [uniform(32, attention(32, 32, 128), {"kind": "mlp", "intermediate_size": 11_008})]
)
LLAMA_2_70B = model(
    "Llama 2 70B", 32_000, 8192, [uniform(80, attention(64, 8, 128), {"kind": "mlp", "intermediate_size": 28_672})]
)
# Mistral 7B: arXiv:2310.06825, table 1.
MISTRAL_7B = model(
    "Mistral 7B",
    32_000,
    4096,
    [uniform(32, attention(32, 8, 128, sliding_window=4096), {"kind": "mlp", "intermediate_size": 14_336})],
)
# Mixtral: arXiv:2401.04088, table 1: 47 B parameters, 13 B of them active.
MIXTRAL_8X7B = model(
    "Mixtral 8x7B",
    32_000,
    4096,
    [
        uniform(
            32,
            attention(32, 8, 128),
            {"kind": "moe", "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14_336},
        )
    ],
)
# GPT-2: the configuration of openai-community/gpt2.
GPT_2 = model(
    "GPT-2",
    50_257,
    768,
    [
        uniform(
            12,
            attention(12, 12, 64, query_key_value_bias=True, output_bias=True),
            {"kind": "mlp", "intermediate_size": 3072, "gated": False, "bias": True, "activation": "gelu_tanh"},
        )
    ],
    tie_word_embeddings=True,
    positions={"kind": "learned", "num_positions": 1024},
    norm={"kind": "layer_norm"},
)
# Qwen2 0.5B: the configuration of Qwen/Qwen2-0.5B.
QWEN_2_HALF = model(
    "Qwen2 0.5B",
    151_936,
    896,
    [uniform(24, attention(14, 2, 64, query_key_value_bias=True), {"kind": "mlp", "intermediate_size": 4864})],
    tie_word_embeddings=True,
)
# Gemma 2 2B: arXiv:2408.00118, table 1, and the configuration of google/gemma-2-2b.
_GEMMA_MLP = {"kind": "mlp", "intermediate_size": 9216, "activation": "gelu_tanh"}
GEMMA_2_2B = model(
    "Gemma 2 2B",
    256_000,
    2304,
    [
        {
            "repeats": 13,
            "layers": [
                {
                    "sequence_mixer": attention(8, 4, 256, sliding_window=4096, logit_softcap=50.0),
                    "channel_mixer": _GEMMA_MLP,
                    "norm_placement": "sandwich",
                },
                {
                    "sequence_mixer": attention(8, 4, 256, logit_softcap=50.0),
                    "channel_mixer": _GEMMA_MLP,
                    "norm_placement": "sandwich",
                },
            ],
        }
    ],
    tie_word_embeddings=True,
    embedding_scale=48.0,
)
# Mamba: arXiv:2312.00752, and the configuration of state-spaces/mamba-130m-hf.
MAMBA_130M = model(
    "Mamba 130M",
    50_280,
    768,
    [uniform(24, {"kind": "mamba1", "intermediate_size": 1536, "state_size": 16, "time_step_rank": 48}, None)],
    tie_word_embeddings=True,
    positions={"kind": "none"},
)
# Mamba-2: arXiv:2405.21060, and the configuration of state-spaces/mamba2-130m.
MAMBA_2_130M = model(
    "Mamba-2 130M",
    50_288,
    768,
    [uniform(24, {"kind": "mamba2", "num_heads": 24, "head_dim": 64, "state_size": 128}, None)],
    tie_word_embeddings=True,
    positions={"kind": "none"},
)
# DeepSeek-V3: arXiv:2412.19437, section 4.2, without the module that predicts a second token.
_LATENT = {
    "kind": "latent_attention",
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
DEEPSEEK_V3 = model(
    "DeepSeek-V3",
    129_280,
    7168,
    [
        uniform(3, _LATENT, {"kind": "mlp", "intermediate_size": 18_432}),
        uniform(
            58,
            _LATENT,
            {
                "kind": "moe",
                "num_experts": 256,
                "num_experts_per_tok": 8,
                "intermediate_size": 2048,
                "shared_intermediate_size": 2048,
                "router_scores": "sigmoid",
                "routed_scaling_factor": 2.5,
                "num_expert_groups": 8,
                "groups_per_tok": 4,
                "score_correction_bias": True,
            },
        ),
    ],
)
# Jamba v0.1: arXiv:2403.19887: 52 B parameters, 12 B of them active; attention in the fifth of every eight layers.
_JAMBA_MAMBA = {
    "kind": "mamba1",
    "intermediate_size": 8192,
    "state_size": 16,
    "time_step_rank": 256,
    "parameter_norms": True,
}
_JAMBA_MOE = {"kind": "moe", "num_experts": 16, "num_experts_per_tok": 2, "intermediate_size": 14_336}
JAMBA = model(
    "Jamba v0.1",
    65_536,
    4096,
    [
        {
            "repeats": 4,
            "layers": [
                {
                    "sequence_mixer": attention(32, 8, 128) if index == 4 else _JAMBA_MAMBA,
                    "channel_mixer": _JAMBA_MOE if index % 2 else {"kind": "mlp", "intermediate_size": 14_336},
                }
                for index in range(8)
            ],
        }
    ],
    positions={"kind": "none"},
)

PUBLISHED: dict[str, tuple[ArchitectureSpec, int]] = {
    spec.name: (spec, count)
    for spec, count in (
        (LLAMA_2_7B, 6_738_415_616),
        (LLAMA_2_70B, 68_976_648_192),
        (MISTRAL_7B, 7_241_732_096),
        (MIXTRAL_8X7B, 46_702_792_704),
        (GPT_2, 124_439_808),
        (QWEN_2_HALF, 494_032_768),
        (GEMMA_2_2B, 2_614_341_888),
        (MAMBA_130M, 129_135_360),
        (MAMBA_2_130M, 128_989_632),
        (DEEPSEEK_V3, 671_026_404_352),
        (JAMBA, 51_570_323_328),
    )
}
"""Specification and number of parameters, as the model cards and the weights' own indices state them."""
