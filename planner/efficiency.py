"""Which share of the promised rates training reaches on a kind of device (``assets/efficiencies.yaml``).

A profile has a handful of numbers, each with the interval in which runs were seen, and says which runs it was
calibrated on: no number belongs to a model or a run. ``python -m scripts.calibrate`` finds them.
"""

from __future__ import annotations

import functools
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from planner.paths import ASSETS

Share = Literal["matmul", "matmul_fp8", "matmul_fp4", "attention", "scan", "memory", "links", "network", "overlap"]
SHARES: tuple[Share, ...] = (
    "matmul",
    "matmul_fp8",
    "matmul_fp4",
    "attention",
    "scan",
    "memory",
    "links",
    "network",
    "overlap",
)


class Efficiency(BaseModel):
    """One share of a promised rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(gt=0, le=1)
    low: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)


class Profile(BaseModel):
    """What a kind of device reaches of its peak arithmetic, memory bandwidth and links."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    family: str
    """Whose profiles are drawn to each other."""
    devices: tuple[str, ...]
    """The catalogue's ids that it was measured on."""
    borrowed_by: tuple[str, ...]
    """Relatives of which no run was measured."""
    matmul: Efficiency
    """Of the peak of bf16, matrix multiplications within a model if they were infinitely large."""
    matmul_fp8: Efficiency | None = None
    """Of the peak of fp8; what is cast for it is counted apart, as memory traffic. Absent: the device has none."""
    matmul_fp4: Efficiency | None = None
    """The same of fp4."""
    attention: Efficiency
    """Of the peak of bf16, a fused attention kernel over long sequences."""
    scan: Efficiency
    """Of the peak of bf16, what passes states from token to token."""
    memory: Efficiency
    """Of the memory's bandwidth."""
    links: Efficiency
    """Of the rate of the links within a node."""
    network: Efficiency
    """Of the rate of the network between nodes."""
    overlap: Efficiency
    """The share of what could run beside other work that does: gradients' exchange beside the backward pass."""
    launch_seconds: float = Field(gt=0)
    """What a kernel takes beside its work: its start, and the gap to the next one."""
    latency_seconds: float = Field(gt=0)
    """Of one step of a collective."""
    relative_interval: tuple[float, float]
    """Measured over predicted time, the 10th and 90th percentile over the rows that it was held against."""
    borrowed_interval: tuple[float, float]
    """The same of nineteen in twenty rows whose source or device was left out, for a device that borrows."""
    calibrated_on: str
    """The rows that the numbers were found on."""
    borrowed: bool = False
    """Whether it is used for a device that it was not measured on."""


@functools.cache
def profiles() -> dict[str, Profile]:
    """All profiles by id."""
    rows = yaml.safe_load((ASSETS / "efficiencies.yaml").read_text(encoding="utf-8"))
    return {identifier: Profile.model_validate({"id": identifier, **row}) for identifier, row in rows.items()}


@functools.cache
def profile_of(device: str) -> Profile | None:
    """The profile of a device by its id, or that which it borrows of a relative; ``None`` where it has none."""
    for profile in profiles().values():
        if device in profile.devices:
            return profile
        if device in profile.borrowed_by:
            return profile.model_copy(update={"relative_interval": profile.borrowed_interval, "borrowed": True})
    return None
