"""Small values of fields that only some families have, beside :data:`tests.planner.interop.oracle.DIMENSIONS`."""

from __future__ import annotations

from typing import Any

GATED_DELTA: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
GROUPS = {"n_group": 2, "topk_group": 1}

SMALL: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "kv_lora_rank": 16,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "cwm": {"sliding_window": 16},
    "exaone4": {"sliding_window": 16},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "llama4_text": {"intermediate_size_mlp": 40, "attention_chunk_size": 16, "interleave_moe_layer_step": 2},
    "exaone_moe": {"sliding_window": 16, "sliding_window_pattern": 2},
    "granite_swa": {"sliding_window": 16},
    "granitemoe_swa": {"sliding_window": 16},
    "mellum": {"sliding_window": 16},
    "ministral": {"sliding_window": 16},
    "olmo3": {"sliding_window": 16},
    "vaultgemma": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "bamba": {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 16, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 16},
    "minimax": {"block_size": 16},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
        "shared_intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 24,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"],
    },
    "jamba": {"mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"full_attn_idxs": [1], "block_multiple_of": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "recurrent_gemma": {"lru_width": 40, "attention_window_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "olmo_hybrid": GATED_DELTA,
    "mistral": {"sliding_window": 16},
    "qwen2": {"max_window_layers": 2},
    "qwen3": {"max_window_layers": 2},
    "deepseek_v2": {
        "kv_lora_rank": 16,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "group_limited_greedy",
        "first_k_dense_replace": 1,
    },
    "glm4_moe": {"n_group": 2, "topk_group": 1, "use_qk_norm": True},
    "gpt_oss": {"sliding_window": 16},
    "stablelm": {"qk_layernorm": True},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 48},
    "laguna": {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] * 2},
    "afmoe": {"sliding_window": 16, "global_attn_every_n_layers": 2},
    "cohere2_moe": {"sliding_window": 16, "sliding_window_pattern": 2, "num_shared_experts": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
    "mimo_v2_flash": {**GROUPS, "v_head_dim": 4, "sliding_window": 16},
    "gpt_neo": {"num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 16},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "dots1": {**GROUPS, "n_shared_experts": 1, "first_k_dense_replace": 1, "max_window_layers": 2},
    "glm4_moe_lite": {**LATENT, **GROUPS},
    "minicpm3": LATENT,
    "sarvam_mla": {**LATENT, **GROUPS},
    "sarvam_moe": {**GROUPS},
    "solar_open": {**GROUPS},
    "youtu": LATENT,
    "qwen3_next": GATED_DELTA,
    "qwen3_5_text": GATED_DELTA,
    "qwen3_5_moe_text": GATED_DELTA,
}

NEEDED: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
}
"""Fields without which transformers itself makes no model of the family, at the values that the planner then takes."""
