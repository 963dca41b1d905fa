"""Numbers that a decision may rest on: read from a revision by the planner, or from a stored result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pages.widgets import job_view
from planner import cache_bytes, flops, parse_spec, size

if TYPE_CHECKING:
    from db.engine import Store
    from db.records import Evidence, Result, Revision

CONTEXT = 32_768
LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Number:
    """A quantity with its value now."""

    quantity: str
    value: int | float
    unit: str


def of_revision(revision: Revision) -> list[Number]:
    """The predicted numbers of a revision that a decision may cite."""
    spec = parse_spec(dict(revision.spec))
    parameters = size(spec).parameters
    return [
        Number("parameters", parameters.total, "parameters"),
        Number("active parameters", parameters.active, "parameters"),
        Number(f"cache at {CONTEXT:,} tokens, bf16", cache_bytes(spec, CONTEXT), "bytes"),
        Number(f"forward FLOPs of {LENGTH:,} tokens", flops(spec, LENGTH).total, "FLOP"),
    ]


def of_result(result: Result) -> list[Number]:
    """The measured numbers of a result, nested ones by their path."""
    return list(_numbers(result.values))


def _numbers(values: Mapping[str, Any], path: str = "") -> Any:
    for name, value in values.items():
        where = f"{path} {name}".strip().replace("_", " ")
        if isinstance(value, bool):
            continue
        if isinstance(value, (int, float)):
            yield Number(where, value, _unit_of(name))
        elif isinstance(value, Mapping):
            yield from _numbers(value, where)
        elif name == "rows" and isinstance(value, (list, tuple)):
            for row in value:
                if isinstance(row.get("measured"), (int, float)):
                    yield Number(f"measured {row['quantity']}", row["measured"], row.get("unit", ""))


def _unit_of(name: str) -> str:
    for ending, unit in (("_bytes", "bytes"), ("_seconds", "seconds"), ("per_byte", "bits"), ("_per_second", "per s")):
        if name.endswith(ending):
            return unit
    return "FLOP" if "flops" in name else "parameters" if name == "parameters" else ""


def today(store: Store, item: Evidence) -> int | float | None:
    """The value that the cited quantity has now, or ``None`` where it is not there any more."""
    if item.kind == "revision":
        numbers = of_revision(store.designs.revision(item.reference_id))
    else:
        numbers = of_result(store.results.get(item.reference_id))
    return next((number.value for number in numbers if number.quantity == item.quantity), None)


def text(value: int | float | None, unit: str) -> str:
    """A value with its unit, for people."""
    return job_view.quantity_text(value, unit)
