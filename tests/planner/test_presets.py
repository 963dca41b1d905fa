"""Presets are exact, and loading says clearly what is wrong with a name, a file or its text."""

from __future__ import annotations

import json
import pathlib
import warnings

import pytest
import torch

from planner import InvalidSpec, load, size
from planner.components import SequenceMixer, kinds_of
from planner.presets import PRESETS, from_text, preset, preset_ids, read_yaml

FAMILIES = [name for name in preset_ids() if "config" in read_yaml((PRESETS / f"{name}.yaml").read_text())]
WRITTEN_OUT = [name for name in preset_ids() if name not in FAMILIES and preset(name).published]
"""Known models that transformers has no class of."""


def test_there_are_at_least_thirty_two_known_models_of_every_kind() -> None:
    assert len(FAMILIES) >= 32
    mixers = [{layer.sequence_mixer.kind for _, layer in preset(name).spec.iterate_layers() if layer.sequence_mixer}
              for name in FAMILIES + WRITTEN_OUT]  # fmt: skip
    for kind in kinds_of(SequenceMixer):
        assert any(kind in kinds for kinds in mixers), kind
    assert sum(len(kinds) > 1 for kinds in mixers) >= 4  # hybrids


def agrees(found: int, stated: str) -> bool:
    """Whether a count is the stated one, or becomes it when it is rounded, or cut, to as many digits."""
    number, _, unit = stated.replace(",", "").partition(" ")
    if not unit:
        return found == int(number)
    scale = {"M": 10**6, "B": 10**9, "T": 10**12}[unit]
    step = scale / 10 ** len(number.partition(".")[2])
    return -step / 2 <= found - float(number) * scale < step


STATED_HIGHER = {"mpt-7b": "Its card states 6.7 B for what rounds to 6.6 B."}


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
    published = preset(name).published
    if published is None:
        assert "left out" in (preset(name).note or "")
    else:
        assert agrees(found, published) != (name in STATED_HIGHER)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_model_that_is_written_out_has_the_published_count(name: str) -> None:
    assert agrees(size(load(name)).parameters.total, preset(name).published or "")


@pytest.mark.parametrize(
    "found, stated, right",
    [
        (1_557_611_200, "1.5 B", True),
        (1_557_611_200, "1.6 B", True),
        (1_557_611_200, "1.4 B", False),
        (1_600_000_000, "1.5 B", False),
        (7_000, "7,000", True),
        (7_001, "7,000", False),
    ],
)
def test_a_stated_count_is_rounded_or_cut(found: int, stated: str, right: bool) -> None:
    assert agrees(found, stated) is right


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
