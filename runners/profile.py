"""Measures this machine once: how fast it multiplies matrices in each type, and how fast it reads memory.

The profile is a file in the data directory that the planner reads; it is measured anew when torch changes.
"""

from __future__ import annotations

import datetime
import os
import time

import psutil
import torch

from planner.hardware import MachineProfile, machine_profile, profile_path
from runners.environment import default_device, processor_name

SIZE = 1024
SECONDS_EACH = 0.6


def _best_seconds(run: object, device: str) -> float:
    """The least time of one call over a short while."""
    assert callable(run)
    best = float("inf")
    deadline = time.perf_counter() + SECONDS_EACH
    run()
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


@torch.no_grad()
def measure() -> MachineProfile:
    """A profile of the device that jobs run on, in a few seconds."""
    device = default_device()
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * SIZE**3 / _best_seconds(lambda a=left, b=right: a @ b, device)
    buffer = torch.zeros(64 * 2**20, dtype=torch.uint8, device=device)
    copied = torch.empty_like(buffer)
    bandwidth = 2 * buffer.numel() / _best_seconds(lambda: copied.copy_(buffer), device)
    memory = psutil.virtual_memory()
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
    else:
        free, total = memory.available, memory.total
    return MachineProfile(
        device_name=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        kind="gpu" if device == "cuda" else "cpu",
        memory_bytes=total,
        usable_memory_bytes=free,
        matmul_flops_per_second=rates,
        memory_bandwidth_bytes_per_second=bandwidth,
        threads=torch.get_num_threads(),
        versions={"torch": torch.__version__},
        measured_at=datetime.datetime.now(datetime.UTC),
    )


def current() -> MachineProfile:
    """The stored profile if it is of this torch; else measured now and stored."""
    known = machine_profile()
    if known is not None and known.versions.get("torch") == torch.__version__:
        return known
    found = measure()
    path = profile_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(found.model_dump_json(indent=2))
    temporary.replace(path)
    return found
