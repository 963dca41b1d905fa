"""What a page shows, read back from Streamlit's test harness: key numbers, figures, HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from streamlit.testing.v1 import AppTest


def elements(app: AppTest, kind: str) -> Iterator[Any]:
    """The elements of one kind, in their order, wherever they stand."""

    def walk(block: Any) -> Iterator[Any]:
        for child in block.children.values():
            if hasattr(child, "children"):
                yield from walk(child)
            elif child.type == kind:
                yield child

    return walk(app._tree)


def shown(app: AppTest) -> str:
    """All HTML of the page, joined."""
    return " ".join(element.proto.body for element in elements(app, "html"))


def key_numbers(app: AppTest) -> dict[str, dict[str, Any]]:
    """The row of key numbers by quantity."""
    for element in elements(app, "bidi_component"):
        if element.proto.component_name == "plumbline_key_numbers":
            return {number["quantity"]: number for number in json.loads(element.proto.json)["numbers"]}
    raise AssertionError("the page has no key numbers")


def charts(app: AppTest) -> dict[str, dict[str, Any]]:
    """The page's Plotly figures by the key that each was given."""
    found = {}
    for element in elements(app, "plotly_chart"):
        _, _, key = element.proto.id.removeprefix("$$ID-").partition("-")
        found[key] = json.loads(element.proto.spec)
    return found


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    """The curve of a figure that is called ``name``."""
    return next(each for each in figure["data"] if each.get("name") == name)


def query(app: AppTest) -> dict[str, str]:
    """The address's parameters as plain text."""
    return {name: values[0] if isinstance(values, list) else values for name, values in dict(app.query_params).items()}
