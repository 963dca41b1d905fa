"""The language model inside a multimodal configuration, against transformers' model of the whole."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import transformers

from planner import UnsupportedArchitecture, from_huggingface, size
from planner.interop import ADAPTERS, huggingface_tensors, left_out
from planner.interop.nested import OUTER
from tests.planner.interop.oracle import reference, small_config

KNOWN = sorted(name for name, outer in OUTER.items() if outer.text in ADAPTERS)
NEEDS_TIMM = {"fast_vlm", "perception_lm"}
"""Their encoders of images are another library's, which is not installed with transformers."""
DIVIDED_WIDTHS = {
    "aya_vision": {"vision_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}}
}


def whole(outer: str, text: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    """A small configuration of a multimodal class around a small language model."""
    inner = {name: value for name, value in small_config(OUTER[outer].text).items() if name != "tie_word_embeddings"}
    return {"model_type": outer, **DIVIDED_WIDTHS.get(outer, {}), "text_config": {**inner, **(text or {})}, **beside}


@pytest.mark.slow
@pytest.mark.parametrize("outer", [name for name in KNOWN if name not in NEEDS_TIMM])
def test_head_and_layers_are_those_of_transformers_whoever_says_that_they_are_tied(outer: str) -> None:
    """The field inside, outside, in both places or nowhere."""
    for inside, outside in itertools.product((None, True, False), repeat=2):
        config = whole(
            outer,
            {} if inside is None else {"tie_word_embeddings": inside},
            **({} if outside is None else {"tie_word_embeddings": outside}),
        )
        found = huggingface_tensors(from_huggingface(config), OUTER[outer].text)
        expected = reference(config)
        if OUTER[outer].ties == "text unless outer" and outside is None and "lm_head.weight" in found:
            # transformers' class would tie them until it reads weights that hold both; the note says what was taken.
            assert any("does not say whether the head shares" in note for note in left_out(config))
            expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
        assert found == expected, (inside, outside)


@pytest.mark.parametrize("outer", KNOWN)
def test_a_language_model_without_a_type_is_the_one_of_its_class(outer: str) -> None:
    config = whole(outer)
    typed = from_huggingface(config)
    del config["text_config"]["model_type"]
    assert from_huggingface(config).content_hash() == typed.content_hash()


def test_what_stands_beside_is_named() -> None:
    config = whole("gemma3", vision_config={"hidden_size": 1152}, audio_config={}, mm_tokens_per_image=256)
    (note,) = left_out(config)
    assert note == "Only the language model is sized; left out are vision_config, audio_config."


def test_the_older_files_of_qwen_have_the_fields_outside() -> None:
    """As Qwen/Qwen2.5-VL-7B-Instruct's: the language model's fields lie beside ``vision_config``."""
    fields = {name: value for name, value in small_config("qwen2_5_vl_text").items() if name != "model_type"}
    config = {
        "model_type": "qwen2_5_vl",
        **fields,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "vision_config": {"depth": 1},
        "vision_start_token_id": 3,
    }
    assert huggingface_tensors(from_huggingface(config), "qwen2_5_vl_text") == reference(config)
    assert left_out(config) == ("Only the language model is sized; left out are vision_config.",)


def test_a_class_of_other_code_is_read_by_its_language_model() -> None:
    """As OpenGVLab/InternVL2_5-8B's, whose code came with the weights."""
    inner = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    config = {"model_type": "internvl_chat", "llm_config": inner, "vision_config": {}, "downsample_ratio": 0.5}
    assert size(from_huggingface(config)) == size(from_huggingface(inner))
    omni = {
        "model_type": "some_omni",
        "thinker_config": {"text_config": inner, "audio_config": {}},
        "talker_config": {},
    }
    assert size(from_huggingface(omni)) == size(from_huggingface(inner))
    assert "audio_config, talker_config" in left_out(omni)[0]


@pytest.mark.parametrize(
    "config, path, code",
    [
        (whole("llava", {"num_key_value_heads": 3}), "text_config.num_key_value_heads", "unsupported_field"),
        (whole("llava", {"secret": 3}), "text_config.secret", "unknown_field"),
        (whole("llava", num_secret_layers=3), "num_secret_layers", "unknown_field"),
        (whole("llava", hidden_size=4096), "hidden_size", "contradiction"),
        ({"model_type": "other", "text_config": {"hidden_size": 8}}, "text_config.model_type", "no_model_type"),
        (
            {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}},
            "text_config.model_type",
            "unsupported_model_type",
        ),
        ({"model_type": "other", "text_config": {"model_type": ["llama"]}}, "text_config.model_type", None),
        ({"model_type": "ovis2", "text_config": {"model_type": "qwen2"}}, "model_type", "unsupported_model_type"),
        (
            {
                "model_type": "other",
                "tie_word_embeddings": True,
                "text_config": {"model_type": "llama", "tie_word_embeddings": False},
            },
            "tie_word_embeddings",
            "contradiction",
        ),
    ],
)
def test_a_refusal_says_where_the_field_stands(config: dict[str, Any], path: str, code: str | None) -> None:
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface(config)
    assert refused.value.path == path
    assert code is None or refused.value.code == code
    assert refused.value.remedy


NO_DEFAULT = {"musicflamingo", "paligemma", "qwen3_omni_moe_thinker"}
"""Classes that write fields which contradict those inside, or heads of 73 channels."""


@pytest.mark.parametrize("text", [None, {}], ids=["absent", "empty"])
@pytest.mark.parametrize("outer", [name for name in KNOWN if name not in NO_DEFAULT])
def test_what_a_file_leaves_out_is_what_the_class_of_the_whole_writes(outer: str, text: dict[str, Any] | None) -> None:
    """Some classes make another language model of nothing, or of a part, than its own class does."""
    if outer == "exaone4_5" and text is not None:
        pytest.skip("transformers makes nothing of an empty language model here")
    config = {"model_type": outer, "tie_word_embeddings": False} | ({} if text is None else {"text_config": text})
    if OUTER[outer].own_default and text is None:
        with pytest.raises(UnsupportedArchitecture) as refused:
            from_huggingface(config)
        assert (refused.value.path, refused.value.code) == ("text_config", "no_language_model")
        return
    written = transformers.AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
    assert from_huggingface(config) == from_huggingface(written)
