"""Data that means what it says: true is no number, text is no number, and a size is one that a model could have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

LARGEST_SIZE = 2**31 - 1
"""No published extent or count comes near; beyond it a slip of the keyboard is likelier than a model."""


def numbers_in(schema: Any) -> Iterator[dict[str, Any]]:
    """The parts of a pydantic schema that are numbers or flags, wherever they stand."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            yield schema
        for inner in schema.values():
            yield from numbers_in(inner)
    elif isinstance(schema, (list, tuple)):
        for inner in schema:
            yield from numbers_in(inner)


def bound_whole_numbers(schema: Any) -> None:
    """Let the schema's whole numbers be no larger than a size, where they have no bound of their own."""
    for part in numbers_in(schema):
        if part["type"] == "int":
            part.setdefault("le", LARGEST_SIZE)


def _make_strict(schema: Any) -> None:
    """Let the schema's numbers and flags accept nothing but such, sizes with a bound, and no infinity."""
    bound_whole_numbers(schema)
    for part in numbers_in(schema):
        part["strict"] = True
        if part["type"] == "float":
            part["allow_inf_nan"] = False


class Strict(BaseModel):
    """A part of a specification: no unknown fields, nothing read into values that they are not, no change.

    Pydantic's own strict mode would refuse lists for tuples as well, so numbers and flags alone are made strict. A
    whole number stands for a fraction, as in ``theta: 10000``; a fraction for a whole number never does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_strict(schema)
        return schema
