"""Mamba-1's selective scan, h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t] and y[t] = h[t] C[t], over chunks.

Chunks are worked on in tiles of as many as a cache holds, one after the other. All chunks of a tile advance together
through the positions of a chunk, then the states are carried from chunk to chunk. What is saved for the backward pass
are the inputs and the state before each chunk, from which the backward pass computes the others again; so no tensor of
(positions, channels, state) is ever whole. Channels stand behind states: the innermost of the loops is then a long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TILE_ELEMENTS = {"cpu": 2**19}
"""States of all positions that are worked on at a time: about what a core's cache holds."""
MOST_TILE_ELEMENTS = 2**24
"""On other devices, whose launches take longer than they compute on less."""

Tile = tuple[slice, slice]
"""Sequences and chunks."""


def _tiles(batch: int, chunks: int, chunk_elements: int, device: torch.device) -> list[Tile]:
    """Tiles of a batch in the order of time, ``chunk_elements`` being those of one chunk of one sequence."""
    together = max(1, TILE_ELEMENTS.get(device.type, MOST_TILE_ELEMENTS) // chunk_elements)
    sequences = min(batch, together)
    wide = max(1, together // sequences)
    return [
        (slice(row, min(row + sequences, batch)), slice(chunk, min(chunk + wide, chunks)))
        for row in range(0, batch, sequences)
        for chunk in range(0, chunks, wide)
    ]


def _recur(decay: Tensor, states: Tensor) -> Tensor:
    """States h[t] = decay[t] h[t-1] + states[t], in place; both (chunks, chunk, …), in order over chunks."""
    chunks = decay.shape[0]
    _recur_inside(decay, states)
    if chunks > 1:
        carried = decay.cumprod(1)
        for chunk in range(1, chunks):
            states[chunk].addcmul_(carried[chunk], states[chunk - 1, -1])
    return states


def _recur_inside(decay: Tensor, states: Tensor) -> Tensor:
    """The same within each chunk, nothing standing before it but what its first states hold already."""
    now = states.unbind(1)
    for before, state, factor in zip(now, now[1:], decay.unbind(1)[1:], strict=False):
        state.addcmul_(factor, before)
    return states


def _recur_backwards(decay: Tensor, states: Tensor) -> Tensor:
    """States s[t] = states[t] + decay[t+1] s[t+1], in place: how gradients of the states above flow."""
    chunks, length = decay.shape[:2]
    now, factors = states.unbind(1), decay.unbind(1)
    for position in range(length - 2, -1, -1):
        now[position].addcmul_(factors[position + 1], now[position + 1])
    if chunks > 1:
        # How the first state of the next chunk reaches each position.
        carried = torch.empty_like(decay[:-1])
        carried[:, -1] = decay[1:, 0]
        for position in range(length - 2, -1, -1):
            torch.mul(carried[:, position + 1], factors[position + 1][:-1], out=carried[:, position])
        for chunk in range(chunks - 2, -1, -1):
            states[chunk].addcmul_(carried[chunk], states[chunk + 1, 0])
    return states


def _fitting(room: Tensor, tile: Tile) -> Sequence[Tensor]:
    """The buffers in a tile's size: the last ones of a batch are smaller."""
    rows, columns = tile
    return room[:, : columns.stop - columns.start, :, : rows.stop - rows.start].unbind(0)


class _Scan:
    """The inputs of a scan, padded to whole chunks: a step of zero length leaves the state as it is."""

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> None:
        batch, self.length, channels = x.shape
        state = A.shape[1]
        self.rates = A.t().contiguous()
        self.x, self.dt, self.B, self.C = (self.chunked(part, chunk) for part in (x, dt, B, C))
        self.tiles = _tiles(batch, self.x.shape[1], chunk * channels * state, x.device)

    def chunked(self, x: Tensor, chunk: int) -> Tensor:
        """(batch, positions, channels) as (batch, chunks, chunk, channels), in the type of the rates."""
        missing = -x.shape[1] % chunk
        padded = torch.nn.functional.pad(x.to(self.rates.dtype), (0, 0, 0, missing)) if missing else x
        return padded.to(self.rates.dtype).unflatten(1, (-1, chunk))

    def unchunked(self, x: Tensor) -> Tensor:
        """The other way, without what was padded."""
        return x.flatten(1, 2)[:, : self.length]

    def over_channels(self, part: Tensor, tile: Tile) -> Tensor:
        """A tile of x or dt, (chunks, chunk, sequences, 1, channels)."""
        return part[tile].permute(1, 2, 0, 3)[..., None, :]

    def over_states(self, part: Tensor, tile: Tile) -> Tensor:
        """A tile of B or C, (chunks, chunk, sequences, state, 1)."""
        return part[tile].permute(1, 2, 0, 3)[..., None]

    def buffers(self, count: int) -> Tensor:
        """Room for ``count`` tensors of a tile: memory that is made anew for each costs more than the arithmetic."""
        rows, columns = self.tiles[0]
        sequences, chunks = rows.stop - rows.start, columns.stop - columns.start
        return self.x.new_empty(count, chunks, self.x.shape[2], sequences, *self.rates.shape)

    def updates(self, tile: Tile, decay: Tensor, states: Tensor) -> None:
        """Write decays and what is added to the states, both (chunks, chunk, sequences, state, channels)."""
        steps, inputs = self.over_channels(self.dt, tile), self.over_channels(self.x, tile)
        torch.mul(steps, self.rates, out=decay).exp_()
        torch.mul(steps * inputs, self.over_states(self.B, tile), out=states)

    def outputs(self, initial: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """y (batch, positions, channels), the last states (batch, state, channels), and if ``keep`` is set those
        before each chunk, (chunks, batch, state, channels)."""
        batch, chunks, _, channels = self.x.shape
        shape = batch, self.rates.shape[0], channels
        now = self.x.new_zeros(shape) if initial is None else initial.clone()
        starts = self.x.new_empty(chunks, *shape) if keep else None
        y = torch.empty_like(self.x)
        room = self.buffers(2)
        for tile in self.tiles:
            rows, columns = tile
            decay, states = _fitting(room, tile)
            self.updates(tile, decay, states)
            states[0, 0].addcmul_(decay[0, 0], now[rows])
            _recur(decay, states)
            if starts is not None:
                starts[columns.start, rows] = now[rows]
                starts[columns.start + 1 : columns.stop, rows] = states[:-1, -1]
            now[rows] = states[-1, -1]
            torch.mul(states, self.over_states(self.C, tile), out=decay)
            y[tile] = decay.sum(-2).permute(2, 0, 1, 3)
        return self.unchunked(y), now, starts


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, is_trained: bool
    ) -> Tensor:
        y, _, starts = _Scan(x, dt, A, B, C, chunk).outputs(None, is_trained)
        ctx.save_for_backward(x, dt, A, B, C, starts)
        ctx.chunk = chunk
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, starts = ctx.saved_tensors
        scan = _Scan(x, dt, A, B, C, ctx.chunk)
        to_y = scan.chunked(gradients[0], ctx.chunk)
        to_x, to_dt = torch.empty_like(scan.x), torch.empty_like(scan.dt)
        to_B, to_C = torch.empty_like(scan.B), torch.empty_like(scan.C)
        to_rates = torch.zeros_like(scan.rates)
        arriving = torch.zeros_like(starts[0])
        room = scan.buffers(3)
        for tile in reversed(scan.tiles):
            rows, columns = tile
            decay, states, to_states = _fitting(room, tile)
            scan.updates(tile, decay, states)
            before = starts[columns, rows]
            states[:, 0].addcmul_(decay[:, 0], before)
            _recur_inside(decay, states)
            from_y = scan.over_channels(to_y, tile)
            to_C[tile] = torch.mul(states, from_y, out=to_states).sum(-1).permute(2, 0, 1, 3)
            torch.mul(from_y, scan.over_states(scan.C, tile), out=to_states)
            to_states[-1, -1] += arriving[rows]
            _recur_backwards(decay, to_states)
            arriving[rows] = decay[0, 0] * to_states[0, 0]
            # The gradient of the exponent dt A at t is s[t] decay[t] h[t-1], which takes the place of the decay.
            decay[:, 1:].mul_(states[:, :-1])
            decay[:, 0].mul_(before)
            to_exponent = decay.mul_(to_states)
            steps, inputs = scan.over_channels(scan.dt, tile), scan.over_channels(scan.x, tile)
            torch.mul(to_states, steps * inputs, out=states)
            to_B[tile] = states.sum(-1).permute(2, 0, 1, 3)
            torch.mul(to_exponent, steps, out=states)
            to_rates += states.sum((0, 1, 2))
            through_B = to_states.mul_(scan.over_states(scan.B, tile)).sum(-2)
            to_x[tile] = (through_B * steps[..., 0, :]).permute(2, 0, 1, 3)
            through_rates = to_exponent.mul_(scan.rates).sum(-2)
            to_dt[tile] = torch.addcmul(through_rates, through_B, inputs[..., 0, :]).permute(2, 0, 1, 3)
        made = (scan.unchunked(part).to(like.dtype) for part, like in ((to_x, x), (to_dt, dt), (to_B, B), (to_C, C)))
        for_x, for_dt, for_B, for_C = made
        return for_x, for_dt, to_rates.t(), for_B, for_C, None, None


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """Outputs y of x and dt (batch, positions, channels), A (channels, state), B and C (batch, positions, state).

    Computed and returned in the type of ``A``.
    """
    chunk = min(chunk, x.shape[1])
    result: Tensor = _SelectiveScan.apply(x, dt, A, B, C, chunk, torch.is_grad_enabled())
    return result


@torch.no_grad()
def selective_scan_from(
    initial: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The same from a state (batch, channels, state), with the state after the last position; for generation."""
    scan = _Scan(x, dt, A, B, C, min(chunk, x.shape[1]))
    y, last, _ = scan.outputs(initial.transpose(1, 2), keep=False)
    return y, last.transpose(1, 2)
