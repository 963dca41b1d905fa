"""Import: what is read, and where in the pasted text a refusal stands."""

from __future__ import annotations

import json

import pytest

from pages.widgets import transfer
from pages.widgets.starting import starting_spec
from planner import PlannerError, size

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def test_a_published_configuration_is_sized_to_the_last_parameter() -> None:
    # Llama 2 7B: Touvron et al. 2023, arXiv:2307.09288; 6,738,415,616 elements in its published weights.
    assert size(transfer.read(json.dumps(LLAMA)).spec).parameters.total == 6_738_415_616


@pytest.mark.parametrize("text", [starting_spec().to_yaml(), starting_spec().to_json()])
def test_what_was_taken_away_comes_back(text: str) -> None:
    assert transfer.read(text).spec == starting_spec()


def test_a_refusal_stands_at_the_line_of_its_field() -> None:
    text = json.dumps({**LLAMA, "num_key_value_heads": 7}, indent=2)
    with pytest.raises(PlannerError) as refused:
        transfer.read(text)
    ((number, line, _),) = transfer.marked_lines(text, refused.value.problems)
    assert "num_key_value_heads" in line
    assert text.splitlines()[number - 1] == line


def test_a_field_that_is_not_known_is_refused_by_name() -> None:
    text = json.dumps({**LLAMA, "number_of_gears": 5}, indent=2)
    with pytest.raises(PlannerError) as refused:
        transfer.read(text)
    assert any("number_of_gears" in problem.path for problem in refused.value.problems)
    assert transfer.marked_lines(text, refused.value.problems)


@pytest.mark.parametrize(
    "text", ["{", "[1, 2", "a: [b", "just words", "", "42", "[]", "\x00", "{" * 3000, "- " * 5000, "x" * 3_000_000]
)
def test_text_that_is_no_design_is_refused_without_a_traceback(text: str) -> None:
    with pytest.raises(PlannerError):
        transfer.read(text)


def test_broken_json_names_its_line() -> None:
    with pytest.raises(PlannerError) as refused:
        transfer.read(text := '{\n  "vocab_size": 3,\n  oops\n}')
    assert transfer.marked_lines(text, refused.value.problems)[0][:2] == (3, "  oops")
