"""The matrices of a mixer, and what it does between tokens beside them."""

from __future__ import annotations

from collections.abc import Iterator

from planner.components.base import Component, Tensor
from planner.quantities import Quantity
from planner.sizing import active_count

_VECTORS = ("bias", "norm", "conv")
"""In the names of tensors of several dimensions that no token is multiplied by as by a matrix."""


def matrices(mixer: Component, hidden_size: Quantity) -> Iterator[Tensor]:
    """The tensors of a mixer that tokens are multiplied by."""
    for tensor in mixer.tensors(hidden_size):
        own = tensor.name.removesuffix(".weight")
        is_matrix = len(tensor.shape) >= 2 and tensor.is_matrix and tensor.dtype_class == "weight"
        if is_matrix and not any(word in own for word in _VECTORS):
            yield tensor


def matrix_flops(mixer: Component, hidden_size: Quantity, tokens: Quantity) -> Quantity:
    """FLOPs of ``tokens`` tokens through a mixer's matrices: two a weight that a token touches."""
    total: Quantity = 0
    for tensor in matrices(mixer, hidden_size):
        total = total + 2 * tokens * active_count(tensor)
    return total


def between_tokens(mixer: Component, hidden_size: Quantity, length: Quantity, batch: Quantity) -> Quantity:
    """FLOPs of a mixer beside its matrices, without what a mask leaves out."""
    total: Quantity = 0
    for operation in mixer.operations(hidden_size, length, batch):
        total = total + operation.needed_flops
    return total - matrix_flops(mixer, hidden_size, length * batch)
