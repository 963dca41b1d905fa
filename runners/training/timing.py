"""Timing of one operation: warm-ups, then repetitions until the interval of the median is narrow."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

LEAST_REPETITIONS = 10


@dataclass(frozen=True, slots=True)
class Timing:
    """A median with its 95% interval, in seconds."""

    median_seconds: float
    low_seconds: float
    high_seconds: float
    repetitions: int
    narrow: bool
    """Whether the interval is as narrow as was asked for."""


def median_interval(values: list[float]) -> tuple[float, float]:
    """The nominal 95% interval of the median from order statistics (Conover 1999, section 3.2).

    No distribution is assumed. At a fixed count it holds the median in 94.7 to 97% of cases; stopping as soon as it is
    narrow lowers that a little.
    """
    ordered = sorted(values)
    count = len(ordered)
    half = 1.959964 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - half))
    high = min(count - 1, math.ceil(count / 2 + half))
    return ordered[low], ordered[high]


def time_until_narrow(
    call: Callable[[], object], device: str, warmups: int, most: int, relative_interval: float
) -> Iterator[Timing | None]:
    """Yields ``None`` after each repetition, so that a caller can report, and the timing at the end."""
    seconds: list[float] = []
    for _ in range(warmups):
        call()
        yield None
    for count in range(1, most + 1):
        seconds.append(_once(call, device))
        if count >= LEAST_REPETITIONS:
            low, high = median_interval(seconds)
            median = statistics.median(seconds)
            if (high - low) / median <= relative_interval:
                yield Timing(median, low, high, count, True)
                return
        yield None
    low, high = median_interval(seconds)
    yield Timing(statistics.median(seconds), low, high, most, False)


def _once(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        started.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        return float(started.elapsed_time(ended)) / 1e3
    before = time.perf_counter()
    call()
    return time.perf_counter() - before
