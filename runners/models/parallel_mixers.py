"""Two sequence mixers side by side, the twin of :mod:`planner.components.parallel_mixers`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

import planner.components as components
from planner.components.parallel_mixers import SLOTS
from runners.models.context import BuildContext, in_compute_type
from runners.models.places import Places


class ParallelCache:
    """What each of the mixers keeps."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return tuple(tensor for entry in self.entries.values() for tensor in entry.tensors)


class ParallelMixers(nn.Module):
    """The sum of two mixers' outputs over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.ParallelMixers, context: BuildContext) -> None:
        from runners.models.decoder import twin

        super().__init__()
        self.component = component
        self.first = twin(component.first, context)
        self.second = twin(component.second, context)
        self.reads_places = frozenset(
            slot for slot in SLOTS if "places" in inspect.signature(self.get_submodule(slot).forward).parameters
        )

    def new_cache(
        self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype
    ) -> ParallelCache:
        """Empty caches of both."""
        mixers: dict[str, Any] = {slot: self.get_submodule(slot) for slot in SLOTS}
        return ParallelCache(
            {
                slot: mixer.new_cache(batch_size, context_length, device, dtype)
                for slot, mixer in mixers.items()
                if hasattr(mixer, "new_cache")
            }
        )

    def forward(
        self, x: Tensor, cache: ParallelCache | None = None, start: int = 0, places: Places | None = None
    ) -> Tensor:
        x = in_compute_type(x)  # once for both
        mixed: list[Tensor] = []
        for slot in SLOTS:
            mixer = self.get_submodule(slot)
            own = cache.entries.get(slot) if cache is not None else None
            handed = {"places": places} if slot in self.reads_places else {}
            output = mixer(x, own, start, **handed) if hasattr(mixer, "new_cache") else mixer(x, **handed)
            factor = getattr(self.component, f"{slot}_multiplier")
            mixed.append(output if factor is None else output * factor)
        return mixed[0] + mixed[1]
