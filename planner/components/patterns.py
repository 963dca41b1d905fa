"""Which keys a query of causal attention sees: one description, which sizes, models, kernels and pages all read.

A pattern is what is near, and what every query sees beside it. Near is everything before (no field set), a sliding or
dilated window (Beltagy et al. 2020, arXiv:2004.05150), or a chunk with some chunks before it (Llama 4; blocks of the
sequence in BigBird, Zaheer et al. 2020, arXiv:2007.14062), or a block with others that are named or drawn
(:mod:`planner.components.block_layout`). Beside it stand global tokens, which are the first of the
sequence (Longformer and BigBird; attention sinks in Xiao et al. 2023, arXiv:2309.17453), keys at whole strides, and the
last positions of every chunk: the strided and the fixed pattern of Sparse Transformers (Child et al. 2019,
arXiv:1904.10509, section 4.3).

Sizes may be numbers, float64 arrays or symbols (``//`` rounds down in all three). :meth:`MaskPattern.sees` is made of
operators alone, so that positions may be integers, NumPy's arrays or PyTorch's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.components.block_layout import BlockLayout
from planner.quantities import Quantity, ceiling_divide, exact_divide, floor_divide, largest, smallest


@dataclass(frozen=True, slots=True)
class MaskPattern:
    """Keys that a query sees; the fields are those of :class:`planner.components.Attention`."""

    sliding_window: Quantity | None = None
    dilation: Quantity | None = None
    attention_chunk_size: Quantity | None = None
    previous_chunks: Quantity | None = None
    chunk_summaries: Quantity | None = None
    global_tokens: Quantity | None = None
    stride: Quantity | None = None
    block_size: Quantity | None = None
    block_offsets: tuple[int, ...] | None = None
    random_blocks: Quantity | None = None
    random_seed: int | None = None

    @property
    def layout(self) -> BlockLayout | None:
        """The blocks that are seen; ``None`` where the sequence is not cut into such blocks."""
        if self.block_size is None:
            return None
        seed = 0 if self.random_seed is None else self.random_seed
        return BlockLayout(
            self.block_size, self.block_offsets or (), self.random_blocks, seed, _size(self.global_tokens)
        )

    @property
    def is_causal(self) -> bool:
        """Whether a query sees every key before it."""
        hiding = self.sliding_window, self.attention_chunk_size, self.stride, self.block_size
        return all(each is None for each in hiding)

    @property
    def is_window(self) -> bool:
        """Whether a query sees its nearest keys and no other."""
        others = self.dilation, self.attention_chunk_size, self.global_tokens, self.stride, self.block_size
        return self.sliding_window is not None and all(other is None for other in others)

    def sees(self, query: Any, key: Any) -> Any:
        """Whether the query at one position sees the key at another, counted from the start of the sequence."""
        seen = self._is_near(query, key)
        if self.stride is not None:
            seen = seen | ((query - key) % self.stride == 0)
        if self.attention_chunk_size is not None and self.chunk_summaries is not None:
            seen = seen | (key % self.attention_chunk_size >= self.attention_chunk_size - self.chunk_summaries)
        if self.global_tokens is not None:
            seen = seen | (key < self.global_tokens)
        return seen & (query >= key)

    def _is_near(self, query: Any, key: Any) -> Any:
        if self.layout is not None:
            return self.layout.sees(query, key)
        if self.attention_chunk_size is not None:
            chunks = query // self.attention_chunk_size - key // self.attention_chunk_size
            return chunks <= _size(self.previous_chunks)
        if self.sliding_window is not None:
            distance = query - key
            if self.dilation is None:
                return distance < self.sliding_window
            return (distance < self.sliding_window * self.dilation) & (distance % self.dilation == 0)
        return query == key if self.stride is not None else query >= key

    def attended_pairs(self, length: Quantity) -> Quantity:
        """Pairs of a query and a key that it sees, in a sequence of ``length`` positions."""
        if self.is_causal:
            return _triangle(length)
        if self.attention_chunk_size is not None:
            return self._pairs_of_chunks(length)
        # Every query sees the global keys before it; among the others the pattern begins anew.
        first = smallest(_size(self.global_tokens), length)
        if self.layout is not None:
            return _at_steps(length, 1, first) + self.layout.pairs(length)
        return _at_steps(length, 1, first) + self._pairs_by_distance(length - first)

    def _pairs_by_distance(self, length: Quantity) -> Quantity:
        """Pairs where nothing but their distance decides."""
        pairs: Quantity = 0
        if self.sliding_window is not None:
            step = 1 if self.dilation is None else self.dilation
            steps = smallest(self.sliding_window, length if self.dilation is None else ceiling_divide(length, step))
            pairs = _at_steps(length, step, steps)
        if self.stride is not None:
            pairs = pairs + _at_steps(length, self.stride, ceiling_divide(length, self.stride))
            if self.sliding_window is not None:
                within = ceiling_divide(self.sliding_window, self.stride), ceiling_divide(length, self.stride)
                pairs = pairs - _at_steps(length, self.stride, smallest(*within))
        return pairs

    def _pairs_of_chunks(self, length: Quantity) -> Quantity:
        """All pairs, less those of keys that stand in a chunk left behind and are nothing special there.

        Keys of chunk ``j`` are hidden from all queries after the chunks that may look back at it.
        """
        chunk, shown = self.attention_chunk_size, _size(self.global_tokens)
        seen_in = (_size(self.previous_chunks) + 1) * chunk
        global_chunks = floor_divide(shown, chunk)
        ordinary = chunk - _size(self.chunk_summaries)
        partly = largest(0, ordinary - (shown - global_chunks * chunk))
        after = largest(0, length - global_chunks * chunk - seen_in)
        # The chunks that fit into it: each term is rounded by itself, never a maximum (see planner/quantities.py).
        later = largest(0, floor_divide(length, chunk) - global_chunks - _size(self.previous_chunks) - 1)
        hidden = partly * after + ordinary * (later * after - chunk * _triangle(later))
        return _triangle(length) - hidden

    def density(self, length: Quantity) -> Quantity:
        """Share of the square of scores that is seen; all before is somewhat more than one half."""
        return self.attended_pairs(length) / (length * length)

    @property
    def recent(self) -> Quantity | None:
        """Latest positions within which all is kept while generating; ``None``: however far back."""
        chunk, window = self.attention_chunk_size, self.sliding_window
        if self.stride is not None or self.random_blocks is not None:
            return None
        if self.layout is not None:
            return (1 + max(self.layout.offsets, default=0)) * self.layout.block_size
        if chunk is not None:
            return (_size(self.previous_chunks) + 1) * chunk
        return window if window is None or self.dilation is None else (window - 1) * self.dilation + 1

    def remembers(self, key: Any) -> Any:
        """Whether the key at a position is seen by every later query, however far behind it stands."""
        remembered = key < _size(self.global_tokens)
        if self.attention_chunk_size is not None and self.chunk_summaries is not None:
            summary = key % self.attention_chunk_size >= self.attention_chunk_size - self.chunk_summaries
            remembered = remembered | summary
        return remembered

    def remembered(self, length: Quantity) -> Quantity:
        """How many of the first ``length`` positions are remembered; none where ``length`` is negative."""
        shown = _size(self.global_tokens)
        first = smallest(largest(0, length), shown)
        if self.chunk_summaries is None:
            return first
        return first + largest(0, self._summaries(length) - self._summaries(shown))

    def _summaries(self, length: Quantity) -> Quantity:
        """Summaries among the first ``length`` positions; negative where ``length`` is. It never falls."""
        chunk, summaries = self.attention_chunk_size, self.chunk_summaries
        whole = floor_divide(length, chunk)
        return whole * summaries + largest(0, length + summaries - (whole + 1) * chunk)

    def kept(self, length: Quantity) -> Quantity:
        """Positions whose keys and values are kept while ``length`` positions are read or generated.

        All recent ones, and of those before them the remembered.
        """
        recent = self.recent
        if recent is None:
            return length
        if self.global_tokens is None and self.chunk_summaries is None:
            return smallest(length, recent)
        return smallest(length, recent) + self.remembered(length - recent)

    def runs(self, length: Quantity) -> Quantity | None:
        """Runs of remembered positions, at most, among those that are kept; ``None`` where nothing is remembered."""
        recent = self.recent
        if recent is None or (self.global_tokens is None and self.chunk_summaries is None):
            return None
        runs = 0 if self.global_tokens is None else smallest(1, largest(0, length - recent))
        if self.chunk_summaries is None:
            return runs
        return runs + largest(0, ceiling_divide(length - recent, self.attention_chunk_size))

    def words(self) -> str:
        """The pattern in a few words: ``window 4,096, 4 global tokens``."""
        if self.is_causal:
            return "full"
        parts = []
        if self.attention_chunk_size is not None:
            parts.append(f"chunks of {self.attention_chunk_size:,}")
            if self.previous_chunks is not None:
                parts.append(f"{self.previous_chunks:,} chunks back")
            if self.chunk_summaries is not None:
                parts.append(f"{self.chunk_summaries:,} summaries a chunk")
        if self.sliding_window is not None:
            parts.append(f"{'dilated window' if self.dilation is not None else 'window'} {self.sliding_window:,}")
        if self.stride is not None:
            parts.append(f"stride {self.stride:,}")
        if self.block_size is not None:
            parts.append(f"blocks of {self.block_size:,}")
            if self.block_offsets is not None:
                parts.append(f"offsets {' '.join(map(str, self.block_offsets))}")
            if self.random_blocks is not None:
                parts.append(f"{self.random_blocks:,} random")
        if self.global_tokens is not None:
            parts.append(f"{self.global_tokens:,} global")
        return ", ".join(parts)


CAUSAL = MaskPattern()
"""A query sees all before it, and itself."""


def _size(field: Quantity | None) -> Quantity:
    return 0 if field is None else field


def _triangle(length: Quantity) -> Quantity:
    return exact_divide(length * (length + 1), 2)


def _at_steps(length: Quantity, step: Quantity, steps: Quantity) -> Quantity:
    """Pairs at the distances ``0, step, 2 step …``, ``steps`` of them, all less than ``length``."""
    return steps * length - step * exact_divide(steps * (steps - 1), 2)
