"""Causal attention behind a mask of any pattern, fused so that no score leaves the chip: forward and backward.

The kernels are in :mod:`runners.kernels.attention_passes`, and which blocks of the square they visit is listed by
:mod:`runners.kernels.attention_blocks`: their time follows the density of the mask. For the backward pass queries,
keys, values, the output and the log-sum-exp of each row of scores are kept.

Shapes, everywhere: ``q`` (batch, num_attention_heads, query_length, head_dim), ``k`` (batch, num_key_value_heads,
key_length, head_dim), ``v`` (batch, num_key_value_heads, key_length, value_head_dim). Queries are the *last*
``query_length`` positions of the keys, so that a cache may precede them. ``sinks`` (num_attention_heads,) are learned
logits of a key without a value (arXiv:2508.10925); ``places`` says where keys stand, where not one behind the other
from 0 on, and in which document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from planner.components.patterns import CAUSAL, MaskPattern
from runners.kernels.attention_blocks import Places, Tiles, Visits, block_table, blocks_seen, visits
from runners.kernels.attention_passes import backward_keys, backward_queries, forward, weighted_gradients
from runners.kernels.base import (
    TRITON_DTYPES,
    BenchmarkCase,
    CompileVariant,
    Kernel,
    KernelUnsupported,
    Launch,
    architecture_of,
    ceiling_division,
    launch_obstacle,
    next_power_of_two,
    shared_memory_limit_bytes,
)

NAME = "causal_attention"
LARGEST_HEAD_DIM = 256
LOG2_E = 1.4426950408889634


def launch_for(function: str, head_dim: int, value_head_dim: int, dtype_bytes: int, architecture: int) -> Launch:
    """Block sizes and warps of a pass that spill nothing on the architecture: smaller for wide heads and wide types."""
    width = max(next_power_of_two(head_dim), next_power_of_two(value_head_dim), 16)
    if function == "weighted_gradients":
        return Launch({"BLOCK_QUERIES": 64 if width <= 64 else 4096 // width}, 4)
    if function == "forward":
        queries, keys, warps, stages = _forward_blocks(width, dtype_bytes, architecture, value_head_dim <= 128)
    else:
        pick = _keys_blocks if function == "backward_keys" else _queries_blocks
        queries, keys, warps, stages = pick(width, dtype_bytes, architecture)
    while stages > 1 and _shared_bytes(queries, keys, width, dtype_bytes, stages) > shared_memory_limit_bytes(
        architecture
    ):
        stages -= 1
    return Launch({"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys}, warps, stages)


def _forward_blocks(width: int, dtype_bytes: int, architecture: int, narrow_values: bool) -> tuple[int, int, int, int]:
    # sm_90, sm_100 and sm_103 multiply from shared memory; elsewhere (sm_120 too) the operands take registers.
    multiplies_from_shared_memory = 90 <= architecture < 120
    if dtype_bytes == 4:
        queries, keys, warps = (32, 32, 8) if width <= 64 else (16, 16, 8 if width <= 128 else 4)
    elif architecture == 90 and width <= 128:
        queries, keys, warps = 64, 64, 4  # the fastest of ten on an H200, by timings
    elif width <= 64:
        # On sm_100, without a window, 64 keys a block spill.
        queries, keys, warps = 128, 32 if 100 <= architecture < 120 else 64, 8
    elif width <= 128:
        queries, keys, warps = (64, 64, 8) if multiplies_from_shared_memory else (64, 32, 4)
    else:
        # On sm_100, heads of 192 beside values of 128 spill with eight warps, and those of 256 on both sides with four.
        queries, keys, warps = 64, 32, 4 if 100 <= architecture < 120 and narrow_values else 8
    return queries, keys, warps, 3 if architecture == 90 and dtype_bytes == 2 and width <= 128 else 2


def _keys_blocks(width: int, dtype_bytes: int, architecture: int) -> tuple[int, int, int, int]:
    if dtype_bytes == 4 and width <= 128:
        return (32, 32, 8, 2) if width <= 64 else (16, 32 if architecture == 90 else 16, 8, 2)
    if dtype_bytes == 4:
        return 16, 16, 8, 1 if architecture < 90 else 2
    # Two running sums of (keys, width) take registers, so that few queries are read at a time.
    if width <= 64:
        return 32, 64 if 100 <= architecture < 120 else 128, 8, 2
    return (32, 128 if architecture == 90 else 64, 8, 2) if width <= 128 else (32, 32, 8, 2)


def _queries_blocks(width: int, dtype_bytes: int, architecture: int) -> tuple[int, int, int, int]:
    if dtype_bytes == 4:
        return (32, 32, 8, 2) if width <= 64 else (16, 16, 4 if architecture < 90 and width > 128 else 8, 2)
    if width <= 64:
        return 64, 64, 4 if architecture == 90 else 8, 2
    if width <= 128:
        return 128 if architecture == 90 else 64, 64, 8, 2
    return 64 if shared_memory_limit_bytes(architecture) > 128 * 1024 else 32, 32, 8, 2


def _shared_bytes(queries: int, keys: int, width: int, dtype_bytes: int, stages: int) -> int:
    return dtype_bytes * width * (queries + 2 * keys * stages)


def refused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: MaskPattern = CAUSAL,
    sinks: Tensor | None = None,
    places: Places | None = None,
) -> str | None:
    """Why the kernel does not take these tensors, or ``None``. It would read past their ends if shapes disagreed."""
    others = [part for part in (sinks, *(places or ())) if part is not None]
    obstacle = launch_obstacle(q, k, v, *(part for part in others if part.is_floating_point()))
    if obstacle is not None:
        return obstacle
    for field in MaskPattern.__dataclass_fields__:
        size = getattr(pattern, field)
        if field not in ("block_offsets", "random_seed") and size is not None and size < 1:
            return f"{field} is {size}, and no mask has less than 1"
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
    if sinks is not None and sinks.shape != q.shape[1:2]:
        return f"sinks of shape {tuple(sinks.shape)} are not one for each of {q.shape[1]} heads"
    for part in places or ():
        if part is not None and tuple(part.shape) not in ((1, k.shape[2]), (k.shape[0], k.shape[2])):
            return f"places of shape {tuple(part.shape)} are not those of {k.shape[2]} keys"
    if pattern.random_blocks is not None and places is not None and places.documents is None:
        return "blocks that are drawn are those of positions without gaps"
    if any(part.device != q.device for part in others):
        return "sinks and places are not on the device of the queries"
    return None


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pattern: MaskPattern = CAUSAL,
    sinks: Tensor | None = None,
    places: Places | None = None,
) -> Tensor:
    """Plain PyTorch, the whole square: what the kernel is held against."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * scale
    scores = scores.masked_fill(~mask_of(q, k, pattern, places), float("-inf"))
    if sinks is not None:
        beside = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, beside), -1)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, -1, dtype=wide)[..., : k.shape[2]]
    return weights.to(q.dtype) @ v


def eager(q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: MaskPattern = CAUSAL) -> Tensor:
    """PyTorch's scaled dot product attention."""
    whole = pattern.is_causal and q.shape[2] == k.shape[2]
    return dot_product_attention(q, k, v, scale, None if whole else mask_of(q, k, pattern))


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """PyTorch's scaled dot product attention by a fused kernel; ``None`` is the causal mask over equal positions, and a
    single query sees all."""
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype not in (torch.float16, torch.bfloat16)):
        # On CUDA only kernels for half precision without a mask take groups: with others, PyTorch would keep the whole
        # square of scores of every head.
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, scale=scale, enable_gqa=grouped
    )


def mask_of(q: Tensor, k: Tensor, pattern: MaskPattern, places: Places | None = None) -> Tensor:
    """Which keys each query sees: (queries, keys) of bool, or (1 or batch, 1, queries, keys) where places are given."""
    if places is None:
        positions = torch.arange(k.shape[2], device=q.device)
        plain: Tensor = pattern.sees(positions[-q.shape[2] :, None], positions[None, :])
        return plain
    positions, documents = places
    seen: Tensor = pattern.sees(positions[:, None, -q.shape[2] :, None], positions[:, None, None, :])
    if documents is not None:
        seen = seen & (documents[:, None, -q.shape[2] :, None] == documents[:, None, None, :])
    return seen


class _Case(NamedTuple):
    """What the kernels are told beside queries, keys and values."""

    pattern: MaskPattern
    scale: float
    places: Places | None

    def constants(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
        return _constants(q.shape[-1], v.shape[-1], q.shape[1] // k.shape[1], self.pattern, q.dtype)

    def listed(
        self, q: Tensor, k: Tensor, launch: Launch, by_keys: bool = False
    ) -> tuple[Visits, int, tuple[int, int, int]]:
        """Visited blocks, how many rows of them there are, and the strides of places and of lists and their length."""
        blocks = launch.blocks
        tiles = Tiles(q.shape[2], k.shape[2], blocks["BLOCK_QUERIES"], blocks["BLOCK_KEYS"])
        lists = visits(self.pattern, tiles, self.places, by_keys, q.device)
        rows, most = lists.blocks.shape[1:]
        places_stride = 0 if self.places is None or self.places.positions.shape[0] == 1 else k.shape[2]
        return lists, rows, (places_stride, 0 if lists.blocks.shape[0] == 1 else rows, most)

    def where(self, k: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Positions, documents, and the table of blocks that see others."""
        table = block_table(self.pattern, k.shape[2], k.device) if blocks_seen(self.pattern) else None
        return (None, None, table) if self.places is None else (*self.places, table)


def _constants(
    head_dim: int, value_head_dim: int, group: int, pattern: MaskPattern, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "GROUP": group,
        "PATTERN": (
            pattern.sliding_window,
            pattern.dilation or 1,
            pattern.attention_chunk_size,
            pattern.previous_chunks or 0,
            pattern.chunk_summaries,
            pattern.global_tokens,
            pattern.stride,
            pattern.block_size,
            blocks_seen(pattern),
            blocks_seen(pattern) if pattern.random_blocks else 0,
        ),
        "HEAD_DIM": head_dim,
        "VALUE_HEAD_DIM": value_head_dim,
        "BLOCK_HEAD": max(16, next_power_of_two(head_dim)),
        "BLOCK_VALUE": max(16, next_power_of_two(value_head_dim)),
        # fp32 products keep their precision: TF32 would lose thirteen bits.
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }


def _laid_out_by_positions(like: Tensor, channels: int) -> Tensor:
    """An empty (batch, heads, positions, channels), positions before heads: as a projection reads it."""
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, channels).transpose(1, 2)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, case: _Case) -> Tensor:
        q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
        batch, heads, queries, head_dim = q.shape
        output = _laid_out_by_positions(q, v.shape[-1])
        logarithms = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
        launch = launch_for("forward", head_dim, v.shape[-1], q.element_size(), architecture_of(q.device))
        lists, tiles, strides = case.listed(q, k, launch)
        forward[(tiles * batch * heads,)](
            q, k, v, output, logarithms, sinks, *case.where(k), *lists,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *output.stride()[:3],
            *strides, heads, queries, k.shape[2], case.scale * LOG2_E,
            **case.constants(q, k, v), **launch.blocks, **launch.options(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, output, logarithms, sinks)
        ctx.case = case
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, logarithms, sinks = ctx.saved_tensors
        case: _Case = ctx.case
        gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
        means = _weighted_gradients(output, gradient)
        constants = case.constants(q, k, v)
        passed = q, k, v, gradient, logarithms, means
        strides = [stride for part in (q, k, v, gradient) for stride in part.stride()[:3]]
        batch, heads, queries, head_dim = q.shape
        scales = case.scale * LOG2_E, case.scale
        sizes = head_dim, v.shape[-1], q.element_size(), architecture_of(q.device)

        to_k, to_v = (_laid_out_by_positions(part, part.shape[-1]) for part in (k, v))
        launch = launch_for("backward_keys", *sizes)
        lists, tiles, further = case.listed(q, k, launch, by_keys=True)
        backward_keys[(tiles * batch * k.shape[1],)](
            *passed, to_k, to_v, *case.where(k), *lists,
            *strides, *to_k.stride()[:3], *to_v.stride()[:3],
            *further, k.shape[1], queries, k.shape[2], *scales,
            **constants, **launch.blocks, **launch.options(),
        )  # fmt: skip

        to_q = _laid_out_by_positions(q, head_dim)
        launch = launch_for("backward_queries", *sizes)
        lists, tiles, further = case.listed(q, k, launch)
        backward_queries[(tiles * batch * heads,)](
            *passed, to_q, *case.where(k), *lists,
            *strides, *to_q.stride()[:3],
            *further, heads, queries, k.shape[2], *scales,
            **constants, **launch.blocks, **launch.options(),
        )  # fmt: skip
        to_sinks = None
        if sinks is not None:
            # A sink's weight takes part in the softmax, and no value's gradient arrives at it.
            weights = torch.exp2(sinks.float()[None, :, None] * LOG2_E - logarithms)
            to_sinks = -(weights * means).sum((0, 2)).to(sinks.dtype)
        return to_q, to_k, to_v, to_sinks, None


def _weighted_gradients(output: Tensor, gradient: Tensor) -> Tensor:
    batch, heads, queries, channels = output.shape
    means = torch.empty(batch, heads, queries, dtype=torch.float32, device=output.device)
    launch = launch_for("weighted_gradients", channels, channels, 4, architecture_of(output.device))
    tiles = ceiling_division(queries, launch.blocks["BLOCK_QUERIES"])
    weighted_gradients[(tiles * batch * heads,)](
        output, gradient, means, *output.stride()[:3], *gradient.stride()[:3], heads, queries,
        VALUE_HEAD_DIM=channels, BLOCK_VALUE=max(16, next_power_of_two(channels)),
        **launch.blocks, **launch.options(),
    )  # fmt: skip
    return means


def triton_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pattern: MaskPattern = CAUSAL,
    sinks: Tensor | None = None,
    places: Places | None = None,
) -> Tensor:
    """The fused kernels; raises ``KernelUnsupported`` where they do not take the inputs."""
    reason = refused(q, k, v, pattern, sinks, places)
    if reason is not None:
        raise KernelUnsupported(NAME, reason)
    if places is not None:
        positions, documents = (None if part is None else part.to(torch.int32).contiguous() for part in places)
        assert positions is not None
        if documents is not None:
            positions, documents = torch.broadcast_tensors(positions, documents)
            documents = documents.contiguous()
        places = Places(positions.contiguous(), documents)
    result: Tensor = _CausalAttention.apply(q, k, v, sinks, _Case(pattern, scale, places))
    return result


_INTEGERS = ("positions", "documents", "table", "blocks", "counts")
_WIDE = ("logarithms", "means", "sinks")


def variants(architecture: int) -> Iterator[CompileVariant]:
    """The compilations that the default launches ask for, of the full mask and of a rich one: they differ in registers.

    bf16 over head sizes (80 is padded to 128; 192 with values of 128 is latent attention's), fp16 at one, fp32 over
    the widths at which its tiles change.
    """
    for dtype, head_dim, value_head_dim in (
        (torch.bfloat16, 64, 64), (torch.bfloat16, 80, 80), (torch.bfloat16, 128, 128), (torch.bfloat16, 192, 128),
        (torch.bfloat16, 256, 256), (torch.float16, 128, 128),
        (torch.float32, 64, 64), (torch.float32, 128, 128), (torch.float32, 256, 256),
    ):  # fmt: skip
        for function in ("forward", "backward_keys", "backward_queries"):
            for pattern in (CAUSAL, RICH):
                yield variant_for(architecture, function, dtype, head_dim, value_head_dim, pattern)
    yield variant_for(architecture, "weighted_gradients", torch.bfloat16, 128, 128, CAUSAL)


PASSES = {
    "forward": forward,
    "weighted_gradients": weighted_gradients,
    "backward_keys": backward_keys,
    "backward_queries": backward_queries,
}
RICH = MaskPattern(sliding_window=1024, global_tokens=4, stride=64)
"""A mask of several parts."""


def variant_for(
    architecture: int, function: str, dtype: torch.dtype, head_dim: int, value_head_dim: int, pattern: MaskPattern
) -> CompileVariant:
    """The compilation that a launch with these sizes asks for, four query heads a key head.

    A mask that hides something is compiled with sinks, positions and documents.
    """
    name = TRITON_DTYPES[dtype]
    compiled = PASSES[function]
    launch = launch_for(function, head_dim, value_head_dim, dtype.itemsize, architecture)
    given = _constants(head_dim, value_head_dim, 4, pattern, dtype) | dict(launch.blocks)
    given |= dict.fromkeys(("sinks", "positions", "documents") if pattern.is_causal else ())
    given |= dict.fromkeys(() if blocks_seen(pattern) else ("table",))
    parameters = compiled.arg_names
    constants = {parameter: given[parameter] for parameter in parameters if parameter in given}

    def type_of(parameter: str) -> str:
        if parameter in constants:
            return "constexpr"
        if parameter in _INTEGERS or parameter in _WIDE:
            return "*i32" if parameter in _INTEGERS else "*fp32"
        if parameter in ("scale", "scale_log2"):
            return "fp32"
        return "i32" if parameter.endswith(("_stride", "_length", "_heads")) or parameter == "most" else f"*{name}"

    signature = {parameter: type_of(parameter) for parameter in parameters}
    aligned = frozenset(parameter for parameter in parameters if parameter.endswith("_stride"))
    sizes = {"head_dim": head_dim, "value_head_dim": value_head_dim, "rich_mask": int(not pattern.is_causal)}
    return CompileVariant(NAME, compiled, name, sizes, signature, constants, launch, aligned)


def _case(length: int, pattern: MaskPattern = CAUSAL, backward: bool = False) -> BenchmarkCase:
    heads, key_heads, head_dim = 32, 8, 128

    def make(device: torch.device) -> tuple[Tensor, ...]:
        q, k, v = (
            torch.randn(1, count, length, head_dim, device=device, dtype=torch.bfloat16, requires_grad=backward)
            for count in (heads, key_heads, key_heads)
        )
        # PyTorch's kernels read the mask, and making it is not what is timed.
        return q, k, v, mask_of(q, k, pattern), torch.randn_like(q)

    def call(kernels: str, inputs: tuple[Tensor, ...]) -> object:
        q, k, v, mask, gradient = inputs
        if kernels == "triton":
            mixed = triton_causal_attention(q, k, v, head_dim**-0.5, pattern)
        else:
            mixed = dot_product_attention(q, k, v, head_dim**-0.5, None if pattern.is_causal else mask)
        return torch.autograd.grad(mixed, (q, k, v), gradient) if backward else mixed

    # Forward two products of matrices, backward five; it reads four and writes three more tensors.
    moved = 2 * head_dim * length * ((6 * heads + 6 * key_heads) if backward else (2 * heads + 2 * key_heads))
    operations = (14 if backward else 4) * heads * head_dim * pattern.attended_pairs(length)
    words = "" if pattern.is_causal else f", {pattern.words()}"
    label = f"{heads} heads, {length:,} positions{words}{', forward and backward' if backward else ''}"
    return BenchmarkCase(label, make, call, moved, operations)


BLOCKS = MaskPattern(block_size=128, block_offsets=(1, 2), random_blocks=3, global_tokens=128)
"""Blocks of 128, each of which sees two before it, the first one and three that are drawn (BigBird)."""


def benchmark_cases() -> Sequence[BenchmarkCase]:
    """Prefill of one sequence at three lengths, masks of which most is hidden, and training behind some of them."""
    window = MaskPattern(sliding_window=1024)
    strided = MaskPattern(sliding_window=128, stride=128)
    return [
        *(_case(length) for length in (1024, 4096, 16384)),
        _case(4096, window),
        *(_case(16384, pattern) for pattern in (window, BLOCKS, strided)),
        _case(4096, backward=True),
        *(_case(16384, pattern, backward=True) for pattern in (window, BLOCKS)),
    ]


KERNEL = Kernel(NAME, "fused causal attention of any pattern", variants, benchmark_cases, tensor_core=True)
