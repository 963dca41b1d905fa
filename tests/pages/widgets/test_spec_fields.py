"""Fields of a form: what counts as entered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pages.widgets import spec_fields
from pages.widgets.spec_fields import Form
from planner import parse_spec
from planner.components.attention import Attention


def test_what_a_field_showed_already_is_no_wish_and_anything_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {"box": "8"}
    monkeypatch.setattr("streamlit.session_state", state)
    taken: list[Mapping[str, Any]] = []
    form = Form("form", lambda changes: taken.append(dict(changes)), {}, {})
    view = next(view for view in spec_fields.fields_of(Attention) if view.name == "num_key_value_heads")

    # A browser that lags sends the text of a field that is gone: an edit made since would be taken back by it.
    spec_fields._taken(view, form, "box", "8")
    assert taken == []
    spec_fields._taken(view, form, "box", "4")
    assert taken == [{"num_key_value_heads": 8}]


@pytest.mark.parametrize("typed, meant", [("4,096", 4096), (" 1_024 ", 1024), ("", ""), ("many", "many")])
def test_a_number_is_handed_on_as_one_and_other_text_as_it_is(typed: str, meant: Any) -> None:
    view = next(view for view in spec_fields.fields_of(Attention) if view.name == "head_dim")
    assert spec_fields.value_of(view, typed) == meant


@pytest.mark.parametrize(
    "typed, meant", [("1, 2, 8", (1, 2, 8)), (" 1 2,8 ", (1, 2, 8)), ("", None), ("1, many", (1, "many"))]
)
def test_a_row_of_numbers_is_typed_with_commas_or_blanks(typed: str, meant: Any) -> None:
    view = next(view for view in spec_fields.fields_of(Attention) if view.name == "block_offsets")
    assert view.kind == "integers"
    assert spec_fields.value_of(view, typed) == meant
    assert spec_fields.text_of((1, 2, 8)) == "1, 2, 8"


def test_what_is_wrong_with_one_number_of_a_row_stands_at_the_row() -> None:
    layer = {"kind": "attention", "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "block_size": 4}

    def apply(changes: Mapping[str, Any]) -> None:
        parse_spec(
            {
                "vocab_size": 9,
                "hidden_size": 8,
                "layer_groups": [{"layers": [{"sequence_mixer": {**layer, **changes}}]}],
            }
        )

    form = Form("form", apply, {}, {})
    assert not spec_fields.take(form, {"block_offsets": (1, 0)})
    assert form.problems["block_offsets"].path.endswith("block_offsets[1]")
    assert spec_fields.take(form, {"block_offsets": (1, 2)})
    assert form.problems == {}
