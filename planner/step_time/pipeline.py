"""Time of a pipeline's step: 1F1B, interleaved, and zero-bubble.

``m`` micro batches go through stages that take ``t_s`` seconds a micro batch, forward and backward together. The
slowest stage works on all of them; before it starts and after it ends, the first micro batch fills the other stages
and the last one drains them. Of p equal stages that is the known ``(m + p − 1) t`` of 1F1B (Narayanan et al. 2021,
arXiv:2104.04473, section 2.2), whose interleaved schedule over ``v`` parts a stage fills and drains in a v-th of it.
The zero-bubble schedule of equal memory (ZB-H1; Qi et al. 2024, arXiv:2401.10241, table 2) leaves
``(p − 1)(F + B − W)``, ``B`` the gradients of the inputs and ``W`` those of the weights, so it fills the gaps with the
latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.quantities import Quantity, largest


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one micro batch on one stage."""

    forward: Quantity
    backward: Quantity
    weight_gradients: Quantity
    """The part of ``backward`` that only gives gradients of weights, which no other stage waits for."""

    @property
    def total(self) -> Quantity:
        """Forward and backward."""
        return self.forward + self.backward


def slowest(stages: Sequence[StageTime]) -> Quantity:
    """The most that a stage takes for a micro batch."""
    found = stages[0].total
    for stage in stages[1:]:
        found = largest(found, stage.total)
    return found


def bubble(stages: Sequence[StageTime], schedule: str, virtual_stages: int = 1) -> Quantity:
    """Seconds of a step in which the slowest stage has nothing to do."""
    filling: Quantity = 0.0
    hidden: Quantity = 0.0
    for stage in stages:
        filling = filling + stage.total
        hidden = hidden + 2 * stage.weight_gradients
    longest = slowest(stages)
    idle = filling - longest
    if schedule == "interleaved":
        return idle / virtual_stages
    if schedule == "zero_bubble":
        # Of the other stages: as many gradients of weights as the schedule delays, in the equal case (p − 1) 2 W.
        return largest(0.0 * idle, idle - hidden * (len(stages) - 1) / len(stages))
    return idle


def step(stages: Sequence[StageTime], micro_batches: int, schedule: str, virtual_stages: int = 1) -> Quantity:
    """Seconds of all micro batches of a step, without what data-parallel ranks exchange."""
    return micro_batches * slowest(stages) + bubble(stages, schedule, virtual_stages)
