"""How a block shrinks with the stream: widths in steps of eight, heads and their size alike."""

from __future__ import annotations

import math


def eights(value: float) -> int:
    """The nearest multiple of eight, at least eight."""
    return max(8, 8 * round(value / 8))


def nearest_heads(head_dim: int, heads: int, times: int, target: float, width: float) -> tuple[int, int]:
    """Size of a head, a multiple of eight, and number of heads (each counted ``times``) nearest to ``target`` channels.

    Of sizes that come equally near, the one that shrinks heads and their size alike.
    """
    even = head_dim * math.sqrt(width)
    best: tuple[float, int, int] | None = None
    for size in range(8, max(8, head_dim) + 1, 8):
        count = min(heads, max(1, round(target / (times * size))))
        miss = abs(math.log(times * count * size / target))
        cost = miss + 0.05 * abs(math.log(size / even))
        if best is None or cost < best[0]:
            best = (cost, size, count)
    if best is None:
        raise AssertionError("a head of eight channels is always tried")
    return best[1], best[2]
