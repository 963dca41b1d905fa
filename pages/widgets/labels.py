"""Labels of choices. Streamlit tells options apart by what they are called, so two of one name need a difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def distinct(labels: Mapping[Key, str]) -> dict[Key, str]:
    """The labels, with the key behind those that occur more than once.

    >>> distinct({1: "Baseline", 2: "Baseline", 3: "GQA"})
    {1: 'Baseline (#1)', 2: 'Baseline (#2)', 3: 'GQA'}
    """
    counts = Counter(labels.values())
    return {key: f"{label} (#{key})" if counts[label] > 1 else label for key, label in labels.items()}
