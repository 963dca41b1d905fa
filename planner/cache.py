"""What generation keeps between tokens: keys and values, latents, states and convolution inputs."""

from __future__ import annotations

from collections.abc import Iterator

from planner.components.base import CacheEntry
from planner.errors import UnsupportedPlan
from planner.quantities import Quantity
from planner.sizing import layer_components
from planner.spec import ArchitectureSpec

CACHE_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
"""Bytes of a cached element. fp8 and int8 are without scales, which engines keep by tensor."""


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
    """Bytes of KV, latent, convolution and state cache for ``batch_size`` sequences of ``context_length`` tokens."""
    if dtype not in CACHE_DTYPE_BYTES:
        raise UnsupportedPlan.of(
            f"No cache of type {dtype!r} is modelled.",
            path="cache_dtype",
            remedy=f"Choose one of {', '.join(CACHE_DTYPE_BYTES)}.",
            code="unsupported_cache_dtype",
        )
    elements: Quantity = 0
    for _, times, entry in model_cache(spec, context_length):
        elements = elements + times * entry.elements
    return elements * batch_size * CACHE_DTYPE_BYTES[dtype]
