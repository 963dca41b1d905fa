"""What a job is: a function from a specification and a plan to a stream of events.

A job touches no database. It keeps what it needs to go on after an interruption in its own directory.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

ATTEMPT_FILE = "attempt"


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

    def take_directory(self) -> None:
        """Say in the directory whose attempt it now is: an earlier one that still runs somewhere writes no more."""
        temporary = self.directory / f"{ATTEMPT_FILE}.{self.attempt}"
        temporary.write_text(str(self.attempt))
        temporary.replace(self.directory / ATTEMPT_FILE)

    def holds_directory(self) -> bool:
        """Whether no later attempt has taken the directory."""
        try:
            return int((self.directory / ATTEMPT_FILE).read_text()) <= self.attempt
        except (FileNotFoundError, ValueError):
            return True  # a job run by hand takes none
