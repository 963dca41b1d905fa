"""What a job says while it runs: small records, each one line of JSON on the way from the job's process to its worker.

A leaf: standard library alone, so that the web process may import it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` in ``unit``; ``seconds_left`` is the job's own estimate."""

    done: int
    total: int
    unit: str
    message: str = ""
    seconds_left: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A value of a named series. The same name and step said again replaces the value."""

    name: str
    step: int
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Log:
    """A line for people. ``level`` is ``info``, ``warning`` or ``error``."""

    message: str
    level: str = "info"


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """A file that the job left, with its path inside the job's directory."""

    name: str
    path: str
    media_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What the job found. A job has one result of a kind; the first stands."""

    kind: str
    values: Mapping[str, Any]
    environment: Mapping[str, Any]


Event = Progress | Metric | Log | Artifact | Result
_CLASSES: dict[str, type[Event]] = {cls.__name__.lower(): cls for cls in (Progress, Metric, Log, Artifact, Result)}


def to_json(event: Event) -> str:
    """One line of JSON."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    return json.dumps({"event": type(event).__name__.lower(), **fields}, separators=(",", ":"))


def from_json(line: str) -> Event:
    """The event of a line that ``to_json`` wrote; ``ValueError`` for any other."""
    try:
        data = json.loads(line)
        event_class = _CLASSES[data.pop("event")]
        return event_class(**data)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an event: {line[:200]}") from error
