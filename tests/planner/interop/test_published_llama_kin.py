"""Published configurations of families like Llama, with the keys that transformers' classes do not know.

The totals are those that the repositories of the models state (in the index of their safetensors, or on their card).
"""

from __future__ import annotations

from typing import Any

import pytest

from planner import UnsupportedArchitecture, from_huggingface, size
from planner.interop import adapter_for, left_out

EVERYWHERE: dict[str, Any] = {
    "architectures": ["SomeForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [1, 106],
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
}
LLAMA3_SCALING: dict[str, Any] = {
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
HUNYUAN: dict[str, Any] = {
    "add_classification_head": False,
    "attention_bias": False,
    "attention_head_dim": 128,
    "cla_share_factor": 2,
    "class_num": 0,
    "dense_list": [4096, 0],
    "enable_lm_head_fp32": True,
    "eod_token_id": 127967,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "im_end_id": 6,
    "mask_init_id": 13,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "norm_type": "hf_rms",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "org_vocab_size": 128167,
    "pool_type": "last",
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0}
    | {"mscale_all_dim": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_cla": False,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "vocab_size": 128167,
}
GRANITE: dict[str, Any] = {
    "attention_bias": False,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "residual_multiplier": 0.22,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "google/gemma-2b": (
        2_506_172_416,
        {"model_type": "gemma", "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None, "hidden_size": 2048}
        | {"intermediate_size": 16384, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1}
        | {"rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 256000},
    ),
    "google/gemma-3-1b-it": (
        999_885_952,
        {"model_type": "gemma3_text", "attn_logit_softcapping": None, "cache_implementation": "hybrid"}
        | {"final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"}
        | {"hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4, "num_hidden_layers": 26}
        | {"num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000}
        | {"rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6}
        | {"vocab_size": 262144},
    ),
    "google/vaultgemma-1b": (
        1_038_741_120,
        {"model_type": "vaultgemma", "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid"}
        | {"final_logit_softcapping": 30.0, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"}
        | {"hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4, "num_hidden_layers": 26}
        | {"num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 512, "vocab_size": 256000},
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        3_821_079_552,
        {"model_type": "phi3", "attention_bias": False, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}
        | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_size": 3072, "intermediate_size": 8192}
        | {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 2047}
        | {"original_max_position_embeddings": 4096, "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 32064},
    ),
    "microsoft/Phi-4-mini-instruct": (
        3_836_021_760,
        {"model_type": "phi3", "attention_bias": False, "full_attn_mod": 1, "interpolate_factor": 1, "mlp_bias": False}
        | {"lm_head_bias": False, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072}
        | {"num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8, "partial_rotary_factor": 0.75}
        | {"original_max_position_embeddings": 4096, "sliding_window": 262144, "tie_word_embeddings": True}
        | {"rope_scaling": {"type": "longrope", "long_factor": [4.0] * 48, "short_factor": [1.0] * 48}}
        | {"rope_theta": 10000.0, "vocab_size": 200064},
    ),
    "allenai/OLMo-1B-hf": (
        1_176_764_416,
        {"model_type": "olmo", "attention_bias": False, "clip_qkv": None, "hidden_size": 2048, "pretraining_tp": 1}
        | {"intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16}
        | {"rope_scaling": None, "tie_word_embeddings": True, "vocab_size": 50304},
    ),
    "allenai/OLMo-2-1124-7B": (
        7_298_617_344,
        {"model_type": "olmo2", "attention_bias": False, "hidden_size": 4096, "intermediate_size": 11008}
        | {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "rope_scaling": None}
        | {"rope_theta": 500000, "vocab_size": 100352},
    ),
    "allenai/OLMoE-1B-7B-0924": (
        6_919_161_856,
        {"model_type": "olmoe", "clip_qkv": None, "hidden_size": 2048, "intermediate_size": 1024, "vocab_size": 50304}
        | {"norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8}
        | {"num_hidden_layers": 16, "num_key_value_heads": 16, "router_aux_loss_coef": 0.01},
    ),
    "HuggingFaceTB/SmolLM3-3B": (
        3_075_098_624,
        {"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "max_window_layers": 28}
        | {"layer_types": ["full_attention"] * 36, "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4}
        | {"num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2}
        | {"rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False}
        | {"vocab_size": 128256},
    ),
    "ibm-granite/granite-3.1-8b-instruct": (
        8_170_848_256,
        GRANITE
        | {"model_type": "granite", "attention_multiplier": 0.0078125, "hidden_size": 4096, "logits_scaling": 16.0}
        | {"intermediate_size": 12800, "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 40}
        | {"num_key_value_heads": 8},
    ),
    "ibm-granite/granite-3.1-1b-a400m-instruct": (
        1_334_628_352,
        GRANITE
        | {"model_type": "granitemoe", "attention_multiplier": 0.015625, "hidden_size": 1024, "logits_scaling": 6.0}
        | {"intermediate_size": 512, "num_attention_heads": 16, "num_experts_per_tok": 8, "num_hidden_layers": 24}
        | {"num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False},
    ),
    "ByteDance-Seed/Seed-OSS-36B-Instruct": (
        36_151_104_512,
        {"model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False, "head_dim": 128}
        | {"hidden_size": 5120, "intermediate_size": 27648, "mlp_bias": False, "num_attention_heads": 80}
        | {"num_hidden_layers": 64, "num_key_value_heads": 8, "residual_dropout": 0.1, "rope_theta": 1e7}
        | {"rope_scaling": {"rope_type": "default"}, "vocab_size": 155136},
    ),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": (
        1_279_391_488,
        {"model_type": "exaone4", "head_dim": 64, "hidden_size": 2048, "intermediate_size": 4096}
        | {"layer_types": ["full_attention"] * 30, "num_attention_heads": 32, "num_hidden_layers": 30}
        | {"num_key_value_heads": 8, "rope_scaling": LLAMA3_SCALING, "rope_theta": 1000000, "sliding_window": None}
        | {"sliding_window_pattern": None, "tie_word_embeddings": True, "vocab_size": 102400},
    ),
    "tencent/Hunyuan-7B-Instruct": (
        7_504_568_320,
        HUNYUAN | {"model_type": "hunyuan_v1_dense", "intermediate_size": 14336, "num_experts": 1},
    ),
    "tencent/Hunyuan-A13B-Instruct": (
        80_393_183_232,
        HUNYUAN
        | {"model_type": "hunyuan_v1_moe", "intermediate_size": 3072, "moe_intermediate_size": [3072] * 32}
        | {"moe_topk": [8] * 32, "num_experts": 64, "num_shared_expert": [1] * 32, "use_mixed_mlp_moe": True}
        | {"group_limited_greedy": False, "n_group": False, "norm_topk_prob": True, "use_mla": False},
    ),
}


@pytest.mark.parametrize("repository", PUBLISHED)
def test_a_published_configuration_has_the_published_number_of_parameters(repository: str) -> None:
    total, config = PUBLISHED[repository]
    assert size(from_huggingface(EVERYWHERE | config)).parameters.total == total


def test_nanochat_of_depth_32_by_hand() -> None:
    """karpathy/nanochat: 32 layers of 4 h² in attention and 8 h² in the MLP, h = 2048; embedding and head apart."""
    config = {"model_type": "nanochat", "vocab_size": 65536, "hidden_size": 2048, "num_hidden_layers": 32}
    spec = from_huggingface(config | {"num_attention_heads": 16, "num_key_value_heads": 16})
    assert size(spec).parameters.total == 32 * 12 * 2048**2 + 2 * 65536 * 2048


def test_llama_4_scout_has_17_b_of_109_b_active() -> None:
    """The card of meta-llama/Llama-4-Scout-17B-16E; an image encoder of 0.9 B is not in the text model."""
    scaling = LLAMA3_SCALING | {"high_freq_factor": 1.0}
    config = {"model_type": "llama4_text", "for_llm_compressor": False, "moe_layers": list(range(48))}
    config |= {"no_rope_layers": [1, 1, 1, 0] * 12, "rope_scaling": scaling, "router_jitter_noise": 0.0}
    parameters = size(from_huggingface(EVERYWHERE | config)).parameters
    assert parameters.total / 1e9 == pytest.approx(108, abs=0.5)
    assert parameters.active / 1e9 == pytest.approx(17.2, abs=0.3)


@pytest.mark.parametrize(
    "field, value",
    [
        ("use_cla", True),
        ("moe_intermediate_size", [3072] * 31 + [1024]),
        ("num_shared_expert", 2),
        ("moe_topk", [8] * 3),
    ],
)
def test_what_the_code_beside_the_files_would_do_otherwise_is_refused(field: str, value: object) -> None:
    _, config = PUBLISHED["tencent/Hunyuan-A13B-Instruct"]
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface(config | {field: value})
    assert refused.value.path == field
    assert refused.value.remedy


@pytest.mark.parametrize(
    "config, field",
    [
        ({"model_type": "llama4_text"}, "attn_temperature_tuning"),
        ({"model_type": "ministral3"}, "rope_parameters.llama_4_scaling_beta"),
        ({"model_type": "ministral3", "rope_parameters": {"llama_4_scaling_beta": 0.1}},
         "rope_parameters.llama_4_scaling_beta"),
    ],
)  # fmt: skip
def test_queries_that_grow_with_the_position_are_named_where_a_default_makes_them(
    config: dict[str, Any], field: str
) -> None:
    assert field in adapter_for(config).unmodelled_in(config)
    assert any(field in sentence for sentence in left_out(config))


def test_queries_that_do_not_grow_are_modelled() -> None:
    for config in (
        {"model_type": "llama4_text", "attn_temperature_tuning": False},
        {"model_type": "ministral3", "rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.0}},
        {"model_type": "smollm3", "rope_parameters": {"rope_theta": 5000.0}},  # no type is no scaling
    ):
        assert not adapter_for(config).unmodelled_in(config)
