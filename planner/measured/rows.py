"""What a measured run is: a specification, a plan, and what was read from the run."""

from __future__ import annotations

import csv
import datetime
import functools
import pathlib
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from planner.paths import ASSETS
from planner.plans import TrainingPlan
from planner.spec import ArchitectureSpec

MEASURED = ASSETS / "measured"
GIB = 2**30

MemoryKind = Literal["allocated", "reserved", "printed"]
"""``allocated``: the allocator's peak; ``reserved``: what it held; ``printed``: the source does not say which."""


class NotUsed(Exception):
    """Why a row, or one of its readings, is not used."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def skip(reason: str) -> NoReturn:
    """Leave the row out, for a reason that is counted: the same words for the same reason."""
    raise NotUsed(reason)


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """Peak memory of one device."""

    peak_bytes: int
    kind: MemoryKind
    rank: Literal["worst", "last_stage"] = "worst"
    """Which device: Megatron-LM's tests write down that of the last pipeline stage."""
    between_steps_bytes: int | None = None
    """Allocated between two steps, where the source gives it: parameters, gradients and states of the optimizer."""
    beside_bytes: int | None = None
    """What a printed reading has beside the allocator, where the source says it."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One published training run."""

    id: str
    """The file and the line, such as ``training_world.csv:12``."""
    model: str
    """As the source writes it."""
    source: str
    """Repository and path."""
    as_of: str
    license: str
    gpu: str
    """As the source writes it; ``plan.hardware`` is the catalogue's, or ``None`` where it has none."""
    spec: ArchitectureSpec
    plan: TrainingPlan
    memory: MeasuredMemory | None
    step_seconds: float | None
    memory_reason: str | None
    """Why its memory is not used, where it has one."""
    time_reason: str | None
    """Why its time is not used, where it has one."""
    assumed: tuple[str, ...]
    """What the source does not say, and was taken to be."""
    notes: str

    @property
    def devices(self) -> int:
        """Devices of the run."""
        plan = self.plan
        return plan.tensor_parallel * plan.pipeline_parallel * plan.context_parallel * plan.data_parallel

    @property
    def repository(self) -> str:
        """The repository of the source, by which rows are counted."""
        return "/".join(self.source.split("/")[:2])

    @property
    def tokens_per_second_per_device(self) -> float | None:
        """Tokens of the global batch over the step's time and the devices."""
        if self.step_seconds is None or self.plan.global_batch_size is None:
            return None
        return self.plan.global_batch_size * self.plan.sequence_length / self.step_seconds / self.devices

    @property
    def hover(self) -> str:
        """The source and the setting in a few lines."""
        lines = [self.model, f"{self.gpu} × {self.devices}", f"{self.source} ({self.as_of}; {self.license})"]
        lines += [f"assumed: {sentence}" for sentence in self.assumed]
        return "\n".join([*lines, self.notes] if self.notes else lines)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is not used."""

    id: str
    model: str
    source: str
    reason: str
    has_memory: bool
    has_time: bool


Raw = dict[str, str]
"""A line of a file; a field that is empty there is absent here."""


def read_rows(path: pathlib.Path) -> list[tuple[str, Raw]]:
    """The lines of a CSV file, each with its id."""
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [
        (f"{path.name}:{number}", {name: value for name, value in row.items() if value})
        for number, row in enumerate(found, start=2)
    ]


_DAY = re.compile(r"\b(\d{4})-(\d{2})(?:-(\d{2}))?\b|\b([A-Z][a-z]{2}) (\d{4})\b")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_YEAR_ALONE = re.compile(r"(?<![\d.-])(?<![A-Z][a-z]{2} )(20\d\d)\b(?!-)")


def day_of(as_of: str) -> datetime.date | None:
    """The day by which a row was measured: the earliest that its source gives, a month being its first day.

    A file's commit, a page's date and the day that the repository was read all come after the measurement, so that the
    earliest is the nearest. ``None`` where the source gives no more than a year, or an earlier year beside a day.
    """
    found = []
    for year, month, day, name, its_year in _DAY.findall(as_of):
        if year:
            found.append(datetime.date(int(year), int(month), int(day or 1)))
        elif name in _MONTHS:
            found.append(datetime.date(int(its_year), _MONTHS.index(name) + 1, 1))
    years = [int(year) for year in _YEAR_ALONE.findall(as_of)]
    if not found or any(year < min(found).year for year in years):
        return None
    return min(found)


@functools.cache
def read_asset(name: str) -> list[tuple[str, Raw]]:
    """The lines of a file of ``assets/measured``."""
    return read_rows(MEASURED / name)


def whole(raw: Raw, name: str, absent: int = 1) -> int:
    """A whole number of a line; what is absent counts as ``absent``."""
    return int(float(raw[name])) if name in raw else absent
