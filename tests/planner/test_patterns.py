"""The one description of a mask, against masks that are written out pair by pair."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planner import parse_spec
from planner.components import Attention
from planner.components.patterns import CAUSAL, MaskPattern
from planner.mask_blocks import block_map
from planner.symbolic import substitute, symbolic
from tests.planner.strategies import CHUNKED, mask_fields

HEADS = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}


@st.composite
def layers(draw: st.DrawFn, largest: int = 12) -> Attention:
    return Attention.model_validate({**HEADS, **draw(mask_fields(largest))})


def is_seen(layer: Attention, i: int, j: int) -> bool:
    """Whether query i sees key j, from the sentences that the fields are documented with."""
    if j > i:
        return False
    chunk, window, stride = layer.attention_chunk_size, layer.sliding_window, layer.stride
    kinds = []
    if chunk is not None:
        kinds.append(any(i // chunk - back == j // chunk for back in range((layer.previous_chunks or 0) + 1)))
        kinds.append(layer.chunk_summaries is not None and (j + layer.chunk_summaries) // chunk > j // chunk)
    if window is not None:
        kinds.append(j in [i - (layer.dilation or 1) * step for step in range(window)])
    if stride is not None:
        kinds.append(j in range(i, -1, -stride))
    if layer.block_size is not None:
        block, other = i // layer.block_size, j // layer.block_size
        kinds.append(block - other in (0, *(layer.block_offsets or ())))
        kinds.append(other in random_blocks(layer, block))
    if layer.global_tokens is not None:
        kinds.append(j < layer.global_tokens)
    return any(kinds) if kinds else True


def random_blocks(layer: Attention, block: int) -> set[int]:
    """Blocks that are drawn for one, by the sentences and the algorithm of Floyd on lists."""
    size, offsets, wanted = layer.block_size, layer.block_offsets or (), layer.random_blocks or 0
    free = [
        other
        for other in range(block - 1, -1, -1)
        if block - other not in offsets and other * size >= (layer.global_tokens or 0)
    ]
    if len(free) <= wanted:
        return set(free) if wanted else set()
    begin = scrambled(scrambled(layer.random_seed or 0) ^ block)
    ranks: set[int] = set()
    for index, top in enumerate(range(len(free) - wanted, len(free))):
        rank = scrambled(begin ^ scrambled(index + 1)) % (top + 1)
        ranks.add(top if rank in ranks else rank)
    return {free[rank] for rank in ranks}


def scrambled(number: int) -> int:
    """Three rounds of a shift and a product of 31 bits, and a shift."""
    number %= 2**31
    for _ in range(3):
        number = (number ^ number // 2**16) * 73_244_475 % 2**31
    return number ^ number // 2**16


def mask(layer: Attention, length: int) -> np.ndarray:
    """The square, written out."""
    return np.array([[is_seen(layer, i, j) for j in range(length)] for i in range(length)])


@given(layer=layers(), length=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_pairs_are_those_of_the_mask_and_positions_are_read_alike(layer: Attention, length: int) -> None:
    written, pattern = mask(layer, length), layer.pattern
    positions = np.arange(length)
    np.testing.assert_array_equal(pattern.sees(positions[:, None], positions[None, :]), written)
    i, j = length - 1, length // 2
    assert bool(pattern.sees(i, j)) == written[i, j]
    assert pattern.attended_pairs(length) == written.sum()
    assert pattern.density(length) == written.mean()


@given(layer=layers(), length=st.integers(1, 60))
@example(layer=CHUNKED.layer_groups[0].layers[0].sequence_mixer, length=198)
@settings(max_examples=60, deadline=None)
def test_pairs_and_kept_positions_read_as_numbers_arrays_and_symbols(layer: Attention, length: int) -> None:
    in_symbols, values = symbolic(layer)
    symbol = sympy.Symbol("T", integer=True, positive=True)
    in_arrays = substitute(layer, lambda path, name, value: np.array([value, value], dtype=np.float64))
    lengths = np.array([length, length], dtype=np.float64)
    for name in ("attended_pairs", "kept", "density"):
        number = getattr(layer.pattern, name)(length)
        np.testing.assert_allclose(np.broadcast_to(getattr(in_arrays.pattern, name)(lengths), (2,)), number, rtol=1e-13)
        formula = sympy.sympify(getattr(in_symbols.pattern, name)(symbol))
        assert float(formula.subs({**values, symbol: length})) == pytest.approx(number, rel=1e-12)


@given(layer=layers(), length=st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_what_is_kept_holds_every_key_that_a_later_query_sees(layer: Attention, length: int) -> None:
    """Of the positions before a query, those that it or a later one can see, at every moment of generating."""
    pattern, written = layer.pattern, mask(layer, 120)
    kept = pattern.kept(length)
    recent = length if pattern.recent is None else min(length, pattern.recent)
    remembered = [p for p in range(length - recent) if written[100:, p].all()]
    assert kept == recent + len(remembered)
    assert pattern.remembered(length - recent) == len(remembered)
    assert remembered == [p for p in range(length - recent) if pattern.remembers(p)]
    for query in range(length):
        held = set(range(max(0, query + 1 - recent), query + 1)) | set(remembered)
        assert set(np.flatnonzero(written[query])) <= held


@given(layer=layers(), length=st.integers(1, 40), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_set_of_outputs_reads_what_its_queries_see(layer: Attention, length: int, data: st.DataObject) -> None:
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    written = mask(layer, length)
    np.testing.assert_array_equal(layer.reads(chosen), chosen | written[chosen].any(axis=0))


@pytest.mark.parametrize(
    "fields, pairs, kept",
    [
        # Strided attention of Child et al. 2019: with stride = window = √n a query sees about 2 √n keys. By hand: 6
        # queries of 16 see one key at distance 4, 8 or 12 … 12 + 8 + 4 pairs, and the window 4·16 − 6.
        ({"sliding_window": 4, "stride": 4}, 58 + 12 + 8 + 4, 16),
        # Their fixed pattern: chunks of 4 (10 pairs each), and the last position of each seen by 12, 8 and 4 queries.
        ({"attention_chunk_size": 4, "chunk_summaries": 1}, 40 + 12 + 8 + 4, 4 + 3),
        # StreamingLLM: 2 sinks (15 + 16 pairs), and windows of 4 in the 14 positions behind them.
        ({"sliding_window": 4, "global_tokens": 2}, 31 + 4 * 14 - 6, 6),
        # Blocks of 4, each of which sees the one before it: three squares of 16 beside the chunks.
        ({"attention_chunk_size": 4, "previous_chunks": 1}, 40 + 48, 8),
        # The same by offsets; then the second block before, of which there are two.
        ({"block_size": 4, "block_offsets": [1]}, 40 + 48, 8),
        ({"block_size": 4, "block_offsets": [2]}, 40 + 32, 12),
        # One block of those before, drawn for three of the four.
        ({"block_size": 4, "random_blocks": 1}, 40 + 48, 16),
        # BigBird: the first block is global (10 pairs in it, 48 from behind it), three blocks see themselves, two the
        # ordinary one before them, and one may be drawn for the last alone, where one is left.
        ({"block_size": 4, "block_offsets": [1], "random_blocks": 1, "global_tokens": 4}, 10 + 48 + 30 + 32 + 16, 16),
    ],
)
def test_known_patterns_by_hand(fields: dict[str, object], pairs: int, kept: int) -> None:
    pattern = Attention.model_validate({**HEADS, **fields}).pattern
    assert pattern.attended_pairs(16) == pairs
    assert pattern.kept(16) == kept


def test_all_before_is_the_pattern_of_no_field() -> None:
    layer = Attention.model_validate(HEADS)
    assert layer.pattern == CAUSAL == MaskPattern()
    assert CAUSAL.attended_pairs(7) == 28
    assert CAUSAL.kept(7) == 7
    assert not CAUSAL.is_window
    assert MaskPattern(sliding_window=3).is_window
    assert not MaskPattern(sliding_window=3, global_tokens=1).is_window


def test_a_layout_of_blocks_is_a_specification_that_is_written_and_read_back() -> None:
    mixer = {"kind": "attention", **HEADS, "block_size": 4, "block_offsets": [1, 3], "random_blocks": 2}
    data = {"vocab_size": 9, "hidden_size": 8, "layer_groups": [{"layers": [{"sequence_mixer": mixer}]}]}
    spec = parse_spec(data)
    again = parse_spec(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.content_hash() == spec.content_hash()
    for change in ({"block_offsets": [1, 2]}, {"random_seed": 1}, {"random_blocks": 1}, {"block_size": 5}):
        other = parse_spec({**data, "layer_groups": [{"layers": [{"sequence_mixer": {**mixer, **change}}]}]})
        assert other.content_hash() != spec.content_hash()


def test_random_blocks_are_drawn_evenly_and_anew_for_each_block_and_seed() -> None:
    """Of 1,000 blocks with three draws each among those before them: the mean place is one half, give or take 0.005."""
    rows, keys = np.arange(1000, 2000)[:, None], np.arange(2000)[None, :]
    drawn = []
    for seed in (0, 1):
        seen = MaskPattern(block_size=1, random_blocks=3, random_seed=seed).layout.sees_block(rows, keys) & (
            keys < rows
        )
        assert (seen.sum(axis=1) == 3).all()
        places = np.nonzero(seen)[1].reshape(-1, 3) / rows
        assert abs(places.mean() - 0.5) < 0.02
        assert abs(places.std() - 12**-0.5) < 0.02
        drawn.append(seen)
    assert (drawn[0] & drawn[1]).sum() < 30  # by chance 3 · 3 / 1,500 for each of 1,000 blocks: 6
    assert len({tuple(np.flatnonzero(row)) for row in drawn[0]}) > 990


@pytest.mark.parametrize(
    "fields, field, code",
    [
        ({"dilation": 2}, "dilation", "no_window"),
        ({"sliding_window": 4, "attention_chunk_size": 4}, "attention_chunk_size", "window_and_chunk"),
        ({"previous_chunks": 1}, "previous_chunks", "no_chunks"),
        ({"chunk_summaries": 1, "sliding_window": 4}, "chunk_summaries", "no_chunks"),
        ({"attention_chunk_size": 4, "chunk_summaries": 5}, "chunk_summaries", "more_summaries_than_positions"),
        ({"attention_chunk_size": 4, "stride": 2}, "stride", "stride_beside_others"),
        ({"sliding_window": 4, "dilation": 2, "stride": 2}, "stride", "stride_beside_others"),
        ({"global_tokens": 1}, "global_tokens", "nothing_hidden"),
        ({"block_offsets": [1]}, "block_offsets", "no_blocks"),
        ({"random_blocks": 1, "stride": 2}, "random_blocks", "no_blocks"),
        ({"block_size": 4, "random_seed": 1}, "random_seed", "no_random_blocks"),
        ({"block_size": 4, "sliding_window": 8}, "block_size", "blocks_beside_others"),
        ({"block_size": 4, "attention_chunk_size": 8}, "block_size", "blocks_beside_others"),
        ({"block_size": 4, "stride": 8}, "block_size", "blocks_beside_others"),
        ({"block_size": 4, "block_offsets": [2, 1]}, "block_offsets", "offsets_not_rising"),
        ({"block_size": 4, "block_offsets": [1, 1]}, "block_offsets", "offsets_not_rising"),
    ],
)
def test_what_no_mask_can_be_is_refused_at_its_field(fields: dict[str, object], field: str, code: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Attention.model_validate({**HEADS, **fields})
    (error,) = refused.value.errors()
    assert (error["type"], error["ctx"]["field"]) == (code, field)
    assert error["ctx"]["remedy"]


@given(layer=layers(), length=st.integers(1, 40), block=st.integers(1, 9))
@settings(max_examples=400, deadline=None)
def test_blocks_are_empty_cut_or_full_as_the_mask_says(layer: Attention, length: int, block: int) -> None:
    written, made = mask(layer, length), block_map(layer.pattern, length, block)
    edges = range(0, length, block)
    cells = [[written[row : row + block, column : column + block] for column in edges] for row in edges]
    np.testing.assert_array_equal(made.some, [[cell.any() for cell in row] for row in cells])
    np.testing.assert_array_equal(made.every, [[cell.all() for cell in row] for row in cells])
    np.testing.assert_array_equal(made.cut, [[0 < cell.mean() < 1 for cell in row] for row in cells])
    assert made.density == np.mean([[cell.any() for cell in row] for row in cells])


@given(layer=layers(), length=st.integers(1, 40), queries=st.integers(1, 40), sizes=st.tuples(*[st.integers(1, 9)] * 2))
@settings(max_examples=300, deadline=None)
def test_blocks_of_the_last_queries_may_be_wider_than_high(
    layer: Attention, length: int, queries: int, sizes: tuple[int, int]
) -> None:
    queries = min(queries, length)
    written = mask(layer, length)[length - queries :]
    made = block_map(layer.pattern, length, *sizes, num_queries=queries)
    rows, columns = range(0, queries, sizes[0]), range(0, length, sizes[1])
    cells = [[written[row : row + sizes[0], column : column + sizes[1]] for column in columns] for row in rows]
    np.testing.assert_array_equal(made.some, [[cell.any() for cell in row] for row in cells])
    np.testing.assert_array_equal(made.every, [[cell.all() for cell in row] for row in cells])


def test_blocks_of_a_long_sequence_need_no_mask_of_it() -> None:
    """A window of 4,096 in 2^17 positions: 32 blocks of 128 behind each, the diagonal and the window's edge are cut."""
    made = block_map(MaskPattern(sliding_window=4096), 2**17, 128)
    assert made.some.shape == (1024, 1024)
    assert made.some[500].sum() == 33
    assert made.every[500].sum() == 31
    assert np.flatnonzero(made.cut[500]).tolist() == [500 - 32, 500]
