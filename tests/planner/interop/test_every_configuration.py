"""Whatever configuration transformers can write is sized exactly or refused in one way: no other end, and no guess."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from planner import PlannerError, UnsupportedArchitecture, from_huggingface, size
from planner.interop import ADAPTERS, left_out, resolved
from planner.interop.nested import OUTER
from tests.planner.interop.oracle import WHOLES, language_parameters, small_config

OTHERS = sorted(set(CONFIG_MAPPING_NAMES) - set(ADAPTERS))
"""Classes of configurations that no adapter reads: encoders, models of images and sound, decoders of other kinds."""
WITHOUT_DEFAULTS = {"gemma4_assistant", "nougat"}
"""Classes that transformers itself cannot make without fields."""
TWO_MODELS = {"qwen2_5_omni"}
"""A whole beside whose language model stands a second, which speaks."""
KEYS = ("text_config", "llm_config", "language_config")
"""Where the configuration of a whole holds that of its language model."""


@functools.cache
def written(model_type: str) -> dict[str, Any]:
    """What transformers writes of the class's defaults; the type alone where it makes nothing of them."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            made = transformers.AutoConfig.for_model(model_type)
    except Exception:
        return {"model_type": model_type}
    return {**made.to_dict(), "model_type": made.model_type or model_type}


def outcome(config: dict[str, Any]) -> int | UnsupportedArchitecture:
    """The number of parameters, or the refusal."""
    try:
        return int(size(from_huggingface(config)).parameters.total)
    except UnsupportedArchitecture as refused:
        return refused


def changed(config: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    """The configuration with other fields: twice as large, nothing, and of other types."""
    names = [name for name in sorted(config) if name != "model_type"]
    numbers = [name for name in names if isinstance(config[name], int) and not isinstance(config[name], bool)]
    yield {**config, **{name: 2 * config[name] for name in numbers}}
    yield {**config, **{name: config[name] + 1 for name in rng.sample(numbers, min(3, len(numbers)))}}
    for value in (None, True, -3, 10**30, [1, 2], {"x": 1}, "word"):
        yield {**config, **dict.fromkeys(rng.sample(names, min(2, len(names))), value)}
    yield {**config, "number_of_secret_layers": 3}
    yield {name: config[name] for name in ("model_type", *rng.sample(names, len(names) // 2))}


def language_model_in(config: dict[str, Any]) -> str | None:
    """The type of a known language model that a configuration says to hold, or to be a class around."""
    if config["model_type"] in ADAPTERS:
        return str(config["model_type"])
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):
        return language_model_in({"model_type": f"{config['model_type']}_thinker", **thinker})
    outer = OUTER.get(config["model_type"])
    assumed = outer.text if outer is not None else None
    for key in KEYS:
        if isinstance(config.get(key), dict):
            assumed = config[key].get("model_type") or assumed
            break
    return assumed if assumed in ADAPTERS else None


@pytest.mark.parametrize("model_type", OTHERS)
def test_a_class_without_an_adapter_is_refused_by_its_name(model_type: str) -> None:
    """Unless it holds a language model of another class, which alone is sized then, and which is said."""
    config = written(model_type)
    for each in ({"model_type": model_type}, config, *changed(config, random.Random(model_type))):
        held, found = language_model_in(each), outcome(each)
        if isinstance(found, UnsupportedArchitecture):
            assert found.code
            assert all(problem.message and problem.remedy for problem in found.problems)
            assert held is not None or found.code in ("unsupported_model_type", "no_model_type")
            assert held is not None or each["model_type"] in str(found)
            continue
        assert held is not None, f"{model_type} is sized as {found} parameters"
        assert resolved(each).config["model_type"] == held
        beside = [name for name in each if name.endswith("_config") and isinstance(each[name], dict)]
        if held != each["model_type"] and set(beside) - set(KEYS):
            assert any("Only the language model is sized" in note for note in left_out(each))
    found = outcome(config)
    if isinstance(found, int) and model_type not in (*OUTER, *TWO_MODELS) and config["model_type"] not in ADAPTERS:
        assert found == parameters_of_the_language_model(model_type)


def parameters_of_the_language_model(model_type: str) -> int:
    """Those in transformers' model of the whole: a class that only names its language model may change it."""
    names = [getattr(modeling_auto, mapping).get(model_type) for mapping in WHOLES]
    name = next((name for name in names if name is not None), None)
    assert name is not None, f"{model_type} is sized, and transformers has no model of it to compare with"
    with torch.device("meta"):
        whole = getattr(transformers, name)._from_config(transformers.AutoConfig.for_model(model_type))
    return sum(torch.Size(shape).numel() for shape in language_parameters(whole).values())


def test_the_classes_are_many_and_nearly_all_have_defaults() -> None:
    assert len(OTHERS) > 400
    assert {model_type for model_type in OTHERS if len(written(model_type)) == 1} == WITHOUT_DEFAULTS


STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    0.5,
    -2.5,
    math.nan,
    math.inf,
    1e308,
    10**30,
    "",
    "word",
    [],
    [1, 2],
    [None],
    ["word", 3],
    [[1, "word"], 2],
    {},
    {"word": 1},
    {"rope_type": 3, "rope_theta": "word"},
    {"full_attention": 3, "rope_type": "yarn"},
)
"""Values of every type, which some field may mean and most cannot."""


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_no_value_of_any_field_ends_in_anything_but_a_size_or_a_refusal(family: str) -> None:
    """One field at a time, and a field that no family has; what a file leaves out is told of it then, too."""
    adapter, base = ADAPTERS[family], small_config(family)
    fields = {*adapter.defaults, *adapter.aliases, *adapter.neutral, *adapter.unmodelled, *base, "rope_scaling"}
    wrong = []
    fields = {field.partition(".")[0] for field in fields} - {"model_type"}
    for name in [*sorted(fields), "number_of_secret_layers"]:
        for value in (*STRANGE, *adapter.neutral.get(name, ())):
            config = {**base, name: value}
            try:
                total = size(from_huggingface(config)).parameters.total
                left_out(config)
                if not 0 < total < 10**40:
                    wrong.append(f"{name}={value!r}: {total}")
            except PlannerError as refused:
                if not (refused.code and refused.remedy):
                    wrong.append(f"{name}={value!r}: {refused}")
            except Exception as error:
                wrong.append(f"{name}={value!r}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong[:20])
