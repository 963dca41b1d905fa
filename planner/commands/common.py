"""What commands share: reading a SPEC and settings of a plan, and writing tables and data."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from planner.components.strict import LARGEST_SIZE
from planner.errors import PlannerError
from planner.plans import Plan, parse_plan
from planner.presets import Loaded, read, read_stream, read_yaml
from planner.spec import LEFT_OUT, ArchitectureSpec, LearnedPositions
from planner.units import bytes_text

Rows = list[tuple[str, ...]]
PlanType = TypeVar("PlanType", bound=Plan)


def read_spec(spec: str) -> Loaded:
    """What a SPEC names."""
    return _standard_input() if spec == "-" else read(spec)


@functools.cache
def _standard_input() -> Loaded:
    """Read once, however often it is named."""
    return read_stream(sys.stdin.buffer, "Standard input")


def plan_from(plan_class: type[PlanType], settings: Sequence[str]) -> PlanType:
    data: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise PlannerError.of(
                f"{setting!r} sets nothing.", path="--set", remedy="Write KEY=VALUE.", code="bad_setting"
            )
        try:
            data[key] = read_yaml(value)
        except yaml.YAMLError as error:
            raise PlannerError.of(
                f"{value!r} is no value.", path=f"--set {key}", remedy="Quote it.", code="bad_setting"
            ) from error
    return parse_plan(plan_class, data)


def check_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise PlannerError.of(
                f"{getattr(options, name)} is no length or batch.",
                path=f"--{name.replace('_', '-')}",
                remedy="Choose a value above 0.",
                code="not_positive",
            )
        if getattr(options, name) > LARGEST_SIZE:
            raise PlannerError.of(
                "That is more than any length or batch.",
                path=f"--{name.replace('_', '-')}",
                remedy=f"Choose a value up to {LARGEST_SIZE:,}.",
                code="too_large",
            )


def plain_data(value: Any) -> Any:
    """Data that JSON can hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value)


def table(rows: Rows) -> str:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def say_left_out(loaded: Loaded) -> dict[str, Any]:
    """Say on stderr what the source has beside the specification; the same as data, where there is anything."""
    for sentence in loaded.left_out:
        print(f"{loaded.spec.name}: {sentence}", file=sys.stderr)
    return {LEFT_OUT: list(loaded.left_out)} if loaded.left_out else {}


def say_too_long(spec: ArchitectureSpec, length: int) -> None:
    """Say on stderr where a sequence is longer than the model's learned positions let it be."""
    if isinstance(spec.positions, LearnedPositions) and length > spec.positions.num_positions:
        most = spec.positions.num_positions
        print(f"{spec.name}: its learned positions end at {most:,}, so no sequence has {length:,}.", file=sys.stderr)


def rows_of_parts(parts: dict[str, int]) -> Rows:
    rows: Rows = [(name, bytes_text(held), f"{held:,} bytes") for name, held in parts.items()]
    total = sum(parts.values())
    return [*rows, ("total", bytes_text(total), f"{total:,} bytes")]
