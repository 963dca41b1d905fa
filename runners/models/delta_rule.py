"""The gated delta rule over chunks: products of matrices inside a chunk, states carried from chunk to chunk.

The state of a head is S[t] = a[t] (I - b[t] k[t] k[t]^T) S[t-1] + b[t] k[t] v[t]^T, and its output q[t] S[t] (Yang et
al. 2024, arXiv:2412.06464, equation 10). Inside a chunk each value is corrected by what the ones before it wrote: a
unit triangular system, whose inverse turns the corrections into products (the WY form of arXiv:2406.06484).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runners.models.recompute import recomputed

SMALLEST_SQUARE = 1e-6
"""Added to the squared length of queries and keys before they are divided by it."""


def unit(x: Tensor, wide: torch.dtype) -> Tensor:
    """``x`` with vectors of length one in the last dimension, computed in ``wide``."""
    widened = x.to(wide)
    return (widened * torch.rsqrt(widened.square().sum(-1, keepdim=True) + SMALLEST_SQUARE)).to(x.dtype)


class _UnitLowerInverse(torch.autograd.Function):
    """The inverse of I + L for what stands strictly below the diagonal of ``lower`` (…, rows, rows).

    Both passes solve triangular systems, which cost a sixth of the products that autograd would take.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        ctx.save_for_backward(lower)
        identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
        return torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        transposed = ctx.saved_tensors[0].transpose(-1, -2)
        left = torch.linalg.solve_triangular(transposed, gradients[0], upper=True, unitriangular=True)
        both = torch.linalg.solve_triangular(transposed, left, upper=True, left=False, unitriangular=True)
        return both.neg_().tril_(-1)


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """The inverse of the identity plus what stands strictly below the diagonal of ``lower``."""
    result: Tensor = _UnitLowerInverse.apply(lower)
    return result


def from_chunk_to_chunk(
    q: Tensor, k: Tensor, scores: Tensor, correction: Tensor, written: Tensor, decay: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Outputs (batch, chunks, heads, chunk, value_dim), and from an ``initial`` state also the state after the last.

    q and k (batch, chunks, heads, chunk, key_dim); scores, and the correction of what the state before a chunk foresees
    (batch, chunks, heads, chunk, chunk); written (batch, chunks, heads, chunk, value_dim), what each position writes of
    its own value; decay (batch, chunks, heads, chunk, key_dim or 1), the logarithms from the start of the chunk.
    Nothing comes before the first chunk of a sequence, and nothing is read of the last one's state unless it goes on.
    """
    chunks, wide, narrow = k.shape[1], decay.dtype, written.dtype
    first, last = (1, chunks - 1) if initial is None else (0, chunks)
    if chunks == first:
        return scores @ written, initial
    from_start = torch.exp(decay[:, first:]).to(narrow)
    reading = correction[:, first:] @ (k[:, first:] * from_start)
    to_end = torch.exp(decay[:, :last, :, -1:] - decay[:, :last]).to(narrow)
    writing = (k[:, :last] * to_end).transpose(-1, -2)
    across = torch.exp(decay[:, :last, :, -1])[..., None]
    state, before, values = initial, [], []
    for index in range(chunks):
        value = written[:, index]
        if state is not None:
            before.append(state.to(narrow))
            value = value - reading[:, index - first] @ before[-1]
        values.append(value)
        if index < last:
            left = (writing[:, index] @ value).to(wide)
            state = left if state is None else state * across[:, index] + left
    y = scores @ torch.stack(values, 1)
    later = (q[:, first:] * from_start) @ torch.stack(before, 1)
    return torch.cat((y[:, :first], y[:, first:] + later), 1) if first else y + later, state


def chunked_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, chunk: int, initial: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Outputs like ``v``, and from an ``initial`` state also the state after the last position.

    q and k (batch, positions, key_heads, key_dim), made vectors of length one here; v (batch, positions, heads,
    value_dim); decay, the logarithms of a, and beta (batch, positions, heads); initial (batch, heads, key_dim,
    value_dim). Decays and systems are computed in the type of ``decay``, products in that of ``v``. Positions are
    padded to whole chunks; without decay and correction a position changes no state.
    """
    length, heads = v.shape[1:3]
    key_heads, wide, narrow = k.shape[2], decay.dtype, v.dtype
    q, k = unit(q, wide) * k.shape[-1] ** -0.5, unit(k, wide)
    missing = -length % chunk
    if missing:
        q, k, v = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (q, k, v))
        decay, beta = (F.pad(part, (0, 0, 0, missing)) for part in (decay, beta))
    chunks = (length + missing) // chunk

    def in_chunks(part: Tensor) -> Tensor:
        """(batch, chunks, heads, chunk, …)."""
        return part.unflatten(1, (chunks, chunk)).transpose(2, 3)

    def of_heads(part: Tensor) -> Tensor:
        """What the heads of values share, once a head."""
        return part if key_heads == heads else part.repeat_interleave(heads // key_heads, 2)

    q, k, v, beta = in_chunks(q), in_chunks(k), in_chunks(v), in_chunks(beta).to(wide)
    decay = in_chunks(decay).cumsum(-1)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).tril()
    between = torch.exp((decay[..., :, None] - decay[..., None, :]).masked_fill(~causal, float("-inf")))

    # What each position writes of its own value, and what it takes away of what the state before the chunk foresees.
    likeness = of_heads(k @ k.transpose(-1, -2)).to(wide)
    correction = (unit_lower_inverse(likeness * (between * beta[..., None])) * beta[..., None, :]).to(narrow)
    written = correction @ v
    scores = of_heads(q @ k.transpose(-1, -2)) * between.to(narrow)

    y, state = from_chunk_to_chunk(of_heads(q), of_heads(k), scores, correction, written, decay[..., None], initial)
    y = y.transpose(2, 3).flatten(1, 2)
    return y[:, :length].clone() if missing else y, state


def recomputed_delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, chunk: int) -> Tensor:
    """The outputs of :func:`chunked_delta`, with nothing kept for the backward pass but the arguments."""
    return recomputed(lambda q, k, v, decay, beta: chunked_delta(q, k, v, decay, beta, chunk)[0], q, k, v, decay, beta)


def delta_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """One position from a state; shapes as in :func:`chunked_delta` with one position, all in the state's type."""
    shared = v.shape[2] // k.shape[2]
    q, k = (unit(part, initial.dtype)[:, 0].repeat_interleave(shared, 1) for part in (q, k))
    state = initial * torch.exp(decay[:, 0])[..., None, None]
    error = (v[:, 0] - (k[..., None, :] @ state)[..., 0, :]) * beta[:, 0, :, None]
    state = state + k[..., None] * error[..., None, :]
    return (q[..., None, :] @ state)[..., 0, :][:, None] * k.shape[-1] ** -0.5, state
