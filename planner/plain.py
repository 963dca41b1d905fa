"""Plain data from files and forms, looked through before anything reads it: how much, how deep, and what for words.

Whatever is wrong is one refusal, said at once: data as large as a disk, nested without end, or made of aliases that
unfold to billions of entries must neither fill the memory nor exhaust the stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from planner.errors import PlannerError

MOST_ENTRIES = 100_000
"""Entries of mappings and lists in all, an aliased one as often as it is named. A stack of 10,000 layers has fewer."""
DEEPEST = 40
"""Mappings and lists inside each other. A specification has eight levels, a configuration about five."""
LONGEST_NAME = 200
LARGEST_NUMBER = 1e300
"""Whole numbers of any length can be written; beyond this one no float holds them."""


def check_plain(data: object, error: type[PlannerError], finite: bool = True) -> None:
    """Raise ``error`` where data is too much, too deep, or has names that are no words or numbers that are none.

    Infinity is a number only where not all must be ``finite``: published configurations of Mamba-2 have it.
    """
    entries = 0
    waiting: list[tuple[str, int, Iterator[tuple[object, object]]]] = [("", 0, iter(((None, data),)))]
    while waiting:
        path, depth, items = waiting[-1]
        found = next(items, None)
        if found is None:
            waiting.pop()
            continue
        key, value = found
        entries += 1
        if entries > MOST_ENTRIES:
            raise error.of(
                f"There are more than {MOST_ENTRIES:,} entries, more than any model has.",
                path=path,
                remedy="Name another file.",
                code="too_many_entries",
            )
        here = _joined(path, key, error)
        if isinstance(value, (Mapping, list, tuple)):
            if depth >= DEEPEST:
                raise error.of(
                    f"Entries are nested more than {DEEPEST} deep.",
                    path=here,
                    remedy="Name another file, or flatten this entry.",
                    code="nested_too_deep",
                )
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting.append((here, depth + 1, iter(inner)))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, int):
                if abs(value) > LARGEST_NUMBER:
                    raise error.of(
                        "The number is too large.", path=here, remedy="Write a smaller one.", code="too_large"
                    )
            elif math.isnan(value) or (finite and math.isinf(value)):
                raise error.of("This is no number.", path=here, remedy="Write a number.", code="not_a_number")


def _joined(path: str, key: object, error: type[PlannerError]) -> str:
    """The path of an entry of the mapping or list at ``path``."""
    if key is None and not path:
        return ""
    if isinstance(key, int) and not isinstance(key, bool):  # a place in a list, or a label's number
        return f"{path}[{key}]" if path else f"[{key}]"
    if not isinstance(key, str) or len(key) > LONGEST_NAME:
        raise error.of(
            "A field's name is a word of at most 200 characters.",
            path=path,
            remedy="Write it in quotes, or remove it.",
            code="not_a_name",
        )
    return f"{path}.{key}" if path else key
