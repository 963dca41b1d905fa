"""Hybrids as they are published, with the fields that their own code reads and transformers' classes do not declare."""

from __future__ import annotations

from typing import Any

import pytest

from planner import UnsupportedArchitecture, from_huggingface, size
from planner.interop import huggingface_tensors, left_out
from tests.planner.interop.oracle import reference

FALCON_H1 = {
    "model_type": "falcon_h1",
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 0.9375,
    "attn_layer_indices": None,
    "embedding_multiplier": 5.656854249492381,
    "head_dim": 64,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "key_multiplier": 0.390625,
    "lm_head_multiplier": 0.0390625,
    "mamba_chunk_size": 128,
    "mamba_d_head": 64,
    "mamba_d_ssm": 1536,
    "mamba_d_state": 128,
    "mamba_n_heads": 24,
    "mamba_norm_before_gate": False,
    "mamba_use_mlp": True,
    "mlp_expansion_factor": 8,
    "mlp_multipliers": [0.8838834764831844, 0.5859375],
    "num_attention_heads": 8,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rope_theta": 1e11,
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
    "ssm_out_multiplier": 0.23570226039551587,
    "tie_word_embeddings": True,
    "time_step_rank": "auto",
    "vocab_size": 32784,
}
KIMI_LINEAR = {
    "model_type": "kimi_linear",
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [layer for layer in range(1, 27) if layer % 4],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "use_grouped_topk": True,
}
MINIMAX_01 = {
    "model_type": "minimax",
    "block_size": 256,
    "full_attn_alpha_factor": 3.5565588200778455,
    "head_dim": 128,
    "hidden_size": 6144,
    "intermediate_size": 9216,
    "layer_types": [*["linear_attention"] * 7, "full_attention"] * 10,
    "linear_attn_alpha_factor": 3.5565588200778455,
    "mlp_alpha_factor": 3.5565588200778455,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rope_theta": 10000000,
    "vocab_size": 200064,
}
MINIMAX_M2 = {
    "model_type": "minimax_m2",
    "attn_type_list": [1] * 62,
    "mtp_transformer_layers": 1,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
}
CONFIGS: dict[str, tuple[dict[str, Any], float]] = {
    # Total parameters in billions, as the models' reports round them: arXiv:2507.22448, arXiv:2510.26692 (48B),
    # arXiv:2501.08313 (456B) and huggingface.co/MiniMaxAI/MiniMax-M2 (230B).
    "falcon_h1": (FALCON_H1, 0.5),
    "kimi_linear": (KIMI_LINEAR, 48.0),
    "minimax": (MINIMAX_01, 456.0),
    "minimax_m2": (MINIMAX_M2, 230.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_has_transformers_tensors_and_the_reports_total(name: str) -> None:
    config, billions = CONFIGS[name]
    spec = from_huggingface(config)
    assert huggingface_tensors(spec, name) == reference(config)
    assert size(spec).parameters.total / 1e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.parametrize(
    "name, billions, rounded", [("minimax", 45.9, 0.05), ("kimi_linear", 3, 0.5), ("minimax_m2", 10, 0.5)]
)
def test_the_active_parameters_of_the_layers_are_the_reports(name: str, billions: float, rounded: float) -> None:
    """As the reports round them, without the embedding and the head, each vocab_size · hidden_size."""
    spec = from_huggingface(CONFIGS[name][0])
    around = 2 * spec.vocab_size * spec.hidden_size
    assert (size(spec).parameters.active - around) / 1e9 == pytest.approx(billions, abs=rounded)


def test_linear_layers_are_those_that_either_spelling_says() -> None:
    """Kimi counts layers from one: the fourth is the first with latent attention, and so is the last."""
    spec = from_huggingface(KIMI_LINEAR)
    kinds = [getattr(layer.sequence_mixer, "kind", "") for _, layer in spec.iterate_layers()]
    assert [index for index, kind in enumerate(kinds) if kind == "latent_attention"] == [3, 7, 11, 15, 19, 23, 26]


@pytest.mark.parametrize(
    "config, field",
    [
        ({**KIMI_LINEAR, "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [3]}}, "full_attn_layers"),
        ({**KIMI_LINEAR, "linear_attn_config": {"full_attn": [1]}}, "full_attn"),
        ({**KIMI_LINEAR, "mla_use_nope": False}, "mla_use_nope"),
        ({**MINIMAX_M2, "attn_type_list": [0, *[1] * 61]}, "attn_type_list"),
        ({**MINIMAX_M2, "rotary_dim": 256}, "rotary_dim"),
        ({**FALCON_H1, "projectors_bias": True}, "projectors_bias"),
        ({**FALCON_H1, "attention_bias": True, "attention_in_multiplier": 0.5}, "attention_in_multiplier"),
        ({**FALCON_H1, "ssm_multipliers": [1.0]}, "ssm_multipliers"),
    ],
)
def test_what_a_specification_cannot_say_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface(config)
    assert refused.value.path.rpartition(".")[2] == field
    assert refused.value.remedy


def test_what_is_beside_the_model_or_not_computed_alike_is_said() -> None:
    assert any("multi-token prediction" in words for words in left_out(MINIMAX_M2))
    assert any("rotary_dim" in words for words in left_out({**MINIMAX_01, "rotary_dim": 64}))
    assert left_out(KIMI_LINEAR) == ()
