"""What is exported is what would be imported, transformers makes the same model of it, and the rest is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from planner import (
    ArchitectureSpec,
    UnsupportedArchitecture,
    from_huggingface,
    load,
    parse_spec,
    size,
    to_huggingface,
)
from planner.interop import ADAPTERS, huggingface_tensors
from planner.presets import PRESETS, preset_ids
from tests.planner.interop.oracle import reference, small_config
from tests.planner.published import LLAMA_2_7B, LLAMA_2_70B, MISTRAL_7B, MIXTRAL_8X7B, QWEN_2_HALF


@pytest.mark.parametrize(
    "spec, family",
    [
        (LLAMA_2_7B, "llama"),
        (LLAMA_2_70B, "llama"),
        (MISTRAL_7B, "mistral"),
        (MIXTRAL_8X7B, "mixtral"),
        (QWEN_2_HALF, "qwen2"),
    ],
    ids=lambda value: value.name if isinstance(value, ArchitectureSpec) else value,
)
def test_the_best_known_family_is_taken(spec: ArchitectureSpec, family: str) -> None:
    config = to_huggingface(spec)
    assert config["model_type"] == family
    assert from_huggingface(config).content_hash() == spec.content_hash()


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_every_family_is_written_and_read_back_by_itself_and_by_transformers(family: str) -> None:
    spec = from_huggingface(small_config(family))
    own, any_family = to_huggingface(spec, family), to_huggingface(spec)
    assert own["model_type"] == family
    for config in (own, any_family):
        assert json.loads(json.dumps(config)) == config
        assert from_huggingface(config).content_hash() == spec.content_hash()
        assert huggingface_tensors(spec, config["model_type"]) == reference(config)


IMPORTED = [name for name in preset_ids() if "config:" in (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTED)
def test_a_known_model_is_written(name: str) -> None:
    spec = load(name)
    assert from_huggingface(to_huggingface(spec)).content_hash() == spec.content_hash()


def test_scaled_rotation_is_written() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192}
    spec = from_huggingface({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": scaling})
    assert to_huggingface(spec)["rope_scaling"] == scaling


@pytest.mark.parametrize(
    "config, field, value",
    [
        # transformers repeats keys and values by the quotient of the heads, and its own default here is 128.
        ({"model_type": "deepseek_v3", "num_attention_heads": 64}, "num_key_value_heads", 64),
        # Its own default tempers queries, which no specification says.
        ({"model_type": "llama4_text", "attn_temperature_tuning": False}, "attn_temperature_tuning", False),
        # And this one's class reads the share that is rotated under this name alone.
        ({"model_type": "gpt_neox", "rotary_pct": 0.5}, "rotary_pct", 0.5),
    ],
)
def test_what_a_specification_does_not_hold_is_written_as_it_computes(
    config: dict[str, Any], field: str, value: Any
) -> None:
    spec = from_huggingface(config)
    found = to_huggingface(spec, config["model_type"])
    assert found[field] == value
    made = transformers.AutoConfig.for_model(**found)
    if field == "rotary_pct":
        assert made.rope_parameters["partial_rotary_factor"] == value
    else:
        assert getattr(made, field) == value


def test_a_share_that_transformers_does_not_read_is_refused() -> None:
    made = transformers.AutoConfig.for_model("gpt_neox", partial_rotary_factor=0.5)
    assert made.rope_parameters["partial_rotary_factor"] == 0.25
    with pytest.raises(UnsupportedArchitecture, match="partial_rotary_factor"):
        from_huggingface({"model_type": "gpt_neox", "partial_rotary_factor": 0.5})


def test_a_changed_design_is_written_with_its_changes() -> None:
    data = LLAMA_2_7B.to_dict()
    data["layer_groups"][0]["layers"][0]["sequence_mixer"]["num_key_value_heads"] = 8
    data["vocab_size"], data["tie_word_embeddings"] = 64_000, True
    config = to_huggingface(parse_spec(data))
    assert (config["num_key_value_heads"], config["vocab_size"], config["tie_word_embeddings"]) == (8, 64_000, True)
    expected = sum(_elements(shape) for shape in reference(config).values())
    assert size(parse_spec(data)).parameters.total == expected


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for width in shape:
        total *= width
    return total


def test_what_no_family_says_is_refused() -> None:
    data = LLAMA_2_7B.to_dict()
    mamba = {"kind": "mamba1", "intermediate_size": 512, "state_size": 7, "time_step_rank": 3}
    latent = {"kind": "latent_attention", "num_attention_heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 8}
    latent |= {"qk_rope_head_dim": 4, "v_head_dim": 8}
    data["layer_groups"] = [{"layers": [{"sequence_mixer": mamba}, {"sequence_mixer": latent}]}]
    with pytest.raises(UnsupportedArchitecture) as caught:
        to_huggingface(parse_spec(data))
    assert caught.value.code == "no_family"
    assert caught.value.remedy
    with pytest.raises(UnsupportedArchitecture) as caught:
        to_huggingface(LLAMA_2_7B, "gpt2")
    assert caught.value.code == "no_family"
    with pytest.raises(UnsupportedArchitecture) as caught:
        to_huggingface(LLAMA_2_7B, "t5")
    assert caught.value.path == "model_type"
