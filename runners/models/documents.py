"""Several documents in one sequence, each of which is read as if it stood alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planner.components.patterns import MaskPattern
from runners.models.rotary import Rotation


@dataclass(frozen=True, slots=True)
class Documents:
    """Which document each position belongs to, and its place in that document; (batch, positions) each."""

    numbers: Tensor
    positions: Tensor

    def sees(self, pattern: MaskPattern) -> Tensor:
        """Which keys each query sees, (batch, 1, queries, keys) of bool: by the mask of its own document, and there."""
        queries, keys = self.positions[:, None, :, None], self.positions[:, None, None, :]
        seen: Tensor = pattern.sees(queries, keys)
        return seen & (self.numbers[:, None, :, None] == self.numbers[:, None, None, :])


def check_documents(rotation: Rotation | None) -> None:
    """Refuse rotations that tell documents apart by where they stand.

    Rotated keys are told from queries by the distance alone, which is the same wherever a document stands; not so where
    the frequencies follow from the length of the whole.
    """
    if rotation is not None and rotation.changes_beyond is not None:
        raise ValueError("the rotary scaling depends on the length of the sequence: leave document_ids out")


def documents_of(document_ids: Tensor) -> Documents:
    """The documents of ids (batch, positions): one goes on as long as its id does."""
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    places = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    first = torch.where(begins, places, 0).cummax(1).values
    return Documents(begins.cumsum(1), places - first)
