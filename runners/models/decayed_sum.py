"""Lightning attention's chunks with a backward pass of their own, which keeps queries, keys and values alone.

Rates are given, so that decays have no gradient: inside chunks it is attention under a fixed factor for each distance,
over a few chunks at a time, and between chunks each state is read and written by one product of matrices a head.
Shapes below: parts are (batch, chunks, heads, chunk, head_dim), views of (batch, positions, heads, head_dim).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ELEMENTS = 2**20
"""Pairs of positions, of all heads, that are worked on at a time; no fewer than those of one chunk. The planner knows
it as ``DECAY_TILE``."""


def decays_between(rates: Tensor, chunk: int, narrow: torch.dtype) -> Tensor:
    """Decays from earlier positions (the last dimension) to later ones, (heads, chunk, chunk), zero the other way.

    They depend on the distance alone, so that each row is the one before it, moved by one.
    """
    places = torch.arange(chunk, device=rates.device, dtype=rates.dtype)
    falling = torch.exp(-rates[:, None] * places.flip(0)).to(narrow)
    return F.pad(falling, (0, chunk - 1)).unfold(-1, chunk, 1).flip(-2)


class _Chunks:
    """The arguments, padded to whole chunks, and their outputs."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, chunk: int) -> None:
        chunk = min(chunk, q.shape[1])
        self.length, self.chunk, self.narrow = q.shape[1], chunk, q.dtype
        self.q, self.k, self.v = (self.chunked(part) for part in (q, k, v))
        self.between = decays_between(rates, chunk, self.narrow)
        places = torch.arange(chunk, device=rates.device, dtype=rates.dtype)
        self.to_end = torch.exp(-rates[:, None] * places.flip(0))[..., None].to(self.narrow)
        self.from_start = torch.exp(-rates[:, None] * (places + 1))[..., None].to(self.narrow)
        self.across = torch.exp(-rates * chunk)[:, None, None]

    def chunked(self, part: Tensor) -> Tensor:
        """(batch, positions, heads, head_dim) by chunks."""
        missing = -self.length % self.chunk
        padded = F.pad(part, (0, 0, 0, 0, 0, missing)) if missing else part
        return padded.unflatten(1, (-1, self.chunk)).transpose(2, 3)

    def unchunked(self, part: Tensor) -> Tensor:
        """The other way, without what was padded."""
        return part.transpose(2, 3).flatten(1, 2)[:, : self.length]

    def empty(self) -> Tensor:
        """Room for outputs or gradients by chunks, laid out by positions."""
        batch, chunks, heads, chunk, width = self.q.shape
        return self.q.new_empty(batch, chunks, chunk, heads, width).transpose(2, 3)

    def tiles(self) -> Iterator[tuple[int, slice]]:
        """A few chunks of one sequence at a time."""
        batch, chunks, heads, chunk, _ = self.q.shape
        together = max(1, TILE_ELEMENTS // (chunk * chunk * heads))
        for sequence in range(batch):
            for first in range(0, chunks, together):
                yield sequence, slice(first, min(first + together, chunks))

    def weights(self, tile: tuple[int, slice]) -> Tensor:
        """Inside chunks, (chunks, heads, chunk, chunk)."""
        q, k = self.q[tile].contiguous(), self.k[tile].contiguous()
        return (q @ k.transpose(-1, -2)).mul_(self.between)

    def states(self) -> tuple[Tensor, Tensor]:
        """States after all chunks but the last, (batch, chunks - 1, heads, head_dim, head_dim), and the keys of these
        chunks as they have decayed at their ends."""
        left = _laid_out(self.k[:, :-1], self.to_end)
        states = left.transpose(-1, -2) @ self.v[:, :-1].contiguous()
        _carried(states, self.across, range(states.shape[1]))
        return states, left

    def outputs(self) -> Tensor:
        """(batch, positions, heads, head_dim)"""
        y = self.empty()
        for tile in self.tiles():
            y[tile] = self.weights(tile) @ self.v[tile].contiguous()
        if self.q.shape[1] > 1:
            states, _ = self.states()
            y[:, 1:] += _laid_out(self.q[:, 1:], self.from_start) @ states
        return self.unchunked(y).contiguous()


class _Gradients(_Chunks):
    """The backward pass, which needs no outputs."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, chunk: int, gradient: Tensor) -> None:
        super().__init__(q, k, v, rates, chunk)
        self.to_y = self.chunked(gradient)
        self.to_q, self.to_k, self.to_v = self.empty(), self.empty(), self.empty()
        for tile in self.tiles():
            self.inside(tile)
        if self.q.shape[1] > 1:
            self.outside()

    def inside(self, tile: tuple[int, slice]) -> None:
        """Through what positions of a chunk see of each other; writes the gradients."""
        to_y = self.to_y[tile].contiguous()
        self.to_v[tile] = self.weights(tile).transpose(-1, -2) @ to_y
        to_scores = (to_y @ self.v[tile].contiguous().transpose(-1, -2)).mul_(self.between)
        self.to_q[tile] = to_scores @ self.k[tile].contiguous()
        self.to_k[tile] = to_scores.transpose(-1, -2) @ self.q[tile].contiguous()

    def outside(self) -> None:
        """Through the states that chunks leave to later ones; adds to what is there."""
        states, left = self.states()
        arriving = _laid_out(self.to_y[:, 1:], self.from_start)
        self.to_q[:, 1:] += arriving @ states.transpose(-1, -2)
        del states
        to_states = self.q[:, 1:].contiguous().transpose(-1, -2) @ arriving
        del arriving
        _carried(to_states, self.across, range(to_states.shape[1] - 1, -1, -1))
        self.to_v[:, :-1] += left @ to_states
        del left
        self.to_k[:, :-1] += (self.v[:, :-1].contiguous() @ to_states.transpose(-1, -2)).mul_(self.to_end)


def _laid_out(part: Tensor, factors: Tensor) -> Tensor:
    """A copy, times factors, in the order of its dimensions."""
    made = torch.empty_like(part, memory_format=torch.contiguous_format)
    return torch.mul(part, factors, out=made)


def _carried(states: Tensor, across: Tensor, order: range) -> None:
    """Add to each state (batch, chunks, heads, head_dim, head_dim) what those before it, in that order, leave to it.

    The sum goes on in the type of ``across`` (heads, 1, 1).
    """
    now = states[:, order[0]].to(across.dtype, copy=True)
    for index in order[1:]:
        states[:, index].copy_(now.mul_(across).add_(states[:, index]))


class _DecayedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(q, k, v, rates)
        ctx.chunk = chunk
        return _Chunks(q, k, v, rates, chunk).outputs()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        q, k, v, rates = ctx.saved_tensors
        found = _Gradients(q, k, v, rates, ctx.chunk, gradients[0])
        return *(found.unchunked(part) for part in (found.to_q, found.to_k, found.to_v)), None, None


def decayed_sum(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, chunk: int) -> Tensor:
    """Outputs (batch, positions, heads, head_dim) in the type of q, k and v, which have that shape too.

    ``rates`` (heads,) are in fp32 or fp64; in their type decays are computed and states carried, while products and
    what is kept of states are in that of q, k and v.
    """
    result: Tensor = _DecayedSum.apply(q, k, v, rates, chunk)
    return result
