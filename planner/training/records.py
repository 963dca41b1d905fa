"""What an estimate of training says: bytes by part, the moments of a step, and the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Any

from planner.quantities import Quantity, largest
from planner.step_time import StepTime

DEVICE_OVERHEAD_BYTES = 512 * 2**20
"""What a process takes on a device beside its allocator: the CUDA context and the libraries' workspaces (0.3 to 0.6 GiB
on current devices). Modelled, and no part of what an allocator reports."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes that an engine sets aside beside the states and what the forward pass keeps."""

    name: str
    bytes: Quantity
    source: str


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive at one moment of a step, in bytes."""

    name: str
    parameters_bytes: Quantity
    gradients_bytes: Quantity
    optimizer_bytes: Quantity
    activations_bytes: Quantity
    communication_bytes: Quantity = 0

    @property
    def total_bytes(self) -> Quantity:
        """All of it: what an allocator reports."""
        return (
            self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.communication_bytes
        )


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on one device. The single fields are whole sizes; ``parts`` is what is alive at the peak.

    Of several pipeline stages it is the one that needs most; ``stage_bytes`` has what each allocates at its peak.
    """

    parameters_bytes: Quantity
    gradients_bytes: Quantity
    optimizer_bytes: Quantity
    activations_bytes: Quantity
    """At the start of the backward pass."""
    communication_bytes: Quantity
    """Of all ``buffers``: those of communication, and what the engine sets aside."""
    overhead_bytes: Quantity
    moments: tuple[Moment, ...]
    buffers: tuple[Buffer, ...] = ()
    pipeline_rank: int = 0
    num_layers: Quantity = 0
    """Layers of the rank."""
    apart_bytes: Quantity = 0
    """Tensors behind the passes that are too large for any block that these leave to a caching allocator."""
    stage_bytes: tuple[Quantity, ...] = ()

    @property
    def allocated_bytes(self) -> Quantity:
        """The largest moment: the peak that an allocator reports."""
        peak = self.moments[0].total_bytes
        for moment in self.moments[1:]:
            peak = largest(peak, moment.total_bytes)
        return peak

    @property
    def reserved_bytes(self) -> Quantity:
        """What a caching allocator takes from the device at least: the peak of the passes, and ``apart_bytes`` beside.
        Nothing is added for blocks that do not fit each other."""
        if isinstance(self.apart_bytes, int) and self.apart_bytes == 0:
            return self.allocated_bytes
        passes: Quantity = 0
        for moment in self.moments[:-1]:
            passes = largest(passes, moment.total_bytes)
        return largest(self.allocated_bytes, passes + self.apart_bytes)

    @property
    def total_bytes(self) -> Quantity:
        """The largest moment and the overhead. The total less the overhead is the peak that an allocator reports."""
        return self.allocated_bytes + self.overhead_bytes

    @property
    def peak(self) -> Moment:
        """The moment at which most is alive."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def parts(self) -> dict[str, int]:
        """What is alive at the peak, by part; the parts sum to the total."""
        peak = self.peak
        return {
            "parameters": peak.parameters_bytes,
            "gradients": peak.gradients_bytes,
            "optimizer": peak.optimizer_bytes,
            "activations": peak.activations_bytes,
            "communication": peak.communication_bytes,
            "overhead": self.overhead_bytes,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a plan, in the order of what it costs."""

    fields: dict[str, Any]
    """Fields of the plan and their new values."""
    cost: str
    """What it costs, in words."""
    alone_bytes: int
    """Memory with this change alone."""
    together_bytes: int
    """Memory with this change and all before it."""
    fits: bool
    """Whether the plan fits with this change and all before it."""


def _no_changes() -> tuple[Change, ...]:
    return ()


@dataclass(frozen=True)
class TrainingEstimate:
    """What a way of training takes."""

    memory: TrainingMemory
    step_seconds: float | None
    tokens_per_second: float | None
    model_flops_utilization: float | None
    time: StepTime
    """The step's time by part, and the profile of efficiencies that was used (:mod:`planner.step_time`)."""
    time_note: str
    status: str = "modelled"
    find_changes: InitVar[Callable[[], tuple[Change, ...]]] = _no_changes

    def __post_init__(self, find_changes: Callable[[], tuple[Change, ...]]) -> None:
        object.__setattr__(self, "_find_changes", find_changes)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What would make it fit its hardware, from the change that costs least; none where it fits. Found when asked
        for, as each is an estimate of its own."""
        found: tuple[Change, ...] = object.__getattribute__(self, "_find_changes")()
        return found
