"""Two sequence mixers side by side: both read the same normed stream, and their outputs are added.

Falcon-H1 (arXiv:2507.22448, section 2) has Mamba-2 beside attention in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from planner.components.base import (
    FUSED,
    BackwardMoment,
    CacheEntry,
    Component,
    Computation,
    Operation,
    SavedTensor,
    Tensor,
    refuse,
)
from planner.components.dependence import PositionSet
from planner.components.narrowing import Scale
from planner.quantities import Quantity

if TYPE_CHECKING:
    from planner.components import SingleMixer

SLOTS = ("first", "second")


def _of_slot(moment: BackwardMoment, slot: str, waiting: tuple[SavedTensor, ...]) -> BackwardMoment:
    """A moment of one of the two, by the names that its tensors have in both, beside what waits for the other."""
    names = {
        kind: tuple(f"{slot}.{name}" for name in getattr(moment, kind)) for kind in ("ready", "fresh", "cast", "copied")
    }
    freed = tuple(f"{name}, {slot}" for name in moment.freed)
    return replace(moment, made=(*moment.made, *waiting), freed=freed, **names)


class ParallelMixers(Component):
    """``first(x) + second(x)``, each multiplied by a factor where it has one; each counts as what it is."""

    component: ClassVar[str] = "parallel_mixers"
    family: ClassVar[str] = "state-space"

    kind: Literal["parallel_mixers"] = "parallel_mixers"
    first: SingleMixer
    second: SingleMixer
    first_multiplier: float | None = Field(default=None, gt=0)
    """Factor on the first mixer's output."""
    second_multiplier: float | None = Field(default=None, gt=0)
    """Factor on the second mixer's output."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for slot in SLOTS:
            if getattr(getattr(self, slot), "shares_key_values", False):
                refuse(
                    f"{slot}.shares_key_values",
                    "Keys and values of an earlier layer are not modelled for one of two mixers in parallel.",
                    "Set shares_key_values to false.",
                    "shared_key_values_in_parallel",
                )
        return self

    def parts(self) -> Iterator[tuple[str, Component]]:
        yield ".first", self.first
        yield ".second", self.second

    def with_parts(self, change: Callable[[Component], Component]) -> Self:
        return self.model_copy(update={slot: change(getattr(self, slot)) for slot in SLOTS})

    def check_under(self, positions: Any) -> None:
        for slot in SLOTS:
            try:
                getattr(self, slot).check_under(positions)
            except PydanticCustomError as error:
                context = dict(error.context or {})
                if str(context["field"]).partition(".")[0] == "positions":
                    raise
                refuse(f"{slot}.{context['field']}", context["message"], context["remedy"], error.type)

    def under(self, positions: str) -> Component:
        return self.with_parts(lambda part: part.under(positions))

    def scaled(self, scale: Scale) -> Self:
        return self.with_parts(lambda part: part.scaled(scale))

    def variety(self) -> str:
        return " + ".join(mixer.kind.replace("_", " ") for mixer in (self.first, self.second))

    def describe(self) -> str:
        return "; ".join(part.describe() for _, part in self.parts())

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        for slot, part in self.parts():
            for tensor in part.tensors(hidden_size):
                yield replace(tensor, name=f"{slot[1:]}.{tensor.name}")

    def buffers(self, hidden_size: Quantity) -> Iterator[Tensor]:
        for slot, part in self.parts():
            for buffer in part.buffers(hidden_size):
                yield replace(buffer, name=f"{slot[1:]}.{buffer.name}")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        for _, part in self.parts():
            yield from part.operations(hidden_size, sequence_length, batch_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        return self.kept(hidden_size, sequence_length, batch_size, FUSED)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        is_listed = False
        for slot, part in self.parts():
            for saved in part.kept(hidden_size, sequence_length, batch_size, how):
                # Both read one tensor, which is cast once for both; some mixers do not keep it.
                if saved.name == "input" and is_listed:
                    continue
                is_listed = is_listed or saved.name == "input"
                yield saved if saved.name == "input" else replace(saved, name=f"{saved.name}, {slot[1:]}")

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """The second mixer's backward pass, and then the first's: autograd takes first what was computed last."""
        stream = batch_size * sequence_length * hidden_size
        waiting = SavedTensor("gradient of the first mixer's output", stream, "copy")
        for moment in self.second.backward_moments(hidden_size, sequence_length, batch_size):
            yield _of_slot(moment, "second", (waiting,))
        done = tuple(
            f"{saved.name}, second"
            for saved in self.second.kept(hidden_size, sequence_length, batch_size, FUSED)
            if saved.name != "input"
        )
        waiting = SavedTensor("gradient of the input, from the second mixer", stream)
        for moment in self.first.backward_moments(hidden_size, sequence_length, batch_size):
            own = _of_slot(moment, "first", (waiting,))
            yield replace(own, freed=(*own.freed, *done), ready=(*own.ready, "second."))

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        for _, part in self.parts():
            yield from part.cache(hidden_size, context_length)

    def reads(self, chosen: PositionSet) -> PositionSet:
        return self.first.reads(chosen) | self.second.reads(chosen)
