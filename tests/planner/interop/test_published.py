"""Published configurations, with the keys of their files, are sized to the published count and as by transformers."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from planner import from_huggingface, load, size
from planner.interop import adapter_for, huggingface_tensors, left_out, resolved
from tests.planner.interop.oracle import reference

FOLDER = pathlib.Path(__file__).parent / "published"
FILES: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))["files"]
UNITS = {"M": 1e6, "B": 1e9}
SAYS_NOTHING_OF_ITS_HEAD = {"mistral-small-3.1"}
"""transformers' class would tie the head until it reads the weights, which hold one of its own."""


def config(name: str) -> dict[str, Any]:
    """A published configuration."""
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return read


def test_every_file_has_its_source() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*FILES, "index"}
    assert len(FILES) >= 20
    assert all("/" in entry["repository"] for entry in FILES.values())


@pytest.mark.parametrize("name", FILES)
def test_tensors_are_those_of_transformers_and_the_total_is_the_published_one(name: str) -> None:
    published = config(name)
    spec = from_huggingface(published)
    found, expected = huggingface_tensors(spec, adapter_for(published).model_type), reference(published)
    if name in SAYS_NOTHING_OF_ITS_HEAD:
        assert any("does not say whether the head" in note for note in left_out(published))
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert found == expected
    total = size(spec).parameters.total
    if FILES[name]["published"] is not None:
        number, unit = FILES[name]["published"].split()
        step = 10.0 ** -len(number.partition(".")[2]) * UNITS[unit]  # a stated count may be cut, not rounded
        assert abs(total - float(number) * UNITS[unit]) < step


@pytest.mark.parametrize("name", FILES)
def test_the_file_itself_is_loaded(name: str) -> None:
    assert load(FOLDER / f"{name}.json").content_hash() == from_huggingface(config(name)).content_hash()


def test_language_models_inside_others_have_their_own_published_counts() -> None:
    """Mistral-Small-24B-Base-2501 (the language model of 3.1) is published with 23,572,403,200 parameters, Llama 4
    Scout with 109 B in all, of which the encoder of images has about one."""
    assert size(from_huggingface(config("mistral-small-3.1"))).parameters.total == 23_572_403_200
    assert 107e9 < size(from_huggingface(config("llama-4-scout"))).parameters.total < 109e9


@pytest.mark.parametrize(
    "name, words",
    [
        ("deepseek-v3", ("by fp8, to 8 bits", "multi-token prediction")),
        ("gpt-oss-20b", ("by mxfp4, to 4 bits",)),
        ("llama-2-7b-gptq", ("by gptq, to 4 bits",)),
        ("gemma-3-27b", ("left out are vision_config",)),
        ("llama-4-scout", ("left out are vision_config", "attn_temperature_tuning")),
        ("llama-3.1-8b", ()),
    ],
)
def test_what_is_left_out_is_said_and_nothing_else(name: str, words: tuple[str, ...]) -> None:
    notes = left_out(config(name))
    assert len(notes) == len(words)
    for word in words:
        assert any(word in note for note in notes), word


@pytest.mark.parametrize(
    "quantization, words",
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "by awq, to 4 bits"),
        ({"quant_method": "gptq", "bits": 8}, "by gptq, to 8 bits"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "by bitsandbytes, to 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "by bitsandbytes, to 8 bits"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
            "by compressed-tensors, to 8 bits",
        ),
        ({"quant_method": "fbgemm_fp8"}, "by fbgemm_fp8, to 8 bits"),
        ({"quant_method": "magic", "bits": 3}, "by magic, a method that is not known here, to 3 bits"),
        ({"quant_method": "quanto"}, "by quanto, at a precision that it does not state"),
        ({"bits": "four"}, "by a method without a name, at a precision that it does not state"),
    ],
)
def test_quantised_weights_are_named_and_change_no_count(quantization: dict[str, Any], words: str) -> None:
    plain = config("llama-3.1-8b")
    quantised = plain | {"quantization_config": quantization}
    assert from_huggingface(quantised).content_hash() == from_huggingface(plain).content_hash()
    (note,) = left_out(quantised)
    assert words in note


def test_the_place_of_the_language_model_is_known() -> None:
    assert resolved(config("gemma-3-27b")).path == "text_config"
    assert resolved(config("qwen2.5-vl-7b")).path == ""
    assert resolved(config("qwen2.5-vl-7b")).config["model_type"] == "qwen2_5_vl_text"
