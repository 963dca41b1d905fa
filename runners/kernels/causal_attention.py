"""Causal attention with grouped queries and an optional sliding window, fused so that no score leaves the chip.

The forward pass is a Triton kernel that goes over the keys in blocks and keeps a running maximum and a running sum
(online softmax: Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867; FlashAttention-2, algorithm 1,
https://arxiv.org/abs/2307.08691). Blocks that a query tile cannot see are never loaded: those after the diagonal and
those that the window has left behind. Only blocks that the mask's edges cut through pay for masking.

The backward pass is no kernel: it saves q, k and v, runs :func:`eager` (PyTorch's scaled dot product attention) again
and differentiates that. Training therefore works, at the price of a second forward pass.

Shapes, everywhere: ``q`` (batch, num_attention_heads, query_length, head_dim), ``k`` (batch, num_key_value_heads,
key_length, head_dim), ``v`` (batch, num_key_value_heads, key_length, value_head_dim). Queries are the *last*
``query_length`` positions of the keys, so that a cache may precede them. ``sliding_window`` counts the keys that a
query attends, itself included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from runners.kernels.base import (
    TRITON_DTYPES,
    BenchmarkCase,
    CompileVariant,
    Kernel,
    KernelUnsupported,
    Launch,
    architecture_of,
    ceiling_division,
    jit,
    launch_obstacle,
    next_power_of_two,
    shared_memory_limit_bytes,
    tl,
)

NAME = "causal_attention"
LARGEST_HEAD_DIM = 256
LOG2_E = 1.4426950408889634


@jit
def _attend_blocks(
    accumulator, maximum, total, queries, key_base, value_base, key_stride, value_stride,
    rows, offsets_n, offsets_d, offsets_e, start, stop, key_length, window, scale_log2,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the key blocks in [start, stop) into the running softmax. ``rows`` are the queries' positions."""
    for first in range(start, stop, BLOCK_KEYS):
        columns = first + offsets_n
        # The base moves in 64 bits, so that long sequences of wide rows don't overflow; the tile's offsets stay in 32.
        key_block = key_base + tl.cast(first, tl.int64) * key_stride
        key_offsets = offsets_n[None, :] * key_stride + offsets_d[:, None]
        value_block = value_base + tl.cast(first, tl.int64) * value_stride
        value_offsets = offsets_n[:, None] * value_stride + offsets_e[None, :]
        if MASKED:
            inside = columns < key_length
            keys = tl.load(key_block + key_offsets, mask=inside[None, :] & (offsets_d < HEAD_DIM)[:, None], other=0.0)
        elif BLOCK_HEAD == HEAD_DIM:
            keys = tl.load(key_block + key_offsets)
        else:
            keys = tl.load(key_block + key_offsets, mask=(offsets_d < HEAD_DIM)[:, None], other=0.0)
        scores = tl.dot(queries, keys, input_precision=PRECISION) * scale_log2
        if MASKED:
            seen = (columns[None, :] <= rows[:, None]) & (columns < key_length)[None, :]
            if WINDOWED:
                seen = seen & (rows[:, None] - columns[None, :] < window)
            scores = tl.where(seen, scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        if MASKED:
            # A row may see nothing of a block at the window's edge; −inf − (−inf) would be NaN.
            reference_point = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        else:
            reference_point = new_maximum
        weights = tl.exp2(scores - reference_point[:, None])
        shrink = tl.exp2(maximum - reference_point)
        total = total * shrink + tl.sum(weights, 1)
        if MASKED:
            values = tl.load(
                value_block + value_offsets,
                mask=(columns < key_length)[:, None] & (offsets_e < VALUE_HEAD_DIM)[None, :],
                other=0.0,
            )
        elif BLOCK_VALUE == VALUE_HEAD_DIM:
            values = tl.load(value_block + value_offsets)
        else:
            values = tl.load(value_block + value_offsets, mask=(offsets_e < VALUE_HEAD_DIM)[None, :], other=0.0)
        accumulator = tl.dot(weights.to(values.dtype), values, accumulator * shrink[:, None], input_precision=PRECISION)
        maximum = new_maximum
    return accumulator, maximum, total


@jit
def _forward(
    q, k, v, output,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    o_batch_stride, o_head_stride, o_row_stride,
    num_attention_heads, query_length, key_length, window, scale_log2,
    GROUP: tl.constexpr, WINDOWED: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One query tile of one head. The grid is one-dimensional: tiles of a head follow each other, the longest first."""
    tiles = tl.cdiv(query_length, BLOCK_QUERIES)
    tile = tiles - 1 - tl.program_id(0) % tiles
    head_of_batch = tl.program_id(0) // tiles
    batch = tl.cast(head_of_batch // num_attention_heads, tl.int64)
    head = head_of_batch % num_attention_heads
    key_head = tl.cast(head // GROUP, tl.int64)
    head = tl.cast(head, tl.int64)

    first_query = tile * BLOCK_QUERIES
    offsets_m = tl.arange(0, BLOCK_QUERIES)
    offsets_n = tl.arange(0, BLOCK_KEYS)
    offsets_d = tl.arange(0, BLOCK_HEAD)
    offsets_e = tl.arange(0, BLOCK_VALUE)
    present = first_query + offsets_m < query_length
    # Position of a query among the keys: queries are the last ones.
    first_row = key_length - query_length + first_query
    rows = first_row + offsets_m

    query_block = q + batch * q_batch_stride + head * q_head_stride + tl.cast(first_query, tl.int64) * q_row_stride
    queries = tl.load(
        query_block + offsets_m[:, None] * q_row_stride + offsets_d[None, :],
        mask=present[:, None] & (offsets_d < HEAD_DIM)[None, :],
        other=0.0,
    )
    key_base = k + batch * k_batch_stride + key_head * k_head_stride
    value_base = v + batch * v_batch_stride + key_head * v_head_stride
    accumulator = tl.zeros((BLOCK_QUERIES, BLOCK_VALUE), tl.float32)
    maximum = tl.full((BLOCK_QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)

    # [low, whole) is cut by the window's edge, [whole, diagonal) is seen by every row, [diagonal, high) by some.
    high = tl.minimum(first_row + BLOCK_QUERIES, key_length)
    diagonal = (first_row + 1) // BLOCK_KEYS * BLOCK_KEYS
    low = 0
    whole = 0
    if WINDOWED:
        low = tl.maximum(first_row - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
        last_row = first_row + BLOCK_QUERIES - 1
        whole = tl.cdiv(tl.maximum(last_row - window + 1, 0), BLOCK_KEYS) * BLOCK_KEYS
        # A window narrower than the tile leaves no whole block: the edges meet.
        whole = tl.minimum(whole, high)
        diagonal = tl.maximum(diagonal, whole)
        accumulator, maximum, total = _attend_blocks(
            accumulator, maximum, total, queries, key_base, value_base, k_row_stride, v_row_stride,
            rows, offsets_n, offsets_d, offsets_e, low, whole, key_length, window, scale_log2,
            True, True, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
        )  # fmt: skip
    accumulator, maximum, total = _attend_blocks(
        accumulator, maximum, total, queries, key_base, value_base, k_row_stride, v_row_stride,
        rows, offsets_n, offsets_d, offsets_e, whole, diagonal, key_length, window, scale_log2,
        False, WINDOWED, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
    )  # fmt: skip
    accumulator, maximum, total = _attend_blocks(
        accumulator, maximum, total, queries, key_base, value_base, k_row_stride, v_row_stride,
        rows, offsets_n, offsets_d, offsets_e, diagonal, high, key_length, window, scale_log2,
        True, WINDOWED, HEAD_DIM, VALUE_HEAD_DIM, BLOCK_HEAD, BLOCK_VALUE, BLOCK_KEYS, PRECISION,
    )  # fmt: skip

    output_block = (
        output + batch * o_batch_stride + head * o_head_stride + tl.cast(first_query, tl.int64) * o_row_stride
    )
    tl.store(
        output_block + offsets_m[:, None] * o_row_stride + offsets_e[None, :],
        (accumulator / total[:, None]).to(output.dtype.element_ty),
        mask=present[:, None] & (offsets_e < VALUE_HEAD_DIM)[None, :],
    )


def launch_for(head_dim: int, value_head_dim: int, dtype_bytes: int, architecture: int) -> Launch:
    """Block sizes and warps that spill nothing on the architecture: smaller tiles for wide heads and wide types."""
    width = max(next_power_of_two(head_dim), next_power_of_two(value_head_dim), 16)
    # sm_90, sm_100 and sm_103 multiply from shared memory; elsewhere (sm_120 too) the operands take registers.
    multiplies_from_shared_memory = 90 <= architecture < 120
    if dtype_bytes == 4:
        queries, keys, warps = (32, 32, 8) if width <= 64 else (32, 16, 8) if width <= 128 else (16, 16, 4)
    elif architecture == 90 and width <= 128:
        queries, keys, warps = 64, 64, 4  # the fastest of ten on an H200, by timings
    elif width <= 64:
        # On sm_100, without a window, 64 keys a block spill.
        queries, keys, warps = 128, 32 if 100 <= architecture < 120 else 64, 8
    elif width <= 128:
        queries, keys, warps = (64, 64, 8) if multiplies_from_shared_memory else (64, 32, 4)
    else:
        queries, keys, warps = 64, 32, 8
    stages = 3 if architecture == 90 and dtype_bytes == 2 and width <= 128 else 2
    while stages > 1 and _shared_bytes(queries, keys, width, dtype_bytes, stages) > shared_memory_limit_bytes(
        architecture
    ):
        stages -= 1
    return Launch({"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys}, warps, stages)


def _shared_bytes(queries: int, keys: int, width: int, dtype_bytes: int, stages: int) -> int:
    return dtype_bytes * width * (queries + 2 * keys * stages)


def refused(q: Tensor, k: Tensor, v: Tensor, sliding_window: int | None = None) -> str | None:
    """Why the kernel does not take these tensors, or ``None``. It would read past their ends if shapes disagreed."""
    obstacle = launch_obstacle(q, k, v)
    if obstacle is not None:
        return obstacle
    if sliding_window is not None and sliding_window < 1:
        return f"a sliding window of {sliding_window} leaves a query without a key"
    if max(q.shape[-1], v.shape[-1]) > LARGEST_HEAD_DIM:
        return f"heads of {max(q.shape[-1], v.shape[-1])} channels are wider than {LARGEST_HEAD_DIM}"
    if not (q.dtype == k.dtype == v.dtype):
        return "queries, keys and values are of different types"
    if q.shape[1] % k.shape[1]:
        return f"{q.shape[1]} query heads cannot share {k.shape[1]} KV heads evenly"
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        return f"the shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)} do not belong together"
    if q.shape[2] > k.shape[2]:
        return "there are more queries than keys"
    return None


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float, sliding_window: int | None = None) -> Tensor:
    """Plain PyTorch, the whole square: what the kernel is held against."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * scale
    scores = scores.masked_fill(~_mask(q, k, sliding_window), float("-inf"))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, -1, dtype=wide).to(q.dtype) @ v


def eager(q: Tensor, k: Tensor, v: Tensor, scale: float, sliding_window: int | None = None) -> Tensor:
    """PyTorch's scaled dot product attention."""
    whole = sliding_window is None and q.shape[2] == k.shape[2]
    return dot_product_attention(q, k, v, scale, None if whole else _mask(q, k, sliding_window))


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """PyTorch's scaled dot product attention by a fused kernel; ``None`` is the causal mask over equal positions."""
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype not in (torch.float16, torch.bfloat16)):
        # On CUDA only kernels for half precision without a mask take groups: with others, PyTorch would keep the whole
        # square of scores of every head.
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _mask(q: Tensor, k: Tensor, sliding_window: int | None) -> Tensor:
    rows = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)[:, None]
    columns = torch.arange(k.shape[2], device=q.device)[None, :]
    seen = columns <= rows
    return seen if sliding_window is None else seen & (rows - columns < sliding_window)


def _constants(head_dim: int, value_head_dim: int, group: int, windowed: bool, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "GROUP": group,
        "WINDOWED": windowed,
        "HEAD_DIM": head_dim,
        "VALUE_HEAD_DIM": value_head_dim,
        "BLOCK_HEAD": max(16, next_power_of_two(head_dim)),
        "BLOCK_VALUE": max(16, next_power_of_two(value_head_dim)),
        # fp32 products keep their precision: TF32 would lose thirteen bits.
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, sliding_window: int | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.sliding_window = scale, sliding_window
        batch, heads, queries, head_dim = q.shape
        q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
        output = torch.empty(batch, heads, queries, v.shape[-1], dtype=q.dtype, device=q.device)
        launch = launch_for(head_dim, v.shape[-1], q.element_size(), architecture_of(q.device))
        tiles = ceiling_division(queries, launch.blocks["BLOCK_QUERIES"])
        _forward[(tiles * batch * heads,)](
            q, k, v, output,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *output.stride()[:3],
            heads, queries, k.shape[2], sliding_window or 0, scale * LOG2_E,
            **_constants(head_dim, v.shape[-1], heads // k.shape[1], sliding_window is not None, q.dtype),
            **launch.blocks, **launch.options(),
        )  # fmt: skip
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [part.detach().requires_grad_() for part in ctx.saved_tensors]
        with torch.enable_grad():
            q, k, v = inputs
            again = eager(q, k, v, ctx.scale, ctx.sliding_window)
        return (*torch.autograd.grad(again, inputs, gradient), None, None)


def triton_causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, sliding_window: int | None = None) -> Tensor:
    """The fused kernel; raises ``KernelUnsupported`` where it does not take the inputs."""
    reason = refused(q, k, v, sliding_window)
    if reason is not None:
        raise KernelUnsupported(NAME, reason)
    result: Tensor = _CausalAttention.apply(q, k, v, scale, sliding_window)
    return result


_POINTERS = ("q", "k", "v", "output")
_STRIDES = tuple(f"{part}_{axis}_stride" for part in "qkvo" for axis in ("batch", "head", "row"))


def variants(architecture: int) -> Iterator[CompileVariant]:
    """The compilations that the default launches ask for, each with a window and without: they differ in registers.

    bf16 over head sizes (80 is padded to 128; 192 with values of 128 is latent attention's), fp16 at one, fp32 over
    the widths at which its tiles change.
    """
    for dtype, head_dim, value_head_dim in (
        (torch.bfloat16, 64, 64), (torch.bfloat16, 80, 80), (torch.bfloat16, 128, 128), (torch.bfloat16, 192, 128),
        (torch.bfloat16, 256, 256), (torch.float16, 64, 64), (torch.float16, 128, 128),
        (torch.float32, 64, 64), (torch.float32, 128, 128), (torch.float32, 256, 256),
    ):  # fmt: skip
        for windowed in (False, True):
            yield variant_for(architecture, dtype, head_dim, value_head_dim, windowed)


def variant_for(
    architecture: int, dtype: torch.dtype, head_dim: int, value_head_dim: int, windowed: bool
) -> CompileVariant:
    """The compilation that a launch with these sizes asks for, four query heads a key head."""
    name = TRITON_DTYPES[dtype]
    launch = launch_for(head_dim, value_head_dim, dtype.itemsize, architecture)
    constants = _constants(head_dim, value_head_dim, 4, windowed, dtype) | dict(launch.blocks)
    signature = {pointer: f"*{name}" for pointer in _POINTERS}
    signature |= dict.fromkeys((*_STRIDES, "num_attention_heads", "query_length", "key_length", "window"), "i32")
    signature |= {"scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    sizes = {"head_dim": head_dim, "value_head_dim": value_head_dim, "windowed": int(windowed)}
    return CompileVariant(NAME, _forward, name, sizes, signature, constants, launch, frozenset(_STRIDES))


def _case(length: int, sliding_window: int | None = None) -> BenchmarkCase:
    heads, key_heads, head_dim = 32, 8, 128

    def make(device: torch.device) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(1, count, length, head_dim, device=device, dtype=torch.bfloat16)
            for count in (heads, key_heads, key_heads)
        )

    def call(kernels: str, inputs: tuple[Tensor, ...]) -> Tensor:
        run: Any = {"reference": reference, "eager": eager, "triton": triton_causal_attention}[kernels]
        return run(*inputs, head_dim**-0.5, sliding_window)

    moved = 2 * head_dim * length * (2 * heads + 2 * key_heads)
    unseen = 0 if sliding_window is None else max(0, length - sliding_window)
    pairs = (length * (length + 1) - unseen * (unseen + 1)) // 2
    label = f"{heads} heads, {length:,} positions" + (f", window {sliding_window:,}" if sliding_window else "")
    return BenchmarkCase(label, make, call, moved, 4 * heads * head_dim * pairs)


def benchmark_cases() -> Sequence[BenchmarkCase]:
    """Prefill of one sequence at three lengths, and behind a window."""
    return [*(_case(length) for length in (1024, 4096, 16384)), _case(4096, sliding_window=1024)]


KERNEL = Kernel(NAME, "fused causal attention, forward", variants, benchmark_cases, tensor_core=True)
