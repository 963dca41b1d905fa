"""What modules of one model share: how wide the stream is, how positions are encoded, which kernels compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.components import Norm
from planner.components.base import CacheEntry
from planner.components.rotary import RotaryScaling
from planner.spec import AlibiPositions
from runners.kernels.choice import Kernels as Kernels


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Given to every module at its construction."""

    hidden_size: int
    norm: Norm
    rope_theta: float | None
    """Base of the rotary frequencies; ``None`` where positions are not rotary."""
    kernels: Kernels
    alibi: AlibiPositions | None = None
    """How scores fall with the distance, if they do."""
    rope_scaling: RotaryScaling | None = None
    """How the rotary frequencies are stretched."""
    layer: int = 0
    """Index of the layer that is built."""
    num_layers: int = 1


def empty_cache(
    entries: Iterable[CacheEntry], batch_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Zeros of the shapes that the planner counts for what a component keeps, one sequence after the other."""
    return tuple(torch.zeros(batch_size, *entry.shape, device=device, dtype=dtype) for entry in entries)


def in_compute_type(x: Tensor) -> Tensor:
    """``x`` in the type that autocast multiplies in, unchanged where autocast is off.

    Autocast would cast the input of each projection anew, and autograd would keep every copy; a module casts once.
    """
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def plain_will_do(kernels: Kernels) -> bool:
    """Whether a formula may be computed as it stands: for the truth, and where no backward pass follows.

    The functions that keep less for the backward pass take longer to call than many of a single token's operations.
    """
    return kernels == "reference" or not torch.is_grad_enabled()
