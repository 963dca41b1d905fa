"""Prompts as tokens and tokens as text: bytes of UTF-8 with their characters, symbols of tasks with spaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import GeneratePlan, UnsupportedPlan
from planner.vocabulary import BYTES, vocabulary


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_comes_back_from_its_bytes(text: str) -> None:
    tokens = BYTES.encode(text)
    assert bytes(tokens) == text.encode()
    piece = BYTES.pieces()
    assert "".join(piece(token) for token in tokens) == text


def test_a_character_comes_with_its_last_byte_and_a_lone_byte_is_marked() -> None:
    piece = BYTES.pieces()
    assert [piece(token) for token in "é€".encode()] == ["", "é", "", "", "€"]
    assert [piece(token) for token in (0xC3, ord("a"))] == ["", "�a"]
    assert [piece(token) for token in (0xFF, ord("b"))] == ["�", "b"]


def test_bytes_have_names_of_their_own() -> None:
    assert len(set(BYTES.labels)) == 256
    assert [BYTES.labels[value] for value in (0, 9, 10, 32, 65, 127, 195)] == [
        *("\\x00", "\\t", "\\n", "space", "A", "\\x7f", "\\xc3")
    ]


def test_symbols_are_read_and_written_with_spaces_between() -> None:
    recall = vocabulary("multi_query_associative_recall", 2)
    assert recall.encode(" k1 v64\n_ ") == [1, 128, 0]
    piece = recall.pieces()
    assert piece(1) + piece(128) == " k1 v64"
    for wrong in ("k65", "K1", "k1v1"):
        with pytest.raises(UnsupportedPlan) as refused:
            recall.encode(f"k1 {wrong}")
        assert refused.value.path == "prompt"
        assert repr(wrong) in str(refused.value)
    for empty, words in (("", BYTES), (" \n", recall)):
        with pytest.raises(UnsupportedPlan, match="prompt: There is no prompt"):
            words.encode(empty)


def test_a_draft_writes_one_text_more() -> None:
    first, second = "a" * 16, "b" * 16
    assert GeneratePlan(prototypes=(first, second), prompt="x").texts == ((first, None), (second, None))
    assisted = GeneratePlan(prototypes=(first, second), draft=second, prompt="x")
    assert assisted.texts == ((first, None), (second, None), (first, second))
    for outside in ("../" + "a" * 13, "A" * 16, "a" * 16 + "\n"):
        with pytest.raises(ValueError):
            GeneratePlan(prototypes=(outside,), prompt="x")
