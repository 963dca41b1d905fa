"""Whether a job's work fits the memory that is free, before it is begun."""

from __future__ import annotations

import psutil
import torch

from runners.jobs.base import JobFailure

USABLE_SHARE = 0.9
"""Share of the free memory that an estimate may fill."""


def free_bytes(device: str) -> int:
    """Free memory of the device, or of the machine."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


def refuse_what_does_not_fit(needed_bytes: float, device: str, field: str, remedy: str) -> None:
    """Raise ``JobFailure`` at a field of the plan where so much is not free."""
    free = free_bytes(device)
    if needed_bytes > USABLE_SHARE * free:
        raise JobFailure(
            f"{field}: this needs about {needed_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; {remedy}"
        )
