"""What modules of one model share: how wide the stream is, how positions are encoded, which kernels compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.components import Norm

Kernels = Literal["auto", "reference", "eager", "triton"]


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Given to every module at its construction."""

    hidden_size: int
    norm: Norm
    rope_theta: float | None
    """Base of the rotary frequencies; ``None`` where positions are not rotary."""
    kernels: Kernels
