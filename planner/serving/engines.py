"""What engines reach of a device's promised rates, and what they add (``assets/serving-efficiencies.yaml``).

A profile is of an engine on devices with one kind of memory. It has a handful of numbers, each with the interval in
which calibration left it; none belongs to a model or a run. ``python -m scripts.calibrate_serving`` finds them on half
of the measured rows and holds them against the other half.
"""

from __future__ import annotations

import functools
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from planner.hardware import Device
from planner.paths import ASSETS

MemoryKind = Literal["hbm", "amd_hbm", "gddr", "unified", "apple"]
"""``hbm``: stacked, beside the processor; ``gddr``: chips on the board; ``unified``: shared with a CPU. AMD's stacked
memory and Apple's shared one stand for themselves, since other kernels are written for them."""


class Term(BaseModel):
    """One number, and between which values calibration would have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(ge=0)
    low: float = Field(ge=0)
    high: float = Field(ge=0)


class LeftOut(BaseModel):
    """How far rows are from what the other rows of their profile give."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """A source; of a profile with one source a device, and of one with one device a model."""
    readings: int
    median: float
    """Of the errors' sizes, as a share."""
    signed: float
    """Of the errors with their signs."""


class EngineTerms(BaseModel):
    """Shares of promised rates, and seconds that are added."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    memory_kind: MemoryKind
    memory: Term
    """Share of the memory's bandwidth at which weights are read that are multiplied as they are kept."""
    memory_packed: Term
    """The same of weights that are unpacked to 16 bits on the way."""
    cache: Term
    """Share of the memory's bandwidth at which keys, values and states are read and activations move."""
    arithmetic: Term
    """Share of the dense peak of matrix multiplications over many tokens."""
    attention: Term
    """Share of the dense peak of attention over a prompt."""
    network: Term
    """Share of a link's rate."""
    overlap: Term
    """Share of an operator's shorter part, arithmetic or reading, that its longer one hides: 1 is a roofline, 0 one
    after the other."""
    launch_seconds: Term
    """Of each mixer, beside its work: the chain of its kernels, their starts and tails, and what is elementwise."""
    host_seconds: Term
    """Of each operator, on the host, where Python starts the kernels one by one while the device works; a pass takes
    whichever of the two is longer."""
    pass_seconds: Term
    """Of each pass, on the host while the device waits: what is left of scheduling and sampling where they overlap."""
    between_seconds: Term
    """Of each pass beside that, where they do not: a plan's ``engine_overhead`` of ``between_passes``."""
    latency_seconds: Term
    """Of each exchange between devices."""
    relative_interval: tuple[float, float]
    """Measured over predicted time: the 10th and the 90th percentile over the rows that were held out."""
    left_out: tuple[LeftOut, ...]
    calibrated_on: str

    @property
    def memory_text(self) -> str:
        """The kind of memory in words."""
        return {"amd_hbm": "AMD's hbm", "apple": "Apple's unified"}.get(self.memory_kind, self.memory_kind)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    hbm: tuple[str, ...]
    profiles: tuple[EngineTerms, ...]


@functools.cache
def _file() -> _File:
    return _File.model_validate(yaml.safe_load((ASSETS / "serving-efficiencies.yaml").read_text(encoding="utf-8")))


def memory_kind(device: Device) -> MemoryKind:
    """The kind of a device's memory."""
    if device.id in _file().hbm or device.kind == "tpu":
        return "amd_hbm" if device.vendor == "AMD" else "hbm"
    if device.kind in ("unified", "cpu"):
        return "apple" if device.vendor == "Apple" else "unified"
    return "gddr"


def engine_profiles() -> tuple[EngineTerms, ...]:
    """All profiles."""
    return _file().profiles


def profile_of(engine: str, device: Device) -> EngineTerms:
    """The profile of an engine on a device; where that kind of memory was not measured, the engine's first one."""
    own = [profile for profile in engine_profiles() if profile.engine == engine]
    return next((profile for profile in own if profile.memory_kind == memory_kind(device)), own[0])
