"""Whatever a file holds, reading it ends in a specification or in one refusal, said within a second."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import PlannerError, from_huggingface, load, parse_spec, size
from planner.__main__ import main
from planner.interop import ADAPTERS
from planner.presets import from_text

SECONDS = 2.0
"""A second, and as much again for a busy machine."""


def refused(read: Callable[[], object]) -> PlannerError:
    """The one refusal in which reading ends, in time and with all that a refusal must say."""
    begin = time.perf_counter()
    with pytest.raises(PlannerError) as caught:
        read()
    assert time.perf_counter() - begin < SECONDS
    error = caught.value
    assert error.code
    assert error.remedy
    assert all(problem.message for problem in error.problems)
    assert len(str(error)) < 20_000
    return error


def nested(depth: int, key: str = "x") -> dict[str, Any]:
    """A mapping within a mapping, and so on."""
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {key: inner}
    return inner


HUGE = {f"field_{index}": index for index in range(400_000)}
LLAMA = {"model_type": "llama"}


@pytest.mark.parametrize(
    "config, code",
    [
        (LLAMA | {"quantization_config": nested(10_000)}, "nested_too_deep"),
        (LLAMA | {"hidden_size": nested(10_000)}, "nested_too_deep"),
        (nested(10_000, "text_config"), "nested_too_deep"),
        (nested(30, "thinker_config"), "no_model_type"),
        (LLAMA | HUGE, "too_many_entries"),
        (LLAMA | {"secret": list(range(400_000))}, "too_many_entries"),
        (LLAMA | {"hidden_act": "x" * 50_000_000}, "unsupported_field"),
        (LLAMA | {"x" * 50_000_000: 1}, "not_a_name"),
        (LLAMA | {3: 1}, "not_a_name"),
        (LLAMA | {None: 1}, "not_a_name"),
        (LLAMA | {"rope_scaling": {(1, 2): 1}}, "not_a_name"),
        (LLAMA | {"vocab_size": math.nan}, "not_a_number"),
        (LLAMA | {"vocab_size": math.inf}, "not_a_number"),
        (LLAMA | {"rms_norm_eps": math.inf}, "not_a_number"),
        (LLAMA | {"vocab_size": 1e30}, "not_a_number"),
        (LLAMA | {"vocab_size": 10**30}, "too_large"),
        (LLAMA | {"vocab_size": 10**5000}, "too_large"),
        (LLAMA | {"vocab_size": -32000}, "too_small"),
        (LLAMA | {"vocab_size": "32000"}, "not_a_number"),
        (LLAMA | {"vocab_size": True}, "not_a_number"),
        (LLAMA | {"tie_word_embeddings": 1}, "not_a_flag"),
        (LLAMA | {"quantization_config": "gptq"}, "not_a_mapping"),
        (LLAMA | {"per_layer_config": {"1": {"num_key_value_heads": 1}}}, "unsupported_value"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 3}, "unsupported_field"),
        ({"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["mystery"]}, "unsupported_field"),
        ({"model_type": "llama" * 1000}, "unsupported_model_type"),
        ({"model_type": 3}, "no_model_type"),
        ({}, "no_model_type"),
        ([], "not_a_mapping"),
        (None, "not_a_mapping"),
        ("llama", "not_a_mapping"),
    ],
    ids=range(31),
)
def test_a_configuration_that_is_none_is_refused(config: Any, code: str) -> None:
    assert refused(lambda: from_huggingface(config)).code == code


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {" + ",".join(f"k{index}: 1" for index in range(9)) + "}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip
TEXTS = {
    "aliases that unfold to 9^9 entries": BOMB,
    "aliases in thousands": "a: &a 1\nb: [" + ",".join(["*a"] * 5000) + "]",
    "merges that unfold to 9^9 fields": MERGES,
    "an alias of itself": "layer_groups: &a [*a]",
    "lists 10,000 deep": "a: " + "[" * 10_000,
    "mappings 10,000 deep": "a: " + "{a: " * 10_000,
    "JSON 10,000 deep": '{"model_type": "llama", "x": ' + '{"x":' * 10_000 + "1" + "}" * 10_001,
    "JSON lists 100,000 deep": '{"x": ' + "[" * 100_000,
    "50 MB of JSON": '{"model_type": "llama", "x": "' + "x" * 50_000_000 + '"}',
    "50 MB of YAML": "x: " + "x" * 50_000_000,
    "YAML without end": "\n".join(f"field_{index}: {index}" for index in range(8000)),
    "NaN": '{"vocab_size": NaN}',
    "infinity": '{"vocab_size": Infinity, "hidden_size": 8}',
    "infinity in YAML": "vocab_size: .inf",
    "a number of 10,000 digits": '{"vocab_size": ' + "9" * 10_000 + "}",
    "the same in YAML": "vocab_size: " + "9" * 10_000,
    "a date that is none": "vocab_size: 2020-99-99",
    "a mapping for a name": "? {a: 1}\n: 2",
    "a number for a name": "3: 4",
    "an object of Python": "a: !!python/object/apply:os.getcwd []",
    "two documents": "a: 1\n---\nb: 2",
    "a null byte": "a: \x00",
    "nothing": "",
    "a word": "llama",
    "half of JSON": '{"model_type": "llama"',
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_text_that_is_none_is_refused_from_the_text_the_file_and_the_command_line(
    what: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(lambda: from_text(TEXTS[what]))
    path = tmp_path / "config.json"
    path.write_text(TEXTS[what], encoding="utf-8")
    error = refused(lambda: load(path))
    begin = time.perf_counter()
    assert main(["size", str(path)]) != 0
    assert time.perf_counter() - begin < SECONDS
    told = capsys.readouterr()
    assert error.problems[0].message.split(":")[0] in told.err + told.out
    assert "Traceback" not in told.err + told.out


def test_a_large_file_is_refused_without_being_read_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(8 * 2**30)  # a hole: it takes no room on the disk, and reading it whole would take the memory
    assert refused(lambda: load(path)).code == "file_too_large"
    path.write_bytes(b"\xff\xfe\x00")
    assert refused(lambda: load(path)).code == "not_text"


def end(read: Callable[[], object]) -> None:
    """Reading ends in time, in a refusal that says what it must or in none."""
    begin = time.perf_counter()
    try:
        read()
        error = None
    except PlannerError as caught:
        error = caught
    assert time.perf_counter() - begin < SECONDS
    assert error is None or (error.code and error.remedy and error.problems[0].message)


STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)
SPEC = load("llama-2-7b").to_dict()


@given(field=st.sampled_from(sorted(SPEC)) | st.text(max_size=8), value=STRANGE)
@settings(max_examples=150, deadline=None)
def test_a_strange_value_in_a_specification_ends_in_a_refusal_or_in_a_size(field: str, value: Any) -> None:
    end(lambda: size(parse_spec({**SPEC, field: value})))


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_strange_value_in_a_configuration_ends_in_a_refusal_or_in_a_size(data: st.DataObject) -> None:
    adapter = ADAPTERS[data.draw(st.sampled_from(sorted(ADAPTERS)))]
    known = sorted({*adapter.defaults, *adapter.aliases, *adapter.neutral, *adapter.unmodelled, "text_config"})
    changes = data.draw(st.dictionaries(st.sampled_from(known) | st.text(max_size=6), STRANGE, min_size=1, max_size=3))
    config = {"model_type": adapter.model_type, **changes}
    end(lambda: size(from_huggingface(config)))


@given(text=st.text(max_size=60) | st.text(alphabet="{}[]:,-&*<|>!'\"#\n a1", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_ends_in_a_refusal_or_in_a_specification(text: str) -> None:
    end(lambda: from_text(text))


@given(value=STRANGE)
@settings(max_examples=100, deadline=None)
def test_any_json_ends_in_a_refusal(value: Any) -> None:
    with pytest.raises(PlannerError):
        from_text(json.dumps({"model_type": "llama", "vocab_size": 100, "num_key_value_heads": [value]}))


@pytest.mark.parametrize("family, field", [("zamba", "attn_layer_period"), ("zamba2", "num_mem_blocks")])
def test_families_whose_layers_share_weights_are_refused_with_the_reason(family: str, field: str) -> None:
    problem = refused(lambda: from_huggingface({"model_type": family, "hidden_size": 2560})).problems[0]
    assert problem.path == "model_type"
    assert field in problem.message
