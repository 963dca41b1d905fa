"""Numbers that a decision may rest on: read from a revision by the planner, or from a stored result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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


NAMED_BY = ("name", "placement", "stage", "layer", "kernel", "label", "depth", "context")
"""What tells the entries of a list apart, in the order in which it is looked for."""
LEFT_OUT = frozenset({"spec", "rules", "calibration", "cells", "sizes", "blocks", "data"})
"""Parts of a result that were not measured: what it was given, and what a picture is made of."""


def of_result(result: Result) -> list[Number]:
    """The measured numbers of a result, nested ones by their path; each has a name of its own."""
    found, seen = [], Counter[str]()
    for number in _numbers(result.values):
        seen[number.quantity] += 1
        times = seen[number.quantity]
        found.append(number if times == 1 else replace(number, quantity=f"{number.quantity} ({times})"))
    return found


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterator[Number]:
    for name, value in values.items():
        where = f"{path} {name}".strip().replace("_", " ")
        if isinstance(value, bool) or name in LEFT_OUT or name.startswith("predicted"):
            continue
        if isinstance(value, (int, float)):
            yield Number(where, value, _unit_of(name))
        elif isinstance(value, Mapping):
            yield from _numbers(value, where)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                if isinstance(entry, Mapping):
                    yield from _of_entry(entry, path)


def _of_entry(entry: Mapping[str, Any], path: str) -> Iterator[Number]:
    """The numbers of one entry of a list: a row's measurement, or all that it says, under what it is called."""
    if "quantity" in entry:
        if isinstance(entry.get("measured"), (int, float)):
            about = f", {entry['label']}" if entry.get("label") else ""
            yield Number(f"measured {entry['quantity']}{about}", entry["measured"], entry.get("unit", ""))
        return
    key = next((name for name in NAMED_BY if name in entry), None)
    if key is None:
        return
    called = [f"{key} {entry[key]}" if isinstance(entry[key], int) else str(entry[key])]
    if key == "kernel":  # one is compiled for several types and sizes
        called += [str(entry[name]) for name in ("function", "dtype", "architecture") if name in entry]
        called += [f"{name} {size}" for name, size in entry.get("sizes", {}).items()]
    rest = {name: value for name, value in entry.items() if name != key}
    yield from _numbers(rest, " ".join((path, *called)).strip())


def _unit_of(name: str) -> str:
    for ending, unit in (("_bytes", "bytes"), ("_seconds", "seconds"), ("per_byte", "bits"), ("_per_second", "per s")):
        if name.endswith(ending) or name == ending.removeprefix("_"):
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
