"""The forward and the backward pass of attention behind a mask of any pattern, in Triton.

Forward: blocks of keys, a running maximum and a running sum (online softmax: Milakov and Gimelshein 2018,
arXiv:1805.02867; FlashAttention-2, algorithm 1: Dao 2023, arXiv:2307.08691). Backward: scores are computed again from
the log-sum-exp that the forward pass saved (algorithm 2 there), by two kernels, so that nothing is added by several
programs: one goes over tiles of queries for a block of keys, the other over blocks of keys for a tile of queries.

Which blocks are visited is listed by :mod:`runners.kernels.attention_blocks`; only those that the mask cuts pay for
masking. Logarithms are to base 2. ``PATTERN`` holds the fields of :class:`planner.components.patterns.MaskPattern`, and
``table`` the distances of earlier blocks that each block sees, where the sequence is cut into blocks.
"""

from __future__ import annotations

from runners.kernels.base import jit, tl


@jit
def _sees(rows, columns, table, PATTERN: tl.constexpr):
    """Which keys at ``columns`` the queries at ``rows`` see; positions of shapes that go together."""
    distance = rows - columns
    if PATTERN[7] is not None:
        block = rows // PATTERN[7]
        apart = block - columns // PATTERN[7]
        seen = apart == 0
        most: tl.constexpr = PATTERN[8]
        for index in tl.static_range(most):
            seen = seen | (apart == tl.load(table + block * PATTERN[9] + index))
    elif PATTERN[2] is not None:
        seen = rows // PATTERN[2] - columns // PATTERN[2] <= PATTERN[3]
        if PATTERN[4] is not None:
            seen = seen | (columns % PATTERN[2] >= PATTERN[2] - PATTERN[4])
    elif PATTERN[0] is not None:
        seen = distance < PATTERN[0] * PATTERN[1]
        if PATTERN[1] > 1:
            seen = seen & (rows % PATTERN[1] == columns % PATTERN[1])
    elif PATTERN[6] is not None:
        seen = distance == 0
    else:
        seen = distance >= 0
    if PATTERN[6] is not None:
        seen = seen | (rows % PATTERN[6] == columns % PATTERN[6])
    if PATTERN[5] is not None:
        seen = seen | (columns < PATTERN[5])
    return seen & (distance >= 0)


@jit
def _placed(indices, length, positions, documents):
    """Positions and numbers of documents of the keys of these indices; those behind the last are of no document."""
    places = indices
    numbers = indices
    if positions is not None:
        places = tl.load(positions + indices, mask=indices < length, other=0)
    if documents is not None:
        numbers = tl.load(documents + indices, mask=indices < length, other=-1)
    return places, numbers


@jit
def _rows(
    pointer, first, row_stride, offsets, channels, limit,
    MASKED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of a matrix from ``first`` on; zeros behind row ``limit`` (where masked) and behind channel ``SIZE``."""
    # The base moves in 64 bits, so that long sequences of wide rows don't overflow; the tile's offsets stay in 32.
    places = pointer + tl.cast(first, tl.int64) * row_stride + (offsets[:, None] * row_stride + channels[None, :])
    if MASKED:
        loaded = tl.load(places, mask=(first + offsets < limit)[:, None] & (channels < SIZE)[None, :], other=0.0)
    elif BLOCK == SIZE:
        loaded = tl.load(places)
    else:
        loaded = tl.load(places, mask=(channels < SIZE)[None, :], other=0.0)
    return loaded


@jit
def _store(pointer, first, row_stride, offsets, channels, limit, values, SIZE: tl.constexpr):
    places = pointer + tl.cast(first, tl.int64) * row_stride + (offsets[:, None] * row_stride + channels[None, :])
    inside = (first + offsets < limit)[:, None] & (channels < SIZE)[None, :]
    tl.store(places, values.to(pointer.dtype.element_ty), mask=inside)


@jit
def _attend_blocks(
    accumulator, maximum, total, queries, rows, row_documents, key_base, value_base, key_stride, value_stride,
    positions, documents, table, blocks, start, stop, key_length, scale_log2,
    MASKED: tl.constexpr, PATTERN: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the listed blocks of keys, from ``start`` to ``stop``, into the running softmax."""
    offsets_n = tl.arange(0, BLOCK_KEYS)
    offsets_d = tl.arange(0, BLOCK_HEAD)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    for index in range(start, stop):
        first = tl.load(blocks + index) * BLOCK_KEYS
        keys = _rows(key_base, first, key_stride, offsets_n, offsets_d, key_length, MASKED, HEAD_DIM, BLOCK_HEAD)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale_log2
        if MASKED:
            indices = first + offsets_n
            columns, column_documents = _placed(indices, key_length, positions, documents)
            seen = _sees(rows[:, None], columns[None, :], table, PATTERN) & (indices < key_length)[None, :]
            if documents is not None:
                seen = seen & (row_documents[:, None] == column_documents[None, :])
            scores = tl.where(seen, scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        if MASKED:
            # A row may see nothing of a block that others see something of; −inf − (−inf) would be NaN.
            reference_point = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        else:
            reference_point = new_maximum
        weights = tl.exp2(scores - reference_point[:, None])
        shrink = tl.exp2(maximum - reference_point)
        total = total * shrink + tl.sum(weights, 1)
        values = _rows(
            value_base, first, value_stride, offsets_n, offsets_e, key_length, MASKED, VALUE_HEAD_DIM, BLOCK_VALUE
        )
        accumulator = tl.dot(weights.to(values.dtype), values, accumulator * shrink[:, None], input_precision=PRECISION)
        maximum = new_maximum
    return accumulator, maximum, total


@jit
def forward(
    q, k, v, output, logarithms, sinks, positions, documents, table, blocks, counts,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    o_batch_stride, o_head_stride, o_row_stride,
    places_stride, lists_stride, most, num_attention_heads, query_length, key_length, scale_log2,
    GROUP: tl.constexpr, PATTERN: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. Tiles of a head follow each other, the last first: mostly the longest."""
    tiles = tl.cdiv(query_length, BLOCK_QUERIES)
    tile = tiles - 1 - tl.program_id(0) % tiles
    head_of_batch = tl.program_id(0) // tiles
    batch = tl.cast(head_of_batch // num_attention_heads, tl.int64)
    head = tl.cast(head_of_batch % num_attention_heads, tl.int64)
    first_query = tile * BLOCK_QUERIES
    offsets_m = tl.arange(0, BLOCK_QUERIES)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    if positions is not None:
        positions += batch * places_stride
    if documents is not None:
        documents += batch * places_stride
    # Queries are the last of the keys.
    rows, row_documents = _placed(key_length - query_length + first_query + offsets_m, key_length, positions, documents)
    queries = _rows(
        q + batch * q_batch_stride + head * q_head_stride, first_query, q_row_stride, offsets_m,
        tl.arange(0, BLOCK_HEAD), query_length, True, HEAD_DIM, BLOCK_HEAD,
    )  # fmt: skip
    key_base = k + batch * k_batch_stride + head // GROUP * k_head_stride
    value_base = v + batch * v_batch_stride + head // GROUP * v_head_stride
    accumulator = tl.zeros((BLOCK_QUERIES, BLOCK_VALUE), tl.float32)
    if sinks is not None:
        # A key without a value.
        maximum = tl.full((BLOCK_QUERIES,), 1.4426950408889634, tl.float32) * tl.load(sinks + head).to(tl.float32)
        total = tl.full((BLOCK_QUERIES,), 1.0, tl.float32)
    else:
        maximum = tl.full((BLOCK_QUERIES,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    listed = batch * lists_stride + tile
    blocks += listed * most
    whole = tl.load(counts + 2 * listed)
    visited = tl.load(counts + 2 * listed + 1)
    accumulator, maximum, total = _attend_blocks(
        accumulator, maximum, total, queries, rows, row_documents, key_base, value_base, k_row_stride, v_row_stride,
        positions, documents, table, blocks, 0, whole, key_length, scale_log2,
        False, PATTERN, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
    )  # fmt: skip
    accumulator, maximum, total = _attend_blocks(
        accumulator, maximum, total, queries, rows, row_documents, key_base, value_base, k_row_stride, v_row_stride,
        positions, documents, table, blocks, whole, visited, key_length, scale_log2,
        True, PATTERN, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
    )  # fmt: skip
    _store(
        output + batch * o_batch_stride + head * o_head_stride, first_query, o_row_stride, offsets_m, offsets_e,
        query_length, accumulator / total[:, None], VALUE_HEAD_DIM,
    )  # fmt: skip
    tl.store(
        logarithms + tl.cast(head_of_batch, tl.int64) * query_length + first_query + offsets_m,
        maximum + tl.log2(total),
        mask=first_query + offsets_m < query_length,
    )


@jit
def weighted_gradients(
    output, gradient, means,
    o_batch_stride, o_head_stride, o_row_stride,
    g_batch_stride, g_head_stride, g_row_stride,
    num_attention_heads, query_length,
    VALUE_HEAD_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
):  # fmt: skip
    """What the softmax takes off every gradient of a row: the sum of those of its values, weighted."""
    tiles = tl.cdiv(query_length, BLOCK_QUERIES)
    first = tl.program_id(0) % tiles * BLOCK_QUERIES
    head_of_batch = tl.cast(tl.program_id(0) // tiles, tl.int64)
    batch, head = head_of_batch // num_attention_heads, head_of_batch % num_attention_heads
    offsets_m = tl.arange(0, BLOCK_QUERIES)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    mixed = _rows(
        output + batch * o_batch_stride + head * o_head_stride, first, o_row_stride, offsets_m, offsets_e,
        query_length, True, VALUE_HEAD_DIM, BLOCK_VALUE,
    )  # fmt: skip
    arriving = _rows(
        gradient + batch * g_batch_stride + head * g_head_stride, first, g_row_stride, offsets_m, offsets_e,
        query_length, True, VALUE_HEAD_DIM, BLOCK_VALUE,
    )  # fmt: skip
    tl.store(
        means + head_of_batch * query_length + first + offsets_m,
        tl.sum(mixed.to(tl.float32) * arriving.to(tl.float32), 1),
        mask=first + offsets_m < query_length,
    )


@jit
def _gather_queries(
    to_keys, to_values, keys, values, columns, column_documents, query_base, gradient_base, query_stride,
    gradient_stride, logarithms, means, positions, documents, table, blocks, start, stop,
    query_length, key_length, scale_log2,
    MASKED: tl.constexpr, PATTERN: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the listed tiles of queries, from ``start`` to ``stop``, add to the gradients of a block of keys.

    Scores and weights are (keys, queries) here.
    """
    offsets_m = tl.arange(0, BLOCK_QUERIES)
    offsets_d = tl.arange(0, BLOCK_HEAD)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    for index in range(start, stop):
        first = tl.load(blocks + index) * BLOCK_QUERIES
        queries = _rows(
            query_base, first, query_stride, offsets_m, offsets_d, query_length, MASKED, HEAD_DIM, BLOCK_HEAD
        )
        present = first + offsets_m < query_length
        if MASKED:
            logarithm = tl.load(logarithms + first + offsets_m, mask=present, other=0.0)
            mean = tl.load(means + first + offsets_m, mask=present, other=0.0)
        else:
            logarithm = tl.load(logarithms + first + offsets_m)
            mean = tl.load(means + first + offsets_m)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * scale_log2
        weights = tl.exp2(scores - logarithm[None, :])
        if MASKED:
            indices = key_length - query_length + first + offsets_m
            rows, row_documents = _placed(indices, key_length, positions, documents)
            seen = _sees(rows[None, :], columns[:, None], table, PATTERN) & present[None, :]
            if documents is not None:
                seen = seen & (row_documents[None, :] == column_documents[:, None])
            weights = tl.where(seen, weights, 0.0)
        arriving = _rows(
            gradient_base, first, gradient_stride, offsets_m, offsets_e, query_length, MASKED, VALUE_HEAD_DIM,
            BLOCK_VALUE,
        )  # fmt: skip
        to_values = tl.dot(weights.to(arriving.dtype), arriving, to_values, input_precision=PRECISION)
        to_weights = tl.dot(values, tl.trans(arriving), input_precision=PRECISION)
        to_scores = weights * (to_weights - mean[None, :])
        to_keys = tl.dot(to_scores.to(queries.dtype), queries, to_keys, input_precision=PRECISION)
    return to_keys, to_values


@jit
def backward_keys(
    q, k, v, gradient, logarithms, means, to_k, to_v, positions, documents, table, blocks, counts,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    g_batch_stride, g_head_stride, g_row_stride,
    tk_batch_stride, tk_head_stride, tk_row_stride,
    tv_batch_stride, tv_head_stride, tv_row_stride,
    places_stride, lists_stride, most, num_key_value_heads, query_length, key_length, scale_log2, scale,
    GROUP: tl.constexpr, PATTERN: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values of one head, from all heads of queries that share it."""
    tiles = tl.cdiv(key_length, BLOCK_KEYS)
    tile = tl.program_id(0) % tiles
    head_of_batch = tl.program_id(0) // tiles
    batch = tl.cast(head_of_batch // num_key_value_heads, tl.int64)
    key_head = tl.cast(head_of_batch % num_key_value_heads, tl.int64)
    first_key = tile * BLOCK_KEYS
    offsets_n = tl.arange(0, BLOCK_KEYS)
    offsets_d = tl.arange(0, BLOCK_HEAD)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    if positions is not None:
        positions += batch * places_stride
    if documents is not None:
        documents += batch * places_stride
    columns, column_documents = _placed(first_key + offsets_n, key_length, positions, documents)
    keys = _rows(
        k + batch * k_batch_stride + key_head * k_head_stride, first_key, k_row_stride, offsets_n, offsets_d,
        key_length, True, HEAD_DIM, BLOCK_HEAD,
    )  # fmt: skip
    values = _rows(
        v + batch * v_batch_stride + key_head * v_head_stride, first_key, v_row_stride, offsets_n, offsets_e,
        key_length, True, VALUE_HEAD_DIM, BLOCK_VALUE,
    )  # fmt: skip
    to_keys = tl.zeros((BLOCK_KEYS, BLOCK_HEAD), tl.float32)
    to_values = tl.zeros((BLOCK_KEYS, BLOCK_VALUE), tl.float32)
    listed = batch * lists_stride + tile
    blocks += listed * most
    whole = tl.load(counts + 2 * listed)
    visited = tl.load(counts + 2 * listed + 1)
    for member in range(GROUP):
        head = key_head * GROUP + member
        row = (batch * num_key_value_heads * GROUP + head) * query_length
        query_base = q + batch * q_batch_stride + head * q_head_stride
        gradient_base = gradient + batch * g_batch_stride + head * g_head_stride
        to_keys, to_values = _gather_queries(
            to_keys, to_values, keys, values, columns, column_documents, query_base, gradient_base, q_row_stride,
            g_row_stride, logarithms + row, means + row, positions, documents, table, blocks, 0, whole,
            query_length, key_length, scale_log2,
            False, PATTERN, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_QUERIES, PRECISION,
        )  # fmt: skip
        to_keys, to_values = _gather_queries(
            to_keys, to_values, keys, values, columns, column_documents, query_base, gradient_base, q_row_stride,
            g_row_stride, logarithms + row, means + row, positions, documents, table, blocks, whole, visited,
            query_length, key_length, scale_log2,
            True, PATTERN, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_QUERIES, PRECISION,
        )  # fmt: skip
    _store(
        to_k + batch * tk_batch_stride + key_head * tk_head_stride, first_key, tk_row_stride, offsets_n, offsets_d,
        key_length, to_keys * scale, HEAD_DIM,
    )  # fmt: skip
    _store(
        to_v + batch * tv_batch_stride + key_head * tv_head_stride, first_key, tv_row_stride, offsets_n, offsets_e,
        key_length, to_values, VALUE_HEAD_DIM,
    )  # fmt: skip


@jit
def _gather_keys(
    to_queries, queries, arriving, logarithm, mean, rows, row_documents, key_base, value_base, key_stride, value_stride,
    positions, documents, table, blocks, start, stop, key_length, scale_log2,
    MASKED: tl.constexpr, PATTERN: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the listed blocks of keys, from ``start`` to ``stop``, add to the gradients of a tile of queries."""
    offsets_n = tl.arange(0, BLOCK_KEYS)
    offsets_d = tl.arange(0, BLOCK_HEAD)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    for index in range(start, stop):
        first = tl.load(blocks + index) * BLOCK_KEYS
        keys = _rows(key_base, first, key_stride, offsets_n, offsets_d, key_length, MASKED, HEAD_DIM, BLOCK_HEAD)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale_log2
        weights = tl.exp2(scores - logarithm[:, None])
        if MASKED:
            indices = first + offsets_n
            columns, column_documents = _placed(indices, key_length, positions, documents)
            seen = _sees(rows[:, None], columns[None, :], table, PATTERN) & (indices < key_length)[None, :]
            if documents is not None:
                seen = seen & (row_documents[:, None] == column_documents[None, :])
            weights = tl.where(seen, weights, 0.0)
        values = _rows(
            value_base, first, value_stride, offsets_n, offsets_e, key_length, MASKED, VALUE_HEAD_DIM, BLOCK_VALUE
        )
        to_weights = tl.dot(arriving, tl.trans(values), input_precision=PRECISION)
        to_scores = weights * (to_weights - mean[:, None])
        to_queries = tl.dot(to_scores.to(keys.dtype), keys, to_queries, input_precision=PRECISION)
    return to_queries


@jit
def backward_queries(
    q, k, v, gradient, logarithms, means, to_q, positions, documents, table, blocks, counts,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    g_batch_stride, g_head_stride, g_row_stride,
    tq_batch_stride, tq_head_stride, tq_row_stride,
    places_stride, lists_stride, most, num_attention_heads, query_length, key_length, scale_log2, scale,
    GROUP: tl.constexpr, PATTERN: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries of one head."""
    tiles = tl.cdiv(query_length, BLOCK_QUERIES)
    tile = tiles - 1 - tl.program_id(0) % tiles
    head_of_batch = tl.program_id(0) // tiles
    batch = tl.cast(head_of_batch // num_attention_heads, tl.int64)
    head = tl.cast(head_of_batch % num_attention_heads, tl.int64)
    first_query = tile * BLOCK_QUERIES
    offsets_m = tl.arange(0, BLOCK_QUERIES)
    offsets_d = tl.arange(0, BLOCK_HEAD)
    if positions is not None:
        positions += batch * places_stride
    if documents is not None:
        documents += batch * places_stride
    rows, row_documents = _placed(key_length - query_length + first_query + offsets_m, key_length, positions, documents)
    queries = _rows(
        q + batch * q_batch_stride + head * q_head_stride, first_query, q_row_stride, offsets_m, offsets_d,
        query_length, True, HEAD_DIM, BLOCK_HEAD,
    )  # fmt: skip
    arriving = _rows(
        gradient + batch * g_batch_stride + head * g_head_stride, first_query, g_row_stride, offsets_m,
        tl.arange(0, BLOCK_VALUE), query_length, True, VALUE_HEAD_DIM, BLOCK_VALUE,
    )  # fmt: skip
    row = tl.cast(head_of_batch, tl.int64) * query_length + first_query + offsets_m
    present = first_query + offsets_m < query_length
    logarithm = tl.load(logarithms + row, mask=present, other=0.0)
    mean = tl.load(means + row, mask=present, other=0.0)
    key_base = k + batch * k_batch_stride + head // GROUP * k_head_stride
    value_base = v + batch * v_batch_stride + head // GROUP * v_head_stride
    to_queries = tl.zeros((BLOCK_QUERIES, BLOCK_HEAD), tl.float32)
    listed = batch * lists_stride + tile
    blocks += listed * most
    whole = tl.load(counts + 2 * listed)
    visited = tl.load(counts + 2 * listed + 1)
    to_queries = _gather_keys(
        to_queries, queries, arriving, logarithm, mean, rows, row_documents, key_base, value_base, k_row_stride,
        v_row_stride, positions, documents, table, blocks, 0, whole, key_length, scale_log2,
        False, PATTERN, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
    )  # fmt: skip
    to_queries = _gather_keys(
        to_queries, queries, arriving, logarithm, mean, rows, row_documents, key_base, value_base, k_row_stride,
        v_row_stride, positions, documents, table, blocks, whole, visited, key_length, scale_log2,
        True, PATTERN, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
    )  # fmt: skip
    _store(
        to_q + batch * tq_batch_stride + head * tq_head_stride, first_query, tq_row_stride, offsets_m, offsets_d,
        query_length, to_queries * scale, HEAD_DIM,
    )  # fmt: skip
