"""How a block shrinks with the stream: widths in steps of a few channels, heads and their size alike."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """How much smaller a prototype is than the design that it stands for."""

    width: float
    """New hidden size over old."""
    window: float = 1.0
    """New sequence length over the context that windows are a share of."""
    expert_divisor: int = 1
    """What the number of experts is divided by."""
    step: int = 8
    """Widths are multiples of this: eight where the budget is ample, fewer where it is small."""

    def width_of(self, value: int) -> int:
        """A width in proportion to the stream's: at least eight, and at most what it was."""
        return stepped(value, self.width, self.step)

    def window_of(self, value: int) -> int:
        """A window with its share of the context: at least eight, and at most what it was."""
        return min(value, max(8, round(value * self.window)))


def stepped(value: int, share: float, step: int = 8) -> int:
    """The multiple of ``step`` nearest to a share of ``value``: at least eight, and at most ``value`` itself."""
    return min(value, max(8, step * round(value * share / step)))


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
