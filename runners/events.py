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
class Token:
    """A token of a text that is being written. The same text and position said again replaces it."""

    text: int
    """Which of the texts side by side."""
    position: int
    """From 0, the first token after the prompt."""
    token: int
    piece: str
    """What it adds to the text; empty while the bytes of a character are not all there."""
    label: str
    """What the token itself is called."""
    probability: float
    """Under the model itself."""
    sampling_probability: float
    """In the distribution that it was drawn from."""
    alternatives: list[list[Any]]
    """The likeliest tokens, each with its label and its probability under the model itself, likeliest first."""
    is_proposed: bool | None
    """Whether a draft had proposed it; ``None`` where there is no draft."""
    log_probability: float
    """Of the text so far, in nats: the sum over its tokens."""
    tokens_per_second: float
    """Of the text so far, the reading of the prompt included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What the job found. A job has one result of a kind; the first stands."""

    kind: str
    values: Mapping[str, Any]
    environment: Mapping[str, Any]


Event = Progress | Metric | Log | Artifact | Token | Result
_CLASSES: dict[str, type[Event]] = {
    cls.__name__.lower(): cls for cls in (Progress, Metric, Log, Artifact, Token, Result)
}


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
