"""The planner's errors.

::

    ValueError
    └── PlannerError              something the planner was given cannot be used
        ├── InvalidSpec           a specification contradicts itself or lacks a field
        ├── UnsupportedArchitecture   a model configuration that cannot be sized exactly
        └── UnsupportedPlan       a way of running it that is not modelled

Each carries a stable ``code``, the ``path`` of the field it is about and the ``remedy``; ``problems`` lists every
field where there are several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one field."""

    path: str
    """The field, as a person would write it: ``layer_groups[0].layers[1].sequence_mixer.head_dim``."""
    message: str
    remedy: str
    code: str

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{remedy}"


class PlannerError(ValueError):
    """Something the planner was given cannot be used; see ``problems``."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        if not problems:
            raise TypeError("an error needs at least one problem")
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, message: str, *, path: str = "", remedy: str = "", code: str = "") -> PlannerError:
        """An error with one problem."""
        return cls([Problem(path=path, message=message, remedy=remedy, code=code or cls.__name__.lower())])

    @property
    def code(self) -> str:
        """Stable identifier of the first problem."""
        return self.problems[0].code

    @property
    def path(self) -> str:
        """Field of the first problem; empty when it is about the whole."""
        return self.problems[0].path

    @property
    def remedy(self) -> str:
        """What to do about the first problem."""
        return self.problems[0].remedy


class InvalidSpec(PlannerError):
    """A specification contradicts itself, lacks a field or has one that does not exist."""


class UnsupportedArchitecture(PlannerError):
    """A model configuration that cannot be sized to the last parameter, with the fields that stand in the way."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the offending fields."""
        return tuple(problem.path for problem in self.problems if problem.path)


class UnsupportedPlan(PlannerError):
    """A training, serving or job plan that is not modelled."""
