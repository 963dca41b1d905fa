"""Logits of tiny random transformers models and of ours with the same weights: the numerics are the known ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from runners.models import load_huggingface

COMMON: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
DECODER: dict[str, Any] = {**COMMON, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**DECODER, "head_dim": 8},
    "qwen2": {**DECODER},
    "qwen3": {**DECODER, "head_dim": 8},
    "gemma2": {**DECODER, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma": {**DECODER, "head_dim": 16, "hidden_act": "gelu", "attention_bias": True},
    "gemma3_text": {
        **DECODER,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "final_logit_softcapping": 3.0,
    },
    "vaultgemma": {**DECODER, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi3": {**DECODER, "pad_token_id": None, "sliding_window": 6, "partial_rotary_factor": 0.5},
    "olmo": {**DECODER, "clip_qkv": 0.5},
    "olmo2": {**DECODER, "attention_bias": True},
    "olmo3": {**DECODER, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    | {
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 100.0},
            "full_attention": {"rope_theta": 1000.0, "rope_type": "yarn", "factor": 8.0}
            | {"original_max_position_embeddings": 8},
        }
    },
    "granite": {**DECODER, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0}
    | {"residual_multiplier": 0.3},
    "granitemoe": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.3}
    | {"attention_multiplier": 0.2},
    "granitemoeshared": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 0.5}
    | {"shared_intermediate_size": 24, "attention_multiplier": 0.2},
    "seed_oss": {**DECODER, "head_dim": 16, "attention_out_bias": True},
    "arcee": {**DECODER, "mlp_bias": True},
    "helium": {**DECODER, "head_dim": 8, "attention_bias": True},
    "exaone4": {**DECODER, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "ministral": {**DECODER, "head_dim": 8, "sliding_window": 6},
    "cwm": {**DECODER, "head_dim": 8, "sliding_window": 6},
    "hunyuan_v1_dense": {**DECODER, "head_dim": 8}
    | {"rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0, "mscale": 1.0}},
    "hunyuan_v1_moe": {**DECODER, "head_dim": 8, "num_experts": 4, "moe_topk": [1, 3]},
    "nanochat": {**DECODER, "attention_bias": True},
    "llama4_text": {**DECODER, "num_hidden_layers": 3, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"no_rope_layers": [1, 0, 1], "moe_layers": [1, 2], "intermediate_size_mlp": 40, "attention_chunk_size": 6}
    | {"attn_temperature_tuning": False},
    "olmoe": {**DECODER, "num_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {**DECODER, "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "sliding_window": 6}
    | {"pad_token_id": None, "use_sliding_window": True, "mlp_bias": True},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    "mixtral": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **DECODER,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "qwen2_moe": {
        **DECODER,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": 6,
    },
    "starcoder2": {**DECODER, "sliding_window": 6},
    "deepseek_v2": {
        **DECODER,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 4.0,
        "first_k_dense_replace": 1,
        "mlp_bias": True,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "stablelm": {**DECODER, "qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": True},
    "glm": {**DECODER, "head_dim": 8, "pad_token_id": 0},
    "glm4": {**DECODER, "head_dim": 8, "pad_token_id": 0},
    "glm4_moe": {
        **DECODER,
        "use_qk_norm": True,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
    },
    "gpt_oss": {
        **DECODER,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    },
    "cohere": {**DECODER, "use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": {**DECODER, "num_hidden_layers": 4, "sliding_window": 6, "logit_scale": 0.25},
    "mamba": {**COMMON, "state_size": 8, "use_mambapy": False},
    "falcon_mamba": {**COMMON, "state_size": 8, "hidden_act": "gelu", "mixer_rms_eps": 0.1, "use_bias": True},
    "jamba": {**DECODER, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4}
    | {"hidden_act": "relu", "mamba_proj_bias": True, "pad_token_id": None},
    "mamba2": {
        **COMMON,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "expand": 2,
        "hidden_act": "gelu",
        "time_step_limit": (0.3, 0.6),
    },
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_logits_are_those_of_transformers(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too, so that each one counts
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in theirs.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    ours = load_huggingface(theirs.state_dict(), config.to_dict())
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours(tokens).logits
    assert expected.std() > 0.05  # a comparison of numbers, not of zeros
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_state_dict_that_does_not_fit_is_refused_by_name() -> None:
    config = transformers.AutoConfig.for_model("llama", **CONFIGS["llama"])
    state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        load_huggingface(missing, config.to_dict())
    with pytest.raises(ValueError, match="adapter_weight"):
        load_huggingface({**state, "adapter_weight": torch.zeros(1)}, config.to_dict())
    with pytest.raises(ValueError, match="shape"):
        load_huggingface({**state, "model.norm.weight": torch.zeros(3)}, config.to_dict())
