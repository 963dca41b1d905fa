"""Small values of fields that only some families have, beside those of :data:`tests.planner.interop.oracle.DIMENSIONS`."""

from __future__ import annotations

from typing import Any

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
    "vaultgemma": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "jamba": {"mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "mistral": {"sliding_window": 16},
    "qwen2": {"max_window_layers": 2},
    "qwen3": {"max_window_layers": 2},
}
