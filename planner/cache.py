"""What generation keeps between tokens: keys and values, latents, states and convolution inputs.

Two numbers are told apart. ``ideal`` is what the tensors themselves hold, and what a model that appends to them keeps.
``allocated`` is what an engine with paged memory sets aside for them: positions in blocks, of which each sequence fills
its own (PagedAttention; Kwon et al. 2023, arXiv:2309.06180). Whether a windowed layer frees the blocks that its window
has left is the engine's choice, and a field of the plan. States and convolution inputs are not paged.

Quantized formats store keys, values and latents alone: states stay in 16 bits, as engines give them a type of their
own (``mamba_cache_dtype`` in vLLM, ``mamba_ssm_cache_dtype`` in TensorRT-LLM). A layer that shares the keys and values
of another has no entries, so that shared ones are counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from planner.components.base import CacheEntry
from planner.errors import UnsupportedPlan
from planner.quantities import Quantity, ceiling_divide, floor_divide, product, rounded_up, smallest
from planner.sizing import layer_components
from planner.spec import ArchitectureSpec

WindowedPages = Literal["window", "context"]
"""Blocks of a layer that sees a window or a chunk: those that still hold a visible key, or those of all the context.

``window``: vLLM's hybrid KV cache manager (docs.vllm.ai, "Hybrid KV Cache Manager") and TensorRT-LLM's pools by window
size. ``context``: vLLM with ``--disable-hybrid-kv-cache-manager``, which gives such layers the blocks of full ones."""

BLOCK_SIZE = 16
"""Tokens a block, as vLLM has them on CUDA unless told otherwise; SGLang has 1 and TensorRT-LLM 32."""


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """How a cached key or value is written."""

    bits: int
    """Of one element; rows of four bits end on a whole byte."""
    vector_scale_bytes: int
    """Beside each key and each value of a token and KV head."""
    state_bytes: int
    """Of one element of a state or a convolution input."""
    scheme: str
    """The scheme and the engine that documents it."""


_PER_TENSOR = (
    "one fp32 scale for all keys and one for all values of a layer, kept with the weights and not counted here"
)
_PER_TOKEN_HEAD = "made for each token and KV head as it is written, apart for keys and values"
_VLLM = "vLLM, docs.vllm.ai, features/quantization/quantized_kvcache"

CACHE_FORMATS: dict[str, CacheFormat] = {
    "fp32": CacheFormat(32, 0, 4, "plain fp32"),
    "bf16": CacheFormat(16, 0, 2, "plain bf16"),
    "fp16": CacheFormat(16, 0, 2, "plain fp16"),
    "fp8": CacheFormat(8, 0, 2, f"fp8 per tensor: {_PER_TENSOR} ({_VLLM})"),
    "int8": CacheFormat(
        8, 0, 2, f"int8 per tensor: {_PER_TENSOR} (TensorRT-LLM, reference/precision, INT8/FP8 KV cache)"
    ),
    "fp8_per_token_head": CacheFormat(8, 4, 2, f"fp8 per token and head: an fp32 scale {_PER_TOKEN_HEAD} ({_VLLM})"),
    "int8_per_token_head": CacheFormat(8, 4, 2, f"int8 per token and head: an fp32 scale {_PER_TOKEN_HEAD} ({_VLLM})"),
    "int4_per_token_head": CacheFormat(
        4,
        4,
        2,
        f"int4 per token and head, two a byte: a scale and a zero point in 16 bits each, {_PER_TOKEN_HEAD} "
        "(LMDeploy, quantization/kv_quant; vLLM sets aside the same four bytes)",
    ),
}
"""Formats by the name that the plan has for them."""


def cache_format(dtype: str) -> CacheFormat:
    """A format by its name, or ``UnsupportedPlan``."""
    if dtype not in CACHE_FORMATS:
        raise UnsupportedPlan.of(
            f"No cache of type {dtype!r} is modelled.",
            path="cache_dtype",
            remedy=f"Choose one of {', '.join(CACHE_FORMATS)}.",
            code="unsupported_cache_dtype",
        )
    return CACHE_FORMATS[dtype]


def formats_for(spec: ArchitectureSpec) -> tuple[str, ...]:
    """Names of the formats that this design's cache can have: where latents are kept, none with a scale a head."""
    has_latents = any(entry.grows and len(entry.shape) < 3 for _, _, entry in model_cache(spec, 1))
    return tuple(name for name, each in CACHE_FORMATS.items() if not (has_latents and each.vector_scale_bytes))


def entry_bytes(entry: CacheEntry, dtype: str) -> Quantity:
    """Bytes of a cached tensor of one sequence, its scales included."""
    written = cache_format(dtype)
    if not entry.grows:
        return entry.elements * written.state_bytes
    return _element_bytes(entry, written) + scale_bytes(entry, dtype)


def _element_bytes(entry: CacheEntry, written: CacheFormat) -> Quantity:
    if written.bits == 4:
        return product(entry.shape[:-1]) * ceiling_divide(entry.shape[-1], 2)
    return entry.elements * (written.bits // 8)


def scale_bytes(entry: CacheEntry, dtype: str) -> Quantity:
    """Bytes of the scales that stand beside a cached tensor."""
    written = cache_format(dtype)
    if not entry.grows or written.vector_scale_bytes == 0:
        return 0
    if len(entry.shape) < 3:
        raise UnsupportedPlan.of(
            f"No engine documents a scale for each token and head of what has no heads ({entry.name}).",
            path="cache_dtype",
            remedy="Choose bf16 or fp8.",
            code="unsupported_cache_dtype",
        )
    return product(entry.shape[:-1]) * written.vector_scale_bytes


def allocated_entry(entry: CacheEntry, block_size: Quantity, windowed_pages: WindowedPages) -> CacheEntry:
    """The entry with the positions that its blocks hold; what does not grow is not paged.

    A window may begin amid a block: where its blocks are freed behind it, it holds at most one more than fit into it.
    So does each run of positions that is kept apart from it.
    """
    if not entry.grows:
        return entry
    *heads, kept, channels = entry.shape
    if entry.reserved is None:
        positions = rounded_up(kept, block_size)
    else:
        positions = rounded_up(entry.reserved, block_size)
        if windowed_pages == "window":
            pieces = 1 if entry.runs is None else 1 + entry.runs
            held = floor_divide(kept + pieces * 2 * (block_size - 1), block_size)
            positions = smallest(positions, held * block_size)
    return replace(entry, shape=(*heads, positions, channels))


def model_cache(spec: ArchitectureSpec, context_length: Quantity) -> Iterator[tuple[str, Quantity, CacheEntry]]:
    """Cached tensors of one sequence: where, how many times, and the shape of each."""
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            for part, component in layer_components(spec, layer):
                for entry in component.cache(spec.hidden_size, context_length):
                    yield f"layer_groups[{group_index}].layers[{layer_index}].{part}", group.repeats, entry


def cache_bytes(
    spec: ArchitectureSpec, context_length: Quantity, batch_size: Quantity = 1, dtype: str = "bf16"
) -> Quantity:
    """Bytes of KV, latent, convolution and state cache for ``batch_size`` sequences of ``context_length`` tokens.

    The ideal: what the tensors hold, with the scales beside them. What an engine sets aside is :func:`cache_use`'s.
    """
    cache_format(dtype)
    total: Quantity = 0
    for _, times, entry in model_cache(spec, context_length):
        total = total + times * entry_bytes(entry, dtype)
    return total * batch_size


@dataclass(frozen=True, slots=True)
class CacheUse:
    """A cache as its tensors hold it, and as an engine sets memory aside for it; in bytes."""

    ideal_bytes: Quantity
    allocated_bytes: Quantity
    scale_bytes: Quantity
    """Of the ideal: the scales beside keys and values."""
    state_bytes: Quantity
    """Of the ideal: states and convolution inputs, which are not paged."""
    scheme: str
    """How keys and values are written, and who documents it."""
    assumption: str
    """What is taken of the engine's blocks."""
    status: str = "exact"
    allocated_status: str = "modelled"


def assumption_text(block_size: Quantity, windowed_pages: WindowedPages) -> str:
    """What is taken of the engine's blocks, in words."""
    freed = (
        "a layer with a window keeps the blocks that the window touches wherever it begins (window)"
        if windowed_pages == "window"
        else "a layer with a window has the blocks of the whole context (context)"
    )
    return f"Blocks of {block_size} tokens, each of one sequence; {freed}; states are not paged."


def cache_use(
    spec: ArchitectureSpec,
    context_length: Quantity,
    batch_size: Quantity = 1,
    dtype: str = "bf16",
    block_size: Quantity = BLOCK_SIZE,
    windowed_pages: WindowedPages = "window",
    entries: Iterable[tuple[Quantity, CacheEntry]] | None = None,
) -> CacheUse:
    """Ideal and allocated bytes of ``batch_size`` sequences; works on all three readings.

    ``entries`` are the cached tensors of one sequence, each with the layers that have it; absent: all of the model's.
    Allocated is for sequences that have been read: while a prompt is, an engine that reads it in pieces holds the
    blocks of one piece more of each windowed layer.
    """
    allocated: Quantity = 0
    scales: Quantity = 0
    states: Quantity = 0
    ideal: Quantity = 0
    if entries is None:
        entries = ((times, entry) for _, times, entry in model_cache(spec, context_length))
    for times, entry in entries:
        ideal = ideal + times * entry_bytes(entry, dtype)
        allocated = allocated + times * entry_bytes(allocated_entry(entry, block_size, windowed_pages), dtype)
        scales = scales + times * scale_bytes(entry, dtype)
        if not entry.grows:
            states = states + times * entry_bytes(entry, dtype)
    return CacheUse(
        ideal_bytes=ideal * batch_size,
        allocated_bytes=allocated * batch_size,
        scale_bytes=scales * batch_size,
        state_bytes=states * batch_size,
        scheme=cache_format(dtype).scheme,
        assumption=assumption_text(block_size, windowed_pages),
    )
