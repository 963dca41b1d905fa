"""Mamba-1's selective scan, h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t] and y[t] = h[t] C[t], over chunks.

All chunks advance together through the positions of a chunk, then the states are carried from chunk to chunk: the
number of steps is the chunk length plus the number of chunks, never the number of positions. The backward pass
recomputes the states, so that only the inputs are saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _recur(decay: Tensor, update: Tensor) -> Tensor:
    """States h[t] = decay[t] h[t-1] + update[t]; both (chunks, chunk, …), in order over chunks."""
    chunks, length = decay.shape[:2]
    states, carried = torch.empty_like(update), torch.empty_like(decay)
    states[:, 0], carried[:, 0] = update[:, 0], decay[:, 0]
    for position in range(1, length):
        torch.addcmul(update[:, position], decay[:, position], states[:, position - 1], out=states[:, position])
        torch.mul(carried[:, position - 1], decay[:, position], out=carried[:, position])
    for chunk in range(1, chunks):
        states[chunk].addcmul_(carried[chunk], states[chunk - 1, -1])
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


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
        _, states = _states(x, dt, A, B, chunk, None)
        ctx.save_for_backward(x, dt, A, B, C)
        ctx.chunk = chunk
        return _unchunked((states * _chunked(C, chunk)[..., None, :]).sum(-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C = ctx.saved_tensors
        chunk = ctx.chunk
        decay, states = _states(x, dt, A, B, chunk, None)
        to_y = _chunked(gradients[0].contiguous(), chunk)
        to_C = (to_y[..., None] * states).sum(-2)
        # Gradients of the states flow backwards: s[t] = dy[t] C[t] + decay[t+1] s[t+1].
        flat = decay.flatten(0, 1)
        following = torch.cat((flat[1:], torch.zeros_like(flat[:1]))).flip(0).view_as(decay)
        received = (to_y[..., None] * _chunked(C, chunk)[..., None, :]).flatten(0, 1).flip(0).view_as(decay)
        to_states = _recur(following, received).flatten(0, 1).flip(0).view_as(decay)
        earlier = states.flatten(0, 1)
        earlier = torch.cat((torch.zeros_like(earlier[:1]), earlier[:-1])).view_as(states)
        to_exponent = to_states * earlier * decay
        steps, inputs, keys = _chunked(dt, chunk), _chunked(x, chunk), _chunked(B, chunk)
        to_A = (to_exponent * steps[..., None]).sum((0, 1, 2))
        through_B = (to_states * keys[..., None, :]).sum(-1)
        to_dt = (to_exponent * A).sum(-1) + through_B * inputs
        to_x = through_B * steps
        to_B = (to_states * (steps * inputs)[..., None]).sum(-2)
        return _unchunked(to_x), _unchunked(to_dt), to_A, _unchunked(to_B), _unchunked(to_C), None


def _padded(x: Tensor, chunk: int) -> Tensor:
    """Zeros after the last position, to whole chunks; a step of zero length leaves the state as it is."""
    missing = -x.shape[1] % chunk
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """Outputs y of x and dt (batch, positions, channels), A (channels, state), B and C (batch, positions, state)."""
    length = x.shape[1]
    chunk = min(chunk, length)
    padded = [_padded(part, chunk) for part in (x, dt, B, C)]
    result: Tensor = _SelectiveScan.apply(padded[0], padded[1], A, padded[2], padded[3], chunk)
    return result[:, :length]


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
