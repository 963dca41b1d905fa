"""Presets are exact, and loading says clearly what is wrong with a name, a file or its text."""

from __future__ import annotations

import json
import pathlib
import warnings

import pytest
import torch

from planner import InvalidSpec, load, size
from planner.presets import PRESETS, from_text, preset, preset_ids, read_yaml

FAMILIES = [name for name in preset_ids() if "config" in read_yaml((PRESETS / f"{name}.yaml").read_text())]


def test_there_are_at_least_a_dozen_known_models() -> None:
    assert len(FAMILIES) >= 12


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_has_transformers_parameters_and_the_published_count(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = read_yaml((PRESETS / f"{name}.yaml").read_text())["config"]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        expected = transformers.AutoModelForCausalLM.from_config(made).num_parameters()
    found = size(preset(name).spec).parameters.total
    assert found == expected
    number, unit = (preset(name).published or "").split()
    # A rounded count is right to half of its last digit; two marketing counts ("1.5 B" for 1.558 B) to one.
    step = 10.0 ** -len(number.partition(".")[2]) * {"M": 1e6, "B": 1e9}[unit]
    assert abs(found - float(number) * {"M": 1e6, "B": 1e9}[unit]) <= step


@pytest.mark.parametrize("name", preset_ids())
def test_every_preset_names_its_source(name: str) -> None:
    assert preset(name).source
    assert preset(name).title == load(name).name


def test_files_of_every_kind_are_read(tmp_path: pathlib.Path) -> None:
    spec = load("tiny-hybrid")
    (tmp_path / "a.yaml").write_text(spec.to_yaml())
    (tmp_path / "b.json").write_text(spec.to_json())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert load(tmp_path / "a.yaml") == load(tmp_path / "b.json") == spec
    assert size(load(tmp_path)).parameters.total == 124_439_808  # the directory's config.json; GPT-2's published size


@pytest.mark.parametrize(
    "name, code",
    [
        ("llama-2-7bb", "no_such_preset"),
        ("nowhere/config.json", "no_such_file"),
        ("", "is_a_directory"),
        ("\x00", "no_such_preset"),
    ],
)
def test_a_wrong_name_gets_a_clear_error(name: str, code: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        load(name)
    assert refused.value.code == code
    if code == "no_such_preset" and name.startswith("llama"):
        assert "llama-2-7b" in refused.value.remedy


@pytest.mark.parametrize("text, code", [("{bad", "not_json"), ("a: [1", "not_yaml"), ("- 1", "not_a_mapping")])
def test_broken_text_says_where(text: str, code: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        from_text(text)
    assert refused.value.code == code
    assert refused.value.remedy


def test_a_file_that_is_no_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSpec, match="UTF-8"):
        load(tmp_path / "x.yaml")
