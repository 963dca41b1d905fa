"""Logits of tiny random transformers models and of ours with the same weights: the numerics are the known ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from planner.interop import ADAPTERS, left_out
from planner.interop.nested import OUTER
from runners.models import load_huggingface
from tests.planner.interop.oracle import config_class, modelled, small_config, small_surroundings

COMMON: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
DECODER: dict[str, Any] = {**COMMON, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
HEADS: dict[str, Any] = {**COMMON, "num_attention_heads": 4}
GPT: dict[str, Any] = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "initializer_range": 0.3,
}
GATED_DELTA: dict[str, Any] = {
    **DECODER,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
ROUTED: dict[str, Any] = {"moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3} | {
    "n_group": 4,
    "topk_group": 2,
}
LATENT: dict[str, Any] = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_nope_head_dim": 8} | {
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
SPARSE: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
COORDINATES: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**DECODER, "head_dim": 8},
    "mistral": {**DECODER, "head_dim": 16, "sliding_window": 6},
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
    "granite_swa": {**DECODER, "num_hidden_layers": 3, "layer_rope_theta": [0, 100.0, 10000.0], "sliding_window": 6}
    | {"attention_multiplier": 0.2},
    "granitemoe_swa": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
    | {"shared_intermediate_size": 24, "attention_multiplier": 0.2},
    "hyperclovax": {**DECODER, "logits_scaling": 2.0, "residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    "exaone": {**DECODER},
    "internlm3": {**DECODER, "head_dim": 8, "qkv_bias": True, "bias": True, "pad_token_id": None},
    "iquestcoder": {**DECODER, "head_dim": 16},
    "jais2": {**DECODER},
    "ernie4_5": {**DECODER, "head_dim": 16, "use_bias": True},
    "flex_olmo": {**DECODER, "num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": None},
    "exaone_moe": {**DECODER, "head_dim": 8, "sliding_window": 6, "moe_intermediate_size": 16, "num_experts": 8}
    | {"num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "mellum": {**DECODER, "num_hidden_layers": 3, "head_dim": 8, "sliding_window": 6, "moe_intermediate_size": 16}
    | {"num_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "ministral3": {**DECODER, "head_dim": 8, "sliding_window": 6, "pad_token_id": None}
    | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "llama_4_scaling_beta": 0.0}}
    | {"max_position_embeddings": 96},
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
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.3},
    "mixtral": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **DECODER,
        "rms_norm_eps": 0.1,
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
    "qwen3_moe": {**DECODER, **SPARSE, "head_dim": 16, "decoder_sparse_step": 2, "num_hidden_layers": 3}
    | {"norm_topk_prob": True, "attention_bias": True, "use_sliding_window": True, "sliding_window": 6},
    "qwen2_vl_text": {
        **DECODER,
        **COORDINATES,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen2_5_vl_text": {**DECODER, **COORDINATES},
    "qwen2_5_omni_text": {**DECODER, **COORDINATES},
    "qwen3_vl_text": {**DECODER, **COORDINATES, "head_dim": 8, "attention_bias": True},
    "qwen3_vl_moe_text": {**DECODER, **COORDINATES, **SPARSE, "moe_intermediate_size": 24, "head_dim": 8}
    | {"mlp_only_layers": [1]},
    "qwen3_omni_moe_text": {**DECODER, **COORDINATES, **SPARSE, "head_dim": 8, "norm_topk_prob": True},
    "starcoder2": {**DECODER, "sliding_window": 6},
    "deepseek_v2": {
        **DECODER,
        "rms_norm_eps": 0.1,
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
    "gpt_neox": {**HEADS, "intermediate_size": 48, "rotary_pct": 0.5},
    "gptj": {**GPT, "rotary_dim": 4},
    "phi": {**DECODER, "qk_layernorm": True},
    "opt": {**HEADS, "ffn_dim": 48, "max_position_embeddings": 96, "word_embed_proj_dim": 24, "pad_token_id": 0},
    "falcon": {**HEADS, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "bloom": {**COMMON, "n_layer": 2, "n_head": 4},
    "mpt": {
        "vocab_size": 96,
        "initializer_range": 0.3,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "attn_config": {"clip_qkv": 0.5},
    },
    "lfm2": {**DECODER, "layer_types": ["conv", "full_attention"], "conv_bias": True, "block_multiple_of": 8},
    "lfm2_moe": {**DECODER, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
    | {"num_dense_layers": 1, "moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2}
    | {"routed_scaling_factor": 1.5},
    "rwkv": {**COMMON, "attention_hidden_size": 40, "use_cache": False},
    "recurrent_gemma": {**DECODER, "num_hidden_layers": 3, "lru_width": 40, "attention_window_size": 6}
    | {"block_types": ["recurrent", "attention"], "attention_bias": True, "logits_soft_cap": 3.0},
    "olmo_hybrid": {**GATED_DELTA, "pad_token_id": None, "num_key_value_heads": 4, "attention_bias": True}
    | {"rope_parameters": {"rope_theta": None}},
    "mamba": {**COMMON, "state_size": 8, "use_mambapy": False},
    "falcon_mamba": {**COMMON, "state_size": 8, "hidden_act": "gelu", "mixer_rms_eps": 0.1, "use_bias": True},
    "jamba": {**DECODER, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4}
    | {"hidden_act": "relu", "mamba_proj_bias": True, "pad_token_id": None},
    "bamba": {**DECODER, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_state": 8}
    | {"mamba_n_groups": 2, "mamba_chunk_size": 8, "mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True}
    | {"time_step_limit": (0.4, 1.5)},
    "falcon_h1": {**DECODER, "mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8}
    | {"mamba_n_groups": 2, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "mlp_bias": True}
    | {"mlp_multipliers": [0.8, 0.5], "ssm_multipliers": [0.5, 0.9, 1.5, 0.7, 0.4], "ssm_in_multiplier": 1.25}
    | {"ssm_out_multiplier": 0.6, "attention_in_multiplier": 0.9, "attention_out_multiplier": 0.5}
    | {"key_multiplier": 3.0, "embedding_multiplier": 5.0, "lm_head_multiplier": 0.5},
    "kimi_linear": {**DECODER, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 8}
    | {"mlp_layer_types": ["sparse", "dense"], "moe_intermediate_size": 16, "num_experts_per_tok": 3}
    | {"n_group": 4, "topk_group": 2, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
    | {"v_head_dim": 10, "linear_head_dim": 6, "linear_num_heads": 3, "num_key_value_heads": 4, "pad_token_id": 0},
    "minimax": {**DECODER, "num_hidden_layers": 3, "head_dim": 8, "num_local_experts": 4, "block_size": 8}
    | {"sliding_window": 6, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    | {"linear_attn_alpha_factor": 3.5, "full_attn_alpha_factor": 2.0, "full_attn_beta_factor": 0.7}
    | {"mlp_alpha_factor": 1.5, "mlp_beta_factor": 0.6},
    "minimax_m2": {**DECODER, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8},
    "granitemoehybrid": {**DECODER, "layer_types": ["linear_attention", "full_attention"], "attention_multiplier": 0.2}
    | {"num_local_experts": 4, "shared_intermediate_size": 24, "position_embedding_type": "rope"}
    | {"embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 2.0}
    | {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "nemotron_h": {**DECODER, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"]}
    | {"head_dim": 6, "mamba_num_heads": 4, "mamba_head_dim": 6, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8}
    | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 16, "moe_latent_size": 12}
    | {"moe_shared_expert_intermediate_size": 24, "mlp_bias": True, "use_bias": True, "time_step_min": 0.5},
    "qwen3_next": {**GATED_DELTA, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [1]}
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "attention_bias": True},
    "qwen3_5_text": {**GATED_DELTA, "full_attention_interval": 2},
    "qwen3_5_moe_text": {**GATED_DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"shared_expert_intermediate_size": 24, "rope_parameters": {"rope_theta": 100.0, "mrope_section": [1, 1, 0]}},
    "dots1": {**DECODER, **ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "attention_bias": True}
    | {"sliding_window": 6, "max_window_layers": 1},
    "glm4_moe_lite": {**DECODER, **ROUTED, **LATENT, "attention_bias": True, "rms_norm_eps": 0.1},
    "minicpm3": {**DECODER, **LATENT, "rms_norm_eps": 0.1, "mlp_bias": True, "dim_model_base": 16},
    "sarvam_mla": {**DECODER, **ROUTED, **LATENT, "q_lora_rank": None},
    "sarvam_moe": {**DECODER, **ROUTED, "head_dim": 8, "attention_bias": True, "pad_token_id": None},
    "solar_open": {**DECODER, **ROUTED, "head_dim": 8, "attention_bias": True},
    "youtu": {**DECODER, **LATENT},
    "biogpt": {**HEADS, "intermediate_size": 48, "max_position_embeddings": 96, "pad_token_id": None},
    "codegen": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": {**GPT},
    "gpt_neo": {**COMMON, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"window_size": 6, "max_position_embeddings": 96},
    "gpt_neox_japanese": {**HEADS, "intermediate_multiple_size": 2, "rotary_pct": 0.5},
    "openai-gpt": {**GPT},
    "persimmon": {**HEADS, "intermediate_size": 48},
    "afmoe": {**DECODER, "num_hidden_layers": 3, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 16, "sliding_window": 6, "global_attn_every_n_layers": 2, "mup_enabled": True}
    | {"route_scale": 1.5},
    "apertus": {**DECODER, "attention_bias": True, "pad_token_id": None},
    "cohere2_moe": {**DECODER, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 6, "num_shared_experts": 2}
    | {"sliding_window_pattern": 2, "first_k_dense_replace": 1, "prefix_dense_intermediate_size": 40}
    | {"expert_selection_fn": "sigmoid", "logit_scale": 0.25, "eos_token_id": 1},
    "ernie4_5_moe": {**DECODER, "use_bias": True, "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 16},
    "hy_v3": {**DECODER, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"attention_bias": True, "mlp_bias": True},
    "mimo_v2_flash": {**DECODER, **ROUTED, "num_hidden_layers": 3, "head_dim": 12, "v_head_dim": 6}
    | {"sliding_window": 6, "attention_bias": True}
    | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    "bitnet": {**DECODER, "attention_bias": True},
    "laguna": {**DECODER, "num_hidden_layers": 3, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2}
    | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "sliding_window": 6}
    | {"num_attention_heads_per_layer": [4, 2, 6], "moe_intermediate_size": 16, "moe_routed_scaling_factor": 1.5}
    | {"shared_expert_intermediate_size": 24, "gating": "per-element"},
    "nemotron": {**DECODER, "attention_bias": True, "mlp_bias": True},
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


NARROW: dict[str, Any] = (
    dict.fromkeys(("depth", "encoder_layers"), 1)
    | dict.fromkeys(("num_heads", "encoder_attention_heads"), 2)
    | dict.fromkeys(("embed_dim", "hidden_size", "out_hidden_size", "d_model", "output_dim"), 32)
    | dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "downsample_hidden_size", "num_mel_bins"), 32)
    | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
)
"""Fields of encoders for images and sound, which no text passes through: as little as there can be."""


def transformers_model(model_type: str, **changes: Any) -> Any:
    """transformers' model of a family with every weight drawn, those of norms and biases too, so that each one counts.

    A language model that transformers only has within a multimodal one comes with its surroundings.
    """
    torch.manual_seed(0)
    fields = {**CONFIGS[model_type], **changes}
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config = transformers.AutoConfig.for_model(model_type, **fields)
        config._attn_implementation = "eager"
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    else:
        outer = next(name for name, found in OUTER.items() if found.text == model_type)
        parts = {
            key: {name: NARROW[name] for name in vars(kind()) if name in NARROW}
            for key, kind in config_class(outer).sub_configs.items()
            if "text" not in key
        }
        theirs = modelled({"model_type": outer, **parts, "text_config": {**fields, "model_type": model_type}}).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in theirs.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    return theirs


@pytest.mark.parametrize("model_type", CONFIGS)
def test_logits_are_those_of_transformers(model_type: str) -> None:
    theirs = transformers_model(model_type)
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens).logits
    assert expected.std() > 0.05  # a comparison of numbers, not of zeros
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_every_family_is_compared() -> None:
    # Phi-3.5-MoE's weights are never loaded: no router of ours chooses by SparseMixer.
    assert set(ADAPTERS) - set(CONFIGS) == {"phimoe"}


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


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 4.0,
        "mscale": 2.0,
        "mscale_all_dim": 1.0,
    },
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 16},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}


def compare(theirs: Any, config: dict[str, Any], length: int = 21) -> None:
    """Logits of a model of transformers, its parameters shaken, and of ours with its weights."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = load_huggingface(theirs.state_dict(), config)
    tokens = torch.randint(3, 60, (2, length))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_keys_and_values_of_every_head_are_read_from_the_fused_projection() -> None:
    config = transformers.AutoConfig.for_model("gpt_bigcode", **GPT, multi_query=False, scale_attn_weights=False)
    config._attn_implementation = "eager"
    compare(transformers.AutoModelForCausalLM.from_config(config).eval(), config.to_dict())


def test_an_odd_number_of_rotated_channels_is_sized_and_not_loaded() -> None:
    """Five channels of ten: six are rotated, with frequencies of five."""
    fields = {**CONFIGS["glm"], "head_dim": 10}
    config = transformers.AutoConfig.for_model("glm", **fields)
    state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    assert any("partial_rotary_factor is 0.5" in note for note in left_out({"model_type": "glm", **fields}))
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        load_huggingface(state, config.to_dict())


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_rotation_is_computed_as_transformers_does(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 100.0, **SCALINGS[kind]}
    fields = {**CONFIGS["llama"], "max_position_embeddings": 16, "rope_parameters": rope}
    config = transformers.AutoConfig.for_model("llama", **fields)
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    compare(theirs, config.to_dict())


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_the_scores_of_latent_attention_are_scaled_with_the_rotation(family: str) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 100.0, **SCALINGS["yarn"]}
    fields = {**CONFIGS[family], "max_position_embeddings": 16, "rope_parameters": rope}
    config = transformers.AutoConfig.for_model(family, **fields)
    config._attn_implementation = "eager"
    compare(transformers.AutoModelForCausalLM.from_config(config).eval(), config.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "outer, text", [("llava", "llama"), ("gemma3", "gemma3_text"), ("qwen2_5_vl", "qwen2_5_vl_text")]
)
def test_the_language_model_of_a_multimodal_one_is_loaded(outer: str, text: str) -> None:
    config = {**small_surroundings(outer), "model_type": outer, "tie_word_embeddings": False}
    config["text_config"] = small_config(text) | {"initializer_range": 0.3}
    if outer == "qwen2_5_vl":
        config["text_config"]["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    torch.manual_seed(0)
    compare(modelled(config).eval(), config)


@pytest.mark.parametrize(
    "change, name",
    [({"rope_scaling": {"rope_type": "mystery", "factor": 2.0}}, "rope_scaling"), ({"secret": 1}, "secret")],
)
def test_what_a_specification_cannot_say_is_not_loaded(change: dict[str, Any], name: str) -> None:
    config = transformers.AutoConfig.for_model("llama", **CONFIGS["llama"])
    state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    with pytest.raises(ValueError, match=name):
        load_huggingface(state, config.to_dict() | change)
