"""Where the tokens of one pass stand, and what all layers ask about that."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Places:
    """Positions of the tokens of one pass; what layers make of them is worked out by the first that needs it.

    Rows of a batch may go on from caches of which each has read its own number of positions. ``rows`` are the places of
    each then, and ``start`` is the least of theirs, which is not 0.
    """

    def __init__(self, start: int, length: int, device: torch.device, rows: Sequence[Places] = ()) -> None:
        self.start, self.length, self.device = start, length, device
        self.rows = rows
        self._known: dict[Hashable, Any] = {}

    @cached_property
    def positions(self) -> Tensor:
        """(length,), or (batch, length) where rows have their own."""
        if self.rows:
            return torch.stack([row.positions for row in self.rows])
        return torch.arange(self.start, self.start + self.length, device=self.device)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, kept by a key for the layers that come later in the pass.

        In training each layer makes its own, as it keeps its own for the backward pass and nothing without need.
        """
        if torch.is_grad_enabled():
            return make()
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def places_of_rows(starts: Sequence[int], length: int, device: torch.device) -> Places:
    """Places of rows of ``length`` tokens, each behind so many positions of its own."""
    rows = [Places(start, length, device) for start in starts]
    return Places(min(starts), length, device, rows)
