"""What the tokens of a prototype are called: bytes of UTF-8, or the symbols of a task."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass

from planner.errors import UnsupportedPlan
from planner.tasks import TASKS, TaskName

MOST_NAMED = 12
"""Symbols that an error lists before it breaks off."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of one model. Two of the same ``name`` have the same tokens."""

    name: str
    what: str
    """In words, for people who type a prompt."""
    labels: tuple[str, ...]
    """What each token is shown as, by its id; no two are the same."""
    separator: str
    """What stands between two tokens in a text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text's tokens; ``UnsupportedPlan`` with the path ``prompt`` where there are none, or none such."""
        if not self.separator:
            found = list(text.encode("utf-8", "replace"))
        else:
            ids = {label: index for index, label in enumerate(self.labels)}
            words = text.split()
            unknown = [word for word in words if word not in ids]
            if unknown:
                some = " ".join(self.labels[:MOST_NAMED])
                raise UnsupportedPlan.of(
                    f"There is no symbol {unknown[0]!r}.",
                    path="prompt",
                    remedy=f"The {len(self.labels)} symbols are {some}{' …' if len(ids) > MOST_NAMED else ''}, with "
                    "spaces between them.",
                    code="unknown_symbol",
                )
            found = [ids[word] for word in words]
        if not found:
            raise UnsupportedPlan.of(
                "There is no prompt.", path="prompt", remedy="Type at least one token.", code="no_prompt"
            )
        return found

    def pieces(self) -> Callable[[int], str]:
        """A function that gives the text that each token adds to those before it, one after the other.

        A byte that does not end its character adds nothing yet; one that can be part of none adds U+FFFD.
        """
        if self.separator:
            return lambda token: self.separator + self.labels[token]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: decoder.decode(bytes([token]))


def _byte_label(value: int) -> str:
    match chr(value):
        case "\n":
            return "\\n"
        case "\t":
            return "\\t"
        case " ":
            return "space"
        case character if value < 128 and character.isprintable():
            return character
    return f"\\x{value:02x}"


BYTES = Vocabulary("bytes", "text, read as bytes of UTF-8", tuple(_byte_label(value) for value in range(256)), "")


def vocabulary(task: TaskName | None, difficulty: int) -> Vocabulary:
    """The tokens of a prototype that was trained on text (no task), or on a task at a difficulty."""
    if task is None:
        return BYTES
    words = task.replace("_", " ")
    return Vocabulary(
        f"{task} {difficulty}", f"symbols of {words}, with spaces between them", TASKS[task].symbols(difficulty), " "
    )
