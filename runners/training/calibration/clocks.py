"""How long calls take on a device.

A GPU works through a queue that the host fills. There the two are timed apart: the host by how long it takes to queue a
pass, the device by its own clock while it has the whole pass before it. On a CPU both are the one time that passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch

CYCLES_PER_SECOND = 2e9
"""At least those of a GPU's clock: it is given to wait in cycles."""
SECONDS_EACH = 0.01
"""For which a call is repeated that is timed alone, in a round."""
TURNS = 2
"""Of each call in a round."""
TURN_SECONDS = 0.01
"""For which a call is repeated in each of its turns."""
WARM_SECONDS = 0.02
"""For which a call is repeated before it is timed."""

Call = Callable[[], object]
Clock = Callable[[Call, str, float], float]
"""How long a call takes on a device, by one of the three below."""


def is_queued(device: str) -> bool:
    """Whether the host queues what the device does."""
    return device == "cuda"


def elapsed(call: Call, device: str, host: float = 0.0) -> float:
    """Seconds that pass until the result is there."""
    started = time.perf_counter()
    call()
    if is_queued(device):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def host_seconds(call: Call, device: str, host: float = 0.0) -> float:
    """What the host takes to queue the work; on a CPU, to do it."""
    if is_queued(device):
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def device_seconds(call: Call, device: str, host: float) -> float:
    """What the device takes for a call that is queued whole before it starts; on a CPU, what passes.

    The device is given something to wait with, longer than the ``host`` seconds in which the call is queued.
    """
    if not is_queued(device):
        return elapsed(call, device)
    torch.cuda.synchronize()
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(1.5 * host * CYCLES_PER_SECOND) + 20_000)
    started.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return float(started.elapsed_time(ended)) / 1e3


class Stopwatch:
    """Times by name, measured in rounds: a machine is faster in one minute than in the next, and a round meets both.

    What is measured in a round is asked for again, under the same names, when all rounds are over: then the answers are
    the medians of the rounds, and nothing is made or run.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._rounds: list[dict[Hashable, list[float]]] = []
        self._is_over = False

    def start(self) -> None:
        """A round, in which each name is measured once."""
        self._rounds.append({})

    def stop(self) -> None:
        """All rounds are over."""
        self._is_over = True

    def alone(
        self, name: Hashable, make: Callable[[], Iterable[Call]], for_seconds: float | None = None
    ) -> list[float]:
        """Of each call the median of the device's time over a short while, of at least three."""
        return self._known(name) or self._keep(
            name, [_alone(call, self.device, SECONDS_EACH if for_seconds is None else for_seconds) for call in make()]
        )

    def in_turns(
        self, name: Hashable, make: Callable[[], Iterable[Call]], clock: Clock = device_seconds
    ) -> list[float]:
        """Medians of calls that take turns, so that a machine that slows down slows all.

        Each has been repeated before: what is allocated, compiled or specialized in its first passes takes the host
        long. The first of a turn finds the caches full of another's and is left out, unless it is as long as the turn.
        """
        return self._known(name) or self._keep(name, _in_turns(list(make()), self.device, clock))

    def _known(self, name: Hashable) -> list[float]:
        if not self._is_over:
            return self._rounds[-1].get(name, [])
        return [statistics.median(each) for each in zip(*(found[name] for found in self._rounds), strict=True)]

    def _keep(self, name: Hashable, seconds: list[float]) -> list[float]:
        self._rounds[-1][name] = seconds
        return seconds


def _alone(call: Call, device: str, for_seconds: float) -> float:
    host = host_seconds(call, device)
    times: list[float] = []
    deadline = time.perf_counter() + for_seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        times.append(device_seconds(call, device, host))
    return statistics.median(times)


def _in_turns(calls: Sequence[Call], device: str, clock: Clock) -> list[float]:
    hosts = [_warmed(call, device) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(TURNS):
        for call, host, own in zip(calls, hosts, times, strict=True):
            deadline = time.perf_counter() + TURN_SECONDS
            first, later = clock(call, device, host), []
            while time.perf_counter() < deadline:
                later.append(clock(call, device, host))
            own += later or [first]
    return [statistics.median(each) for each in times]


def _warmed(call: Call, device: str) -> float:
    """The host's last time of several."""
    deadline = time.perf_counter() + WARM_SECONDS
    for _ in range(2):
        call()
    last = host_seconds(call, device)
    while time.perf_counter() < deadline:
        last = host_seconds(call, device)
    return last
