"""Peak memory of a call that really runs: what PyTorch's allocator handed out at the most, beyond what was held before.

On a CUDA device the allocator keeps the figure itself. On a CPU every allocation and release is read from the
profiler's record, scratch space of PyTorch's own kernels included; what a library such as oneDNN takes for itself from
the system is not in it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

ALLOCATION = "[memory]"
"""The profiler's name of an allocation (bytes above zero) or a release (below)."""


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes at the peak of ``call``, less those that were allocated before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == ALLOCATION]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
