"""Fields of a form: what counts as entered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pages.widgets import spec_fields
from pages.widgets.spec_fields import Form
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
