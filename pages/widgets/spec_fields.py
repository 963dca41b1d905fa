"""Form fields made from a pydantic model, so that a new component has a form without any code here.

A field is text for a number (with a slider over the values that the model accepts), a choice for a literal, a switch
for a flag. Its help is the attribute's docstring. Wrong text stays as it was typed, with the message below it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import streamlit as st
from pydantic import BaseModel, ValidationError

from pages.widgets import chrome, words
from pages.widgets.component import BrowserComponent
from planner import Problem

_WORDS = {"key_value": "KV", "qk": "QK", "kv": "KV", "q": "query", "v": "value", "rope": "RoPE", "mlp": "MLP"}
_WORDS |= {"n": "", "num": "", "lora": "latent", "conv": "convolution", "tok": "token", "nope": "plain", "lm": "LM"}
NOTHING = ("", "none", "off", "full", "all", "—")
"""What a person may write into an optional field to leave it out."""


@dataclass(frozen=True, slots=True)
class FieldView:
    """What a form needs to know of a field."""

    name: str
    label: str
    help: str
    kind: Literal["integer", "integers", "number", "flag", "choice"]
    optional: bool
    choices: tuple[str, ...] = ()
    required: bool = False
    default: Any = None


@cache
def fields_of(model: type[BaseModel]) -> tuple[FieldView, ...]:
    """The fields of a model that a form can show: numbers and rows of them, flags and choices, in their order."""
    comments = _attribute_docstrings(model)
    views = []
    for name, info in model.model_fields.items():
        if name == "kind":
            continue
        annotation, optional = _unwrapped(info.annotation)
        kind: Literal["integer", "integers", "number", "flag", "choice"]
        choices: tuple[str, ...] = ()
        if get_origin(annotation) is Literal:
            kind, choices = "choice", tuple(str(choice) for choice in get_args(annotation))
        elif annotation is bool:
            kind = "flag"
        elif annotation is int:
            kind = "integer"
        elif annotation is float:
            kind = "number"
        elif get_origin(annotation) is tuple and _unwrapped(get_args(annotation)[0])[0] is int:
            kind = "integers"
        else:
            continue
        required = info.is_required()
        default = None if required else info.default
        views.append(
            FieldView(name, label_of(name), comments.get(name, ""), kind, optional, choices, required, default)
        )
    return tuple(views)


def label_of(name: str) -> str:
    """A field's name in words: ``num_key_value_heads`` as ``KV heads``."""
    text = name.replace("key_value", "kv")
    words = [_WORDS.get(word, word) for word in text.split("_")]
    phrase = " ".join(word for word in words if word)
    return phrase[:1].upper() + phrase[1:]


def _unwrapped(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [each for each in get_args(annotation) if each is not type(None)]
        if len(inner) == 1:
            return _unwrapped(inner[0])[0], True
    return annotation, False


def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each attribute, of the class and those it comes from."""
    found: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        if ancestor in (object, BaseModel) or not issubclass(ancestor, BaseModel):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body[0]
        except (OSError, TypeError):
            continue
        previous: ast.stmt | None = None
        for statement in getattr(body, "body", []):
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
                and isinstance(previous, ast.AnnAssign)
                and isinstance(previous.target, ast.Name)
            ):
                found[previous.target.id] = inspect.cleandoc(statement.value.value).replace("``", "`")
            previous = statement
    return found


def text_of(value: Any) -> str:
    """A value as a field shows it."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def value_of(view: FieldView, text: str) -> Any:
    """The number that a person wrote, its digits grouped or not; what is none stays text, for the model to judge.

    Numbers of a row are parted by commas or blanks.
    """
    plain = text.strip()
    if view.optional and plain.lower() in NOTHING:
        return None
    if view.kind == "integers":
        return tuple(_number(each) for each in plain.replace(",", " ").split())
    return _number(plain)


def _number(plain: str) -> Any:
    digits = plain.replace(",", "").replace("_", "").replace(" ", "")
    for read in (int, float):
        try:
            return read(digits)
        except ValueError:
            continue
    return digits


@cache
def ladder() -> tuple[int, ...]:
    """Round whole numbers that people choose for sizes: 1 to 8, then four to a doubling."""
    steps = set(range(1, 9))
    for exponent in range(1, 19):
        steps |= {multiple * 2**exponent for multiple in (4, 5, 6, 7)}
    return tuple(sorted(steps))


def stops(model: BaseModel, view: FieldView, accepts: Callable[[Any], bool] | None = None) -> list[int | None]:
    """The round values that the field could take with all others as they are, its own value among them."""
    value = getattr(model, view.name)
    around = value or 1024
    values = {name: getattr(model, name) for name in type(model).model_fields}
    allowed: list[int | None] = []
    for step in sorted({*ladder(), around}):
        if not around / 64 <= step <= around * 16:
            continue
        try:
            type(model).model_validate({**values, view.name: step})
        except ValidationError:
            continue
        if accepts is None or accepts(step):
            allowed.append(step)
    if view.optional:
        allowed.append(None)
    return allowed


_slider = BrowserComponent("slider")
_FEW = 2


@dataclass(frozen=True, slots=True)
class Form:
    """Where a form's values come from and go to."""

    key: str
    """Unique, and new whenever the fields should be filled afresh."""
    apply: Callable[[Mapping[str, Any]], None]
    """Takes the changed values; raises ``PlannerError`` and changes nothing where they cannot be taken."""
    problems: dict[str, Problem]
    typed: dict[str, Any]


def show(model: BaseModel, form: Form, names: tuple[str, ...] | None = None) -> None:
    """Draw the fields of ``model``; those that are required, numeric or not at their default stand first."""
    views = [view for view in fields_of(type(model)) if names is None or view.name in names]
    first = [view for view in views if view.required or view.kind == "integer" or _is_set(model, view)]
    rest = [view for view in views if view not in first]
    if len(rest) <= _FEW:
        first, rest = views, []
    for view in first:
        _row(model, view, form)
    if rest:
        with st.expander(f"{len(rest)} more at their defaults", key=f"{form.key}:more"):
            for view in rest:
                _row(model, view, form)


def _is_set(model: BaseModel, view: FieldView) -> bool:
    return bool(getattr(model, view.name) != view.default)


def _row(model: BaseModel, view: FieldView, form: Form) -> None:
    key = f"{form.key}:{view.name}"
    value = getattr(model, view.name)
    help_text = f"{view.help}\n\n`{view.name}`" if view.help else f"`{view.name}`"
    with st.container(key=f"field-{view.kind}-{key}", gap=None):
        if view.kind == "integer":
            label, slider, box = st.columns([1.3, 1.05, 0.95], gap="small", vertical_alignment="center")
            with slider:
                _show_slider(model, view, value, form, key)
        else:
            label, box = st.columns([1.3, 2.0], gap="small", vertical_alignment="center")
        with label:
            st.markdown(view.label, help=help_text)
        with box:
            _input(view, value, form, key)
        problem = form.problems.get(view.name)
        if problem is not None:
            chrome.field_error(problem)


def _input(view: FieldView, value: Any, form: Form, key: str) -> None:
    common: dict[str, Any] = {"key": key, "label_visibility": "collapsed"}
    if view.kind == "flag":
        shown = st.session_state.get(key, value)
        st.toggle(view.label, value=value, on_change=_taken, args=(view, form, key, shown), **common)
    elif view.kind == "choice":
        options = (["none"] if view.optional else []) + list(view.choices)
        index = options.index("none" if value is None else value)
        shown = st.session_state.get(key, options[index])
        st.selectbox(
            view.label,
            options,
            index=index,
            format_func=words.setting,
            on_change=_taken,
            args=(view, form, key, shown),
            **common,
        )
    else:
        if key not in st.session_state:
            st.session_state[key] = text_of(value)
        placeholder = "none" if view.optional else ""
        taken = (view, form, key, st.session_state[key])
        st.text_input(view.label, on_change=_taken, args=taken, placeholder=placeholder, **common)


def _taken(view: FieldView, form: Form, key: str, shown: Any) -> None:
    """Take what stands in a widget, together with what could not be taken before.

    What the widget ``shown`` already is no wish: a browser that has not taken the last answer yet sends the values of
    fields that are gone, and Streamlit takes them for new.
    """
    entered = st.session_state[key]
    if entered == shown:
        return
    if view.kind in ("integer", "integers", "number"):
        value = value_of(view, entered)
    elif view.kind == "choice":
        value = None if view.optional and entered == "none" else entered
    else:
        value = entered
    if take(form, {view.name: value}) and view.kind in ("integer", "integers", "number"):
        _normalize(view, value, key)


def take(form: Form, changes: Mapping[str, Any]) -> bool:
    """Apply ``changes`` with the waiting ones; where that fails keep them waiting, and put the message at its field."""
    from planner import PlannerError

    waiting = {**form.typed, **changes}
    form.problems.clear()
    try:
        form.apply(waiting)
    except PlannerError as error:
        form.typed.update(waiting)
        for problem in error.problems:
            # An entry of a row is shown at the row.
            name = problem.path.rsplit(".", 1)[-1].partition("[")[0] if problem.path else next(iter(changes))
            form.problems.setdefault(name, problem)
        return False
    form.typed.clear()
    return True


def _normalize(view: FieldView, value: Any, key: str) -> None:
    """Show an accepted number the way all numbers are shown."""
    if value is None or isinstance(value, tuple):
        st.session_state[key] = text_of(value)
    else:
        number = float(value)
        st.session_state[key] = text_of(int(value) if view.kind == "integer" else number)


def _show_slider(model: BaseModel, view: FieldView, value: Any, form: Form, key: str) -> None:
    steps = stops(model, view)
    if len(steps) < 2:
        return

    def pick(index: Any) -> None:
        if isinstance(index, int) and 0 <= index < len(steps):
            st.session_state[key] = text_of(steps[index])
            take(form, {view.name: steps[index]})

    texts = ["none" if step is None else f"{step:,}" for step in steps]
    place = steps.index(value) if value in steps else 0
    data = {"label": view.label, "texts": texts, "index": place, "ticks": len(steps) <= 12}
    # The slider holds nothing of its own, so it may stay in the browser when the fields are filled afresh.
    _slider.mount(data, f"slide:{form.key.partition(':')[0]}:{view.name}", {"pick": pick})
