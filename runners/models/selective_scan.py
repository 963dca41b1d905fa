"""Mamba-1's selective scan, h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t] and y[t] = h[t] C[t], over chunks.

All chunks advance together through the positions of a chunk, then the states are carried from chunk to chunk: the
number of steps is the chunk length plus the number of chunks, never the number of positions. The backward pass
recomputes the states, so that only the inputs are saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _recur(decay: Tensor, states: Tensor) -> Tensor:
    """States h[t] = decay[t] h[t-1] + states[t], in place; both (chunks, chunk, …), in order over chunks."""
    chunks, length = decay.shape[:2]
    carried = torch.empty_like(decay)
    carried[:, 0] = decay[:, 0]
    for position in range(1, length):
        states[:, position].addcmul_(decay[:, position], states[:, position - 1])
        torch.mul(carried[:, position - 1], decay[:, position], out=carried[:, position])
    for chunk in range(1, chunks):
        states[chunk].addcmul_(carried[chunk], states[chunk - 1, -1])
    return states


def _recur_backwards(decay: Tensor, states: Tensor) -> Tensor:
    """States s[t] = states[t] + decay[t+1] s[t+1], in place: how gradients of the states above flow."""
    chunks, length = decay.shape[:2]
    carried = torch.empty_like(decay)
    carried[:-1, -1], carried[-1, -1] = decay[1:, 0], 0
    for position in range(length - 2, -1, -1):
        states[:, position].addcmul_(decay[:, position + 1], states[:, position + 1])
        torch.mul(carried[:, position + 1], decay[:, position + 1], out=carried[:, position])
    for chunk in range(chunks - 2, -1, -1):
        states[chunk].addcmul_(carried[chunk], states[chunk + 1, 0])
    return states


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(batch, positions, channels) as (chunks, chunk, batch, channels)."""
    batch, length, channels = x.shape
    return x.view(batch, length // chunk, chunk, channels).permute(1, 2, 0, 3)


def _unchunked(x: Tensor) -> Tensor:
    chunks, chunk, batch, channels = x.shape
    return x.permute(2, 0, 1, 3).reshape(batch, chunks * chunk, channels)


def _states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, chunk: int, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    steps = _chunked(dt, chunk)
    decay = torch.exp(steps[..., None] * A)
    update = (steps * _chunked(x, chunk))[..., None] * _chunked(B, chunk)[..., None, :]
    if initial is not None:
        update[0, 0] += decay[0, 0] * initial
    return decay, _recur(decay, update)


def _padded(x: Tensor, chunk: int) -> Tensor:
    """Zeros after the last position, to whole chunks; a step of zero length leaves the state as it is."""
    missing = -x.shape[1] % chunk
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(x, dt, A, B, C)
        ctx.chunk = chunk
        length = x.shape[1]
        x, dt, B, C = (_padded(part.to(A.dtype), chunk) for part in (x, dt, B, C))
        states = _states(x, dt, A, B, chunk, None)[1]
        return _unchunked((states * _chunked(C, chunk)[..., None, :]).sum(-1))[:, :length]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C = ctx.saved_tensors
        chunk, length = ctx.chunk, x.shape[1]
        types = x.dtype, B.dtype, C.dtype
        x, dt, B, C, gradient = (_padded(part.to(A.dtype), chunk) for part in (x, dt, B, C, gradients[0]))
        # At most four tensors of (positions, channels, state) are alive at once.
        decay, states = _states(x, dt, A, B, chunk, None)
        to_y = _chunked(gradient, chunk)
        to_C = (to_y[..., None] * states).sum(-2)
        to_states = _recur_backwards(decay, to_y[..., None] * _chunked(C, chunk)[..., None, :])
        # The gradient of the exponent dt A at t is s[t] decay[t] h[t-1], which takes the place of the decay.
        to_exponent = decay.flatten(0, 1)
        to_exponent[1:].mul_(states.flatten(0, 1)[:-1])
        to_exponent[0] = 0
        del states
        to_exponent = to_exponent.view_as(decay).mul_(to_states)
        steps, inputs, keys = _chunked(dt, chunk), _chunked(x, chunk), _chunked(B, chunk)
        to_A = (to_exponent * steps[..., None]).sum((0, 1, 2))
        through_B = (to_states * keys[..., None, :]).sum(-1)
        to_dt = (to_exponent * A).sum(-1) + through_B * inputs
        to_x = through_B * steps
        to_B = (to_states * (steps * inputs)[..., None]).sum(-2)
        to_x, to_dt, to_B, to_C = (_unchunked(part)[:, :length] for part in (to_x, to_dt, to_B, to_C))
        return to_x.to(types[0]), to_dt, to_A, to_B.to(types[1]), to_C.to(types[2]), None


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """Outputs y of x and dt (batch, positions, channels), A (channels, state), B and C (batch, positions, state).

    Computed and returned in the type of ``A``.
    """
    result: Tensor = _SelectiveScan.apply(x, dt, A, B, C, min(chunk, x.shape[1]))
    return result


@torch.no_grad()
def selective_scan_from(
    initial: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The same from a state (batch, channels, state), with the state after the last position; for generation."""
    length = x.shape[1]
    chunk = min(chunk, length)
    x, dt, B, C = (_padded(part, chunk) for part in (x, dt, B, C))
    _, states = _states(x, dt, A, B, chunk, initial)
    y = _unchunked((states * _chunked(C, chunk)[..., None, :]).sum(-1))
    return y[:, :length], states[-1, -1]
