"""What a job is: a function from a specification and a plan to a stream of events.

A job touches no database. It keeps what it needs to go on after an interruption in its own directory.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass


class JobFailure(Exception):
    """A job cannot go on, for a reason that its user can act on; the text is what they are shown."""


@dataclass(frozen=True, slots=True)
class JobContext:
    """Where a job runs."""

    directory: pathlib.Path
    """The job's own; checkpoints and artifacts live here, and the next attempt finds them."""
    attempt: int = 1

    @property
    def resume(self) -> bool:
        """Whether an earlier attempt may have left a checkpoint."""
        return self.attempt > 1
