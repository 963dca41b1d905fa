"""The fields of a job's plan as widgets, generated from its class; a wrong value leaves its message at its field."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import streamlit as st
from pydantic.fields import FieldInfo

from pages.widgets import chrome
from planner import UnsupportedPlan, parse_plan
from planner.plans import Plan

PlanType = TypeVar("PlanType", bound=Plan)


def plan_fields(
    plan_class: type[PlanType],
    key: str,
    columns: int = 3,
    given: dict[str, Any] | None = None,
    fixed: dict[str, Any] | None = None,
    notes: dict[str, str] | None = None,
    sections: Mapping[str, Sequence[str]] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> PlanType | None:
    """Widgets for every field that is not ``fixed``; the plan they make, or ``None`` while a field is wrong (and says
    so).

    ``notes`` are words on a field's question mark. ``sections`` has the fields that stand together, by the heading
    under which they fold away (none folds where it is empty); the rest folds away under *More*. ``choices`` has the
    values of fields whose type does not say them.
    """
    data: dict[str, Any] = dict(fixed or {})
    places: dict[str, Any] = {}
    asked = {name: field for name, field in plan_class.model_fields.items() if name not in data}
    known = {name for names in (sections or {}).values() for name in names}
    rest = [name for name in asked if name not in known]
    for heading, names in {**(sections or {}), ("More" if sections else ""): rest}.items():
        with st.expander(heading) if heading else st.container():
            cells: list[Any] = []
            for index, name in enumerate(name for name in names if name in asked):
                if index % columns == 0:
                    cells = list(st.columns(columns))
                with cells[index % columns]:
                    start, known_values = _start(asked[name], name, given), (choices or {}).get(name)
                    value = _field(name, asked[name], start, f"{key}-{name}", notes, known_values)
                    places[name] = st.container()
                if value is not None:
                    data[name] = value
    try:
        return parse_plan(plan_class, data)
    except UnsupportedPlan as refused:
        for problem in refused.problems:
            with places.get(problem.path.split("[")[0], st.container()):
                chrome.field_error(problem)
        return None


def label_of(name: str) -> str:
    """A field's name for people."""
    return name.replace("_", " ").capitalize()


def _start(field: FieldInfo, name: str, given: Mapping[str, Any] | None) -> Any:
    """What a field's widget begins with."""
    return (given or {}).get(name, None if field.is_required() else field.get_default(call_default_factory=True))


def _field(
    name: str,
    field: FieldInfo,
    default: Any,
    key: str,
    notes: Mapping[str, str] | None,
    known_values: Sequence[str] | None,
) -> Any:
    """The value that the widget holds, as plain data; ``None`` where it is left empty."""
    note = (notes or {}).get(name)
    label = field.title or label_of(name)
    choices, several, plain = _shape(field.annotation)
    choices = list(known_values or choices)
    if choices and several:
        chosen = st.multiselect(
            label, choices, default=[each for each in default if each in choices], key=key, help=note
        )
        return chosen
    if choices:
        options = [None, *choices] if default is None else choices
        shown = {None: "none"}
        return st.selectbox(
            label,
            options,
            index=options.index(default) if default in options else 0,
            format_func=lambda choice: shown.get(choice, choice),
            key=key,
            help=note,
        )
    if plain is bool:
        return st.checkbox(label, value=bool(default), key=key, help=note)
    if several:
        text = st.text_input(label, value=", ".join(map(str, default)), key=key, help=note)
        return [part.strip() for part in text.split(",") if part.strip()]
    # Numbers are typed as text: what was typed stays, and the plan itself says what is wrong with it.
    text = st.text_input(label, value="" if default is None else _shown(default), key=key, help=note).strip()
    if not text:
        return None
    return text.replace(",", "") if plain in (int, float) else text


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shape(annotation: Any) -> tuple[list[Any], bool, Any]:
    """The choices of a field, whether several may be chosen, and its plain type."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return list(typing.get_args(annotation)), False, str
    if origin is tuple:
        return _shape(typing.get_args(annotation)[0])[0], True, str
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _shape(inner[0])
    return [], False, annotation
