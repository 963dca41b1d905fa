"""Every family against transformers itself on the meta device: total, and tensor by tensor, over all variations."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import UnsupportedArchitecture, size
from planner.interop import ADAPTERS, from_huggingface, huggingface_tensors
from tests.planner.interop.oracle import (
    config_class,
    judged,
    reference,
    small_config,
    variations,
    works,
)
from tests.planner.interop.small import NEEDED

transformers = pytest.importorskip("transformers")

PAIRS = 12
"""Drawn pairs of changes a family, beside every single change."""
FLOOR = 0.85
"""Share of the working configurations that must be sized: exactness must not be had by refusing."""
LOWER_FLOORS = {"mpt": 0.75}
"""MPT's own code follows three fields that transformers ignores: their other values are refused, not guessed."""


NO_MODEL_BY_DEFAULT = {
    "dots1": "n_shared_experts",
    "lfm2_moe": "layer_types",
    "nemotron": "num_key_value_heads",
    "qwen3_omni_moe_text": "head_dim",
}
"""Classes whose defaults make no model that runs, and the field that says so: heads of 73 channels have no pairs, and
experts are not numbered; nothing says which layers of LFM2-MoE are convolutions."""


def judge_all(family: str, pairs: int, seed: int = 0) -> tuple[int, list[tuple[dict[str, Any], str]]]:
    """How many single variations of a family are exact, and those that are refused; any wrong one fails."""
    exact, refused, failed = 0, [], []
    base = small_config(family)
    for config in variations(family, seed, pairs):
        verdict, words = judged(config)
        changed = {name: value for name, value in config.items() if name not in base or base[name] != value}
        if verdict in ("wrong", "crashed"):
            failed.append(f"{verdict}: {changed} {words}")
        elif len(changed) < 2 and verdict == "exact":
            exact += 1
        elif len(changed) < 2 and verdict == "refused":
            refused.append((config, f"{changed} {words}"))
    assert not failed, "\n".join([f"{len(failed)} in all", *failed[:10]])
    return exact, refused


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_every_variation_is_exact_tensor_by_tensor_or_refused(family: str) -> None:
    """Of the single changes of which transformers makes a working model (see :func:`works`), the floor is sized.

    A configuration that is sized counts as working; one that is refused is run, as long as the answer hangs on it. The
    long run below runs all of them.
    """
    exact, refused = judge_all(family, PAIRS)
    floor = LOWER_FLOORS.get(family, FLOOR)
    allowed = exact * (1 - floor) / floor
    working: list[str] = []
    for index, (config, words) in enumerate(refused):
        if len(working) + len(refused) - index <= allowed:
            break
        if works(config):
            working.append(words)
    else:
        assert len(working) <= allowed, "\n".join(working)


def test_the_variations_are_many() -> None:
    assert sum(1 for family in ADAPTERS for _ in variations(family, pairs=PAIRS)) >= 2000


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_many_more_variations_are_exact_or_refused(family: str) -> None:
    working = [config for config in variations(family, seed=1, pairs=200) if works(config)]
    sized = sum(judged(config)[0] == "exact" for config in working)
    assert sized >= LOWER_FLOORS.get(family, FLOOR) * len(working)
    judge_all(family, 1000, seed=2)


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_an_empty_configuration_means_transformers_defaults(family: str) -> None:
    """So do all the fields that transformers itself writes into a file."""
    if family in NO_MODEL_BY_DEFAULT:
        with pytest.raises(UnsupportedArchitecture) as refused:
            from_huggingface({"model_type": family})
        assert refused.value.path == NO_MODEL_BY_DEFAULT[family]
        return
    needed = NEEDED.get(family, {})
    expected = sum(torch.Size(shape).numel() for shape in reference({"model_type": family, **needed}).values())
    assert size(from_huggingface({"model_type": family})).parameters.total == expected
    written = transformers.AutoConfig.for_model(family).to_dict()
    assert size(from_huggingface(written)).parameters.total == expected
    if family not in NEEDED:  # what sets no size (a rotary base, a factor) is the same, too
        assert from_huggingface(written) == from_huggingface({"model_type": family})


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_defaults_are_transformers_own(family: str) -> None:
    """Where transformers derives a default (``None`` or ``auto`` here), the sizes of the test above hold it."""
    own = transformers.AutoConfig.for_model(family)
    declared = {field.name: field.default for field in dataclasses.fields(config_class(family))}
    for name, value in ADAPTERS[family].defaults.items():
        # What a class declares, before it derives other values (Qwen2-MoE's window is 0 where windows are not used).
        if declared.get(name) in (None, dataclasses.MISSING):
            declared[name] = getattr(own, name, None)
        if isinstance(value, dict) and isinstance(declared[name], dict):  # transformers adds another spelling
            assert value.items() <= declared[name].items(), name
        elif value not in (None, "auto") and declared[name] is not None:
            assert declared[name] == value, name


@pytest.mark.parametrize("family", sorted(ADAPTERS))
def test_an_unknown_field_is_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface({"model_type": family, "number_of_secret_layers": 3, "extra_width": 8})
    assert refused.value.fields == ("number_of_secret_layers", "extra_width")


@pytest.mark.slow
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
