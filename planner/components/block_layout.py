"""Which blocks of the sequence a query of block-sparse attention sees beside its own and the global tokens.

Block ``i`` sees, of the blocks before it, those at stated distances (``i - offset``), and some that are drawn at random
(BigBird: Zaheer et al. 2020, arXiv:2007.14062, section 2; here causal, so that they are drawn among earlier blocks).
The draw is without replacement among the blocks that are not seen anyway and hold no global token, so that their number
has a closed form: all of those there are, and at most ``random_blocks``.

The draw is stated, not kept: any program that follows :func:`mixed` and :meth:`BlockLayout.drawn` finds the same blocks
for the same seed, however long the sequence is. All is made of operators on integers below 2^63, so that positions may
be integers, NumPy's arrays or PyTorch's tensors. Sizes in the formulas may be numbers, arrays or symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.quantities import Quantity, ceiling_divide, exact_divide, floor_divide, largest, smallest

MASK = 0x7FFFFFFF
FACTOR = 0x45D9F3B


def mixed(x: Any) -> Any:
    """31 bits that look random, of an integer: shifts and products modulo 2^31, three rounds."""
    x = x & MASK
    for _ in range(3):
        x = ((x ^ (x >> 16)) * FACTOR) & MASK
    return x ^ (x >> 16)


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The blocks that are seen; the fields are those of :class:`planner.components.Attention`."""

    block_size: Quantity
    offsets: tuple[int, ...] = ()
    """Distances of earlier blocks, in blocks, in rising order."""
    random_blocks: Quantity | None = None
    seed: int = 0
    global_tokens: Quantity = 0

    def sees(self, query: Any, key: Any) -> Any:
        """Whether the query at one position sees the key at another for its block's sake, where that is earlier."""
        return self.sees_block(query // self.block_size, key // self.block_size)

    def sees_block(self, query: Any, key: Any) -> Any:
        """Whether a block of queries sees one of keys, which is not a later one."""
        distance = query - key
        seen = distance == 0
        for offset in self.offsets:
            seen = seen | (distance == offset)
        if self.random_blocks is not None:
            chosen = self.available(query) <= self.random_blocks
            for drawn in self.drawn(query):
                chosen = chosen | (distance == drawn)
            # What holds a global token is never drawn.
            seen = seen | (chosen & (key >= self._first_ordinary))
        return seen

    @property
    def _first_ordinary(self) -> Any:
        """The first block that holds no global token: rounded up by operators, as models do."""
        return -(-self.global_tokens // self.block_size)

    def available(self, query: Any) -> Any:
        """How many blocks may be drawn for a block of queries; none, or less, for the first ones."""
        earlier = query - self._first_ordinary
        available = earlier
        for offset in self.offsets:
            available = available - (earlier >= offset) * 1
        return available

    def drawn(self, query: Any) -> list[Any]:
        """Distances of the blocks that are drawn for a block of queries, where more are available than are drawn.

        Floyd's way to draw without replacement (Bentley and Floyd 1987, doi:10.1145/30401.315746): of the numbers up to
        a limit that rises by one, one is drawn, and the limit itself where that one was drawn before.
        """
        base = mixed(mixed(self.seed) ^ query)
        available = self.available(query)
        picks: list[Any] = []
        for index in range(self.random_blocks or 0):
            limit = available - self.random_blocks + index
            # Where too few are available nothing is drawn, and a limit of 0 keeps the remainder defined.
            limit = limit * (limit > 0)
            pick = mixed(base ^ mixed(index + 1)) % (limit + 1)
            taken = pick < 0
            for other in picks:
                taken = taken | (pick == other)
            picks.append(pick + (limit - pick) * taken)
        return [self._distance(pick) for pick in picks]

    def _distance(self, rank: Any) -> Any:
        """The distance of the block that so many nearer ones that may be drawn stand before."""
        distance = rank + 1
        for offset in self.offsets:
            distance = distance + (distance >= offset) * 1
        return distance

    def pairs(self, length: Quantity) -> Quantity:
        """Pairs of a query and a key it sees that is not global, in a sequence of ``length`` positions."""
        block, shown = self.block_size, self.global_tokens
        # Of the first block that is not all global, so many keys are ordinary.
        first = floor_divide(shown, block)
        ordinary = block - (shown - first * block)
        after = largest(0, length - (first + 1) * block)
        whole = largest(0, floor_divide(length, block) - first - 1)
        pairs = _triangle(smallest(ordinary, largest(0, length - shown)))
        pairs = pairs + whole * _triangle(block) + _triangle(after - whole * block)
        for offset in self.offsets:
            seeing = smallest(block, largest(0, length - (first + offset) * block))
            pairs = pairs + ordinary * seeing + block * largest(0, length - (first + 1 + offset) * block)
        if self.random_blocks is not None:
            pairs = pairs + self._random_pairs(length, self.random_blocks)
        return pairs

    def _random_pairs(self, length: Quantity, most: Quantity) -> Quantity:
        block = self.block_size
        begin = ceiling_divide(self.global_tokens, block)
        blocks = floor_divide(length, block)
        earlier = largest(0, blocks - 1 - begin)
        # The first block, from ``begin`` on, for which as many are available as are drawn.
        enough = most
        for offset in self.offsets:
            enough = enough + _at_least(enough, offset)
        few = smallest(earlier, enough - 1)
        drawn = _triangle(few) + most * largest(0, earlier - enough + 1)
        for offset in self.offsets:
            drawn = drawn - largest(0, few - offset + 1)
        last = largest(0, blocks - begin)
        available = last
        for offset in self.offsets:
            available = available - _at_least(last, offset)
        rest = length - blocks * block
        return block * (block * drawn + rest * smallest(most, available))


def _triangle(length: Quantity) -> Quantity:
    return exact_divide(length * (length + 1), 2)


def _at_least(number: Quantity, bound: int) -> Quantity:
    """1 where an integer reaches a bound, else 0."""
    return smallest(1, largest(0, number - bound + 1))
