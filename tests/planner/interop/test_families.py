"""Every family against transformers itself on the meta device: total, and tensor by tensor, over drawn variations."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import UnsupportedArchitecture, size
from planner.interop import ADAPTERS, from_huggingface, huggingface_tensors

transformers = pytest.importorskip("transformers")

FLAG = st.booleans()
ROPE_FREE = {"tie_word_embeddings": FLAG, "vocab_size": st.sampled_from([32, 50])}
LLAMA: dict[str, Any] = ROPE_FREE | {
    "hidden_size": st.sampled_from([32, 64]),
    "intermediate_size": st.sampled_from([24, 80]),
    "num_hidden_layers": st.integers(1, 5),
    "num_attention_heads": st.sampled_from([4, 8]),
    "num_key_value_heads": st.sampled_from([1, 2, 4]),
}
WINDOWED = {
    "use_sliding_window": FLAG,
    "sliding_window": st.sampled_from([None, 16]),
    "max_window_layers": st.integers(0, 4),
}
MIXTURE = {"num_experts_per_tok": st.integers(1, 3)}
MAMBA = ROPE_FREE | {
    "hidden_size": st.sampled_from([32, 64]),
    "num_hidden_layers": st.integers(1, 4),
    "state_size": st.sampled_from([4, 16]),
    "conv_kernel": st.sampled_from([2, 4]),
    "use_bias": FLAG,
    "use_conv_bias": FLAG,
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "gpt2": ROPE_FREE
    | {
        "n_embd": st.sampled_from([32, 64]),
        "n_layer": st.integers(1, 4),
        "n_head": st.sampled_from([1, 4]),
        "n_inner": st.sampled_from([None, 40]),
        "n_positions": st.sampled_from([8, 64]),
        "activation_function": st.sampled_from(["gelu_new", "relu"]),
    },
    "llama": LLAMA | {"attention_bias": FLAG, "mlp_bias": FLAG, "head_dim": st.sampled_from([None, 8, 16])},
    "mistral": LLAMA | {"head_dim": st.sampled_from([None, 16]), "sliding_window": st.sampled_from([None, 8])},
    "mixtral": LLAMA | MIXTURE | {"head_dim": st.sampled_from([None, 16]), "num_local_experts": st.integers(3, 5)},
    "qwen2": LLAMA | WINDOWED,
    "qwen3": LLAMA | WINDOWED | {"head_dim": st.sampled_from([8, 16]), "attention_bias": FLAG},
    "qwen3_moe": LLAMA
    | MIXTURE
    | {
        "num_experts": st.integers(3, 6),
        "moe_intermediate_size": st.sampled_from([8, 24]),
        "decoder_sparse_step": st.integers(1, 3),
        "mlp_only_layers": st.lists(st.integers(0, 4), max_size=2, unique=True),
        "attention_bias": FLAG,
        "norm_topk_prob": FLAG,
    },
    "gemma2": LLAMA
    | {
        "head_dim": st.sampled_from([8, 16]),
        "attention_bias": FLAG,
        "attn_logit_softcapping": st.sampled_from([None, 30.0]),
        "final_logit_softcapping": st.sampled_from([None, 30.0]),
    },
    "deepseek_v3": {name: values for name, values in LLAMA.items() if name != "num_key_value_heads"}
    | {
        "moe_intermediate_size": st.sampled_from([8, 24]),
        "n_routed_experts": st.sampled_from([4, 8]),
        "n_shared_experts": st.integers(1, 2),
        "num_experts_per_tok": st.integers(1, 2),
        "n_group": st.sampled_from([1, 2]),
        "topk_group": st.just(1),
        "first_k_dense_replace": st.integers(0, 5),
        "q_lora_rank": st.sampled_from([None, 12]),
        "kv_lora_rank": st.sampled_from([8, 16]),
        "qk_nope_head_dim": st.sampled_from([8, 12]),
        "qk_rope_head_dim": st.sampled_from([4, 8]),
        "v_head_dim": st.sampled_from([6, 8]),
        "attention_bias": FLAG,
    },
    "mamba": MAMBA | {"expand": st.integers(1, 3), "time_step_rank": st.sampled_from(["auto", 3])},
    "mamba2": MAMBA
    | {
        "hidden_size": st.just(32),
        "expand": st.just(2),
        "num_heads": st.sampled_from([4, 8, 16]),
        "n_groups": st.sampled_from([1, 2]),
        "chunk_size": st.sampled_from([8, 64]),
    },
    "jamba": LLAMA
    | {
        "num_experts": st.integers(1, 4),
        "num_experts_per_tok": st.just(1),
        "expert_layer_period": st.integers(1, 3),
        "expert_layer_offset": st.just(0),
        "attn_layer_period": st.integers(1, 3),
        "attn_layer_offset": st.just(0),
        "mamba_d_state": st.sampled_from([4, 8]),
        "mamba_d_conv": st.sampled_from([2, 4]),
        "mamba_expand": st.integers(1, 2),
        "mamba_dt_rank": st.sampled_from(["auto", 5]),
        "mamba_conv_bias": FLAG,
        "mamba_proj_bias": FLAG,
    },
}
"""Small values of every field that sets a size, so that a model on the meta device is made in milliseconds."""


def reference(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' own parameters."""
    fields = dict(config)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        made = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        model = transformers.AutoModelForCausalLM.from_config(made)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@st.composite
def configs(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """A configuration with every field of the family drawn."""
    config = {"model_type": family, **{name: draw(values) for name, values in VARIATIONS[family].items()}}
    if family == "mamba2":
        config["head_dim"] = 64 // config["num_heads"]
    if "pad_token_id" in transformers.AutoConfig.for_model(family).to_dict():
        config["pad_token_id"] = None
    return config


@pytest.mark.parametrize("family", sorted(VARIATIONS))
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_drawn_variations_are_exact_tensor_by_tensor(family: str, data: st.DataObject) -> None:
    config = data.draw(configs(family))
    spec = from_huggingface(config)
    assert huggingface_tensors(spec, family) == reference(config)


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_an_empty_configuration_means_transformers_defaults(family: str) -> None:
    """So do all the fields that transformers itself writes into a file."""
    expected = sum(torch.Size(shape).numel() for shape in reference({"model_type": family}).values())
    assert size(from_huggingface({"model_type": family})).parameters.total == expected
    written = transformers.AutoConfig.for_model(family).to_dict()
    assert size(from_huggingface(written)).parameters.total == expected


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_defaults_are_transformers_own(family: str) -> None:
    """Where transformers derives a default (``None`` or ``auto`` here), the sizes of the test above hold it."""
    own = transformers.AutoConfig.for_model(family)
    for name, value in ADAPTERS[family].defaults.items():
        if value not in (None, "auto") and hasattr(own, name) and getattr(own, name) is not None:
            assert getattr(own, name) == value, name


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_an_unknown_field_is_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface({"model_type": family, "number_of_secret_layers": 3, "extra_width": 8})
    assert refused.value.fields == ("number_of_secret_layers", "extra_width")


@pytest.mark.parametrize("family", sorted(ADAPTERS))
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_value_of_a_field_raises_anything_but_a_refusal(family: str, data: st.DataObject) -> None:
    adapter = ADAPTERS[family]
    names = data.draw(st.lists(st.sampled_from(sorted({*adapter.defaults, *adapter.aliases})), min_size=1, max_size=2))
    strange = st.one_of(
        st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=4), st.lists(st.integers(-1, 3)),
        st.dictionaries(st.text(max_size=3), st.integers()),
    )  # fmt: skip
    with contextlib.suppress(UnsupportedArchitecture):
        spec = from_huggingface({"model_type": family, **{name: data.draw(strange) for name in names}})
        assert size(spec).parameters.total > 0


SMALL = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": None}
SMALL_MIXTURE = SMALL | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 8,
    "num_experts_per_tok": 1,
}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "intermediate_size": 40, **SMALL},
        {"model_type": "mamba2", "intermediate_size": 40, "num_heads": 8, "head_dim": 16, **SMALL},
        {"model_type": "qwen3_moe", "num_experts": 4, "num_local_experts": 6, **SMALL_MIXTURE},
        {"model_type": "qwen3_moe", "num_local_experts": 6, "num_experts": 4, **SMALL_MIXTURE},
    ],
    ids=lambda config: config["model_type"],
)
def test_fields_that_contradict_each_other_are_read_as_transformers_reads_them(config: dict[str, Any]) -> None:
    assert huggingface_tensors(from_huggingface(config), config["model_type"]) == reference(config)


@pytest.mark.parametrize(
    "config, field",
    [
        ({"model_type": "llama", "rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"model_type": "llama", "rope_theta": 10**400}, "rope_theta"),
        ({"model_type": "llama", "num_hidden_layers": 10**10}, "num_hidden_layers"),
        ({"model_type": "gpt2", "n_layer": 10**10}, "n_layer"),
        ({"model_type": "gemma2", "hidden_size": 10**400}, "hidden_size"),
        ({"model_type": "mamba", "expand": 1e308}, "expand"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model_type"],
)
def test_numbers_beyond_reason_are_refused(config: dict[str, Any], field: str) -> None:
    """JSON has whole numbers of any length; none may end in an overflow or fill the memory."""
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface(config)
    assert refused.value.path == field
    assert refused.value.remedy


@pytest.mark.parametrize(
    "config, field",
    [
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "gpt2", "n_head": 7}, "n_head"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "num_key_value_heads"),
        ({"model_type": "llama", "hidden_act": "mystery"}, "hidden_act"),
        ({"model_type": "deepseek_v3", "moe_layer_freq": 2}, "moe_layer_freq"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"model_type": "mamba2", "num_heads": 100}, "num_heads"),
        ({"model_type": "t5"}, "model_type"),
        ({"vocab_size": 3}, "model_type"),
    ],
)
def test_a_refusal_names_the_field_and_the_remedy(config: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface(config)
    assert refused.value.path == field
    assert refused.value.remedy
