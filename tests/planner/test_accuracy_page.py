"""The page of accuracies still says what is true: its counts by transformers are what the planner gives today."""

from __future__ import annotations

import pathlib
import re

import pytest

from benchmarks.accuracy import _cell, known_models, transformers_parameters
from planner import size
from planner.presets import preset

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "planner" / "accuracy.md"


def rows() -> dict[str, list[str]]:
    """The cells of each model's row, by its title."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 2 and re.fullmatch(r"[\d,]+", row[1])}


def test_the_planner_was_exact_in_every_row_and_is_today() -> None:
    titles = {preset(name).title: name for name in known_models()}
    assert len(rows()) >= 50
    for title, (expected, ours, *_) in rows().items():
        assert ours == "exact"
        assert size(preset(titles[title]).spec).parameters.total == int(expected.replace(",", ""))


def test_other_counters_have_their_versions_and_their_errors() -> None:
    text = PAGE.read_text()
    for counter in ("llm-analysis | 0.2.2", "accelerate | 1."):
        assert f"| {counter}" in text
    assert any("%" in cell for row in rows().values() for cell in row)


def test_the_reference_is_transformers_own_count() -> None:
    pytest.importorskip("transformers")
    tiny = {"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    assert transformers_parameters(tiny) == 2 * 10 * 8 + 4 * 8 * 8 + 3 * 8 * 12 + 3 * 8


@pytest.mark.parametrize(
    "found, words",
    [(1000.0, "exact"), (1010.0, "+1.00 %"), (960.0, "-4.00 %"), ("ValueError", "ValueError")],
)
def test_a_cell_says_how_far_off_a_counter_is(found: float | str, words: str) -> None:
    assert _cell(found, 1000) == words
    assert _cell(10_000_003, 10_000_000) == "+3"
