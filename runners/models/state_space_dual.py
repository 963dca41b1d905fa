"""Mamba-2's scan with a backward pass of its own, which keeps the scan's arguments alone.

Inside chunks it is quadratic, like attention with a decaying mask: over a few chunks at a time, so that squares of
positions of the whole batch never exist. Between chunks all heads that share B and C are one product of matrices.
Shapes below: n is the batch times its chunks, and heads are (groups, shared), those of a group standing together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ELEMENTS = 2**20
"""Pairs of positions, of all heads, that are worked on at a time; no fewer than those of one chunk. The planner knows
it as ``DUAL_TILE``."""


class _Chunks:
    """The arguments of a scan in chunks, padded: a step of zero length leaves the state as it is.

    Nothing comes before the first chunk of a sequence, and nothing reads the last one's state, unless the scan
    ``continues`` from a state and is to be continued itself.
    """

    def __init__(
        self, mixed: Tensor, dt: Tensor, A: Tensor, groups: int, state: int, chunk: int, continues: bool = False
    ) -> None:
        self.batch, self.length, heads = dt.shape
        chunk = min(chunk, self.length)
        self.chunk, self.groups, self.shared = chunk, groups, heads // groups
        self.inner = mixed.shape[2] - 2 * groups * state
        self.narrow, self.wide = mixed.dtype, dt.dtype
        self.rates = A.view(groups, 1, -1)
        self.rows = self.chunked(mixed)
        self.x, B, C = self.split(self.rows)
        self.B, self.C = B.contiguous(), C.contiguous()
        self.dt = self.chunked(dt).unflatten(-1, (groups, -1)).transpose(1, 2)
        self.decay = (self.dt * self.rates).cumsum(2)
        self.steps = self.dt.to(self.narrow)[..., None]
        chunks = self.rows.shape[0]
        together = max(1, TILE_ELEMENTS // (chunk * chunk * heads))
        self.tiles = [slice(first, min(first + together, chunks)) for first in range(0, chunks, together)]
        self.has_states = continues or chunks > self.batch
        self.leaving, self.reading = slice(None if continues else -1), slice(0 if continues else 1, None)

    def chunked(self, part: Tensor) -> Tensor:
        """(batch, positions, channels) as (n, chunk, channels)."""
        missing = -self.length % self.chunk
        return (F.pad(part, (0, 0, 0, missing)) if missing else part).reshape(-1, self.chunk, part.shape[-1])

    def unchunked(self, part: Tensor) -> Tensor:
        """The other way, without what was padded."""
        return part.view(self.batch, -1, part.shape[-1])[:, : self.length]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of what goes through the convolution: x (n, groups, chunk, shared, head_dim), B and C (n, groups,
        chunk, state)."""
        of_states = (rows.shape[-1] - self.inner) // 2
        x, B, C = rows.split((self.inner, of_states, of_states), -1)
        B, C = (part.unflatten(-1, (self.groups, -1)).transpose(1, 2) for part in (B, C))
        return self.by_head(x), B, C

    def by_head(self, rows: Tensor) -> Tensor:
        """Rows (n, chunk, inner) as (n, groups, chunk, shared, head_dim), a view."""
        return rows.unflatten(-1, (self.groups, self.shared, -1)).transpose(1, 2)

    def earlier(self, part: Tensor) -> Tensor:
        """All chunks of (n, …) that leave a state: (batch, chunks - 1, …), or all."""
        return part.unflatten(0, (self.batch, -1))[:, self.leaving]

    def later(self, part: Tensor) -> Tensor:
        """All chunks of (n, …) that read one: (batch, chunks - 1, …), or all."""
        return part.unflatten(0, (self.batch, -1))[:, self.reading]

    def laid_out(self, part: Tensor, factors: Tensor | None = None) -> Tensor:
        """A copy of (n, groups, chunk, shared, head_dim), times factors, that products a head read: (n, groups, shared,
        chunk, head_dim)."""
        made = torch.empty_like(part.transpose(2, 3), memory_format=torch.contiguous_format)
        if factors is None:
            return made.copy_(part.transpose(2, 3))
        return torch.mul(part.transpose(2, 3), factors.transpose(2, 3), out=made)

    def weights(self, tile: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Inside chunks: decays between positions (n, groups, shared, chunk, chunk) in fp32, and in the type of
        products, and scores (n, groups, 1, chunk, chunk), which are zero where a position would see a later one."""
        decay = self.decay[tile].transpose(2, 3).contiguous()  # squares take its layout
        # Decay grows with the distance. Later positions, which scores leave out, must only not overflow.
        between = (decay[..., :, None] - decay[..., None, :]).clamp_(max=0).exp_()
        scores = (self.C[tile] @ self.B[tile].transpose(-1, -2)).tril_()
        return between, between.to(self.narrow), scores[:, :, None]

    def inside(self, tile: slice) -> Tensor:
        """What positions of a chunk see of each other, (n, groups, chunk, shared, head_dim)."""
        between, scores = self.weights(tile)[1:]
        return ((between * scores) @ self.laid_out(self.x[tile], self.steps[tile])).transpose(2, 3)

    def to_ends(self) -> Tensor:
        """Decays from positions to the ends of their chunks, (batch, chunks - 1, groups, chunk, shared)."""
        decay = self.earlier(self.decay)
        return torch.exp(decay[..., -1:, :] - decay)

    def across(self) -> Tensor:
        """Decays over the chunks that leave a state, (batch, chunks - 1, groups, shared, 1)."""
        return torch.exp(self.earlier(self.decay)[..., -1, :, None])

    def states(self, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states after the chunks, (batch, chunks - 1, groups, shared · head_dim, state), and the inputs to them,
        (batch, chunks - 1, groups, chunk, shared · head_dim), which decay to the ends of chunks. From an ``initial``
        state (batch, groups, shared · head_dim, state) there are those after all chunks."""
        x = self.earlier(self.x)
        reaching = torch.empty_like(x, memory_format=torch.contiguous_format)
        torch.mul(x, (self.to_ends() * self.earlier(self.dt)).to(self.narrow)[..., None], out=reaching)
        reaching = reaching.flatten(-2)
        states = reaching.transpose(-1, -2) @ self.earlier(self.B)
        across, by_head = self.across(), states.unflatten(-2, (self.shared, -1)).flatten(-2)
        if initial is None:
            first, now = 1, by_head[:, 0].to(self.wide, copy=True)
        else:
            first, now = 0, initial.unflatten(-2, (self.shared, -1)).flatten(-2).to(self.wide, copy=True)
        for index in range(first, states.shape[1]):
            by_head[:, index].copy_(now.mul_(across[:, index]).add_(by_head[:, index]))
        return states, reaching

    def outputs(self, D: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """y (batch, positions, inner); from an ``initial`` state also the last one, of the same shape."""
        rows = self.rows.new_empty(*self.rows.shape[:2], self.inner)
        y = self.by_head(rows)
        torch.mul(self.x, D.view(self.groups, 1, -1, 1).to(self.narrow), out=y)
        for tile in self.tiles:
            y[tile].add_(self.inside(tile))
        last = None
        if self.has_states:
            states, _ = self.states(initial)
            if initial is not None:
                last = states[:, -1]
                states = torch.cat((initial[:, None].to(states.dtype), states[:, :-1]), 1)
            read = (self.later(self.C) @ states.transpose(-1, -2)).unflatten(-1, (self.shared, -1))
            self.later(y).add_(read.mul_(torch.exp(self.later(self.decay)).to(self.narrow)[..., None]))
        return self.unchunked(rows).contiguous(), last


class _Gradients:
    """The backward pass of :class:`_Chunks`; gradients of dt and of its sums stand in fp32."""

    def __init__(self, parts: _Chunks, D: Tensor, gradient: Tensor) -> None:
        self.parts = parts
        self.to_y = parts.by_head(parts.chunked(gradient))
        self.to_rows = torch.empty_like(parts.rows)
        self.to_x, self.to_B, self.to_C = parts.split(self.to_rows)
        torch.mul(self.to_y, D.view(parts.groups, 1, -1, 1).to(parts.narrow), out=self.to_x)
        self.to_dt, self.to_decay = torch.zeros_like(parts.dt), torch.zeros_like(parts.decay)
        self.to_D = torch.zeros_like(D)
        for tile in parts.tiles:
            self.inside(tile)
        if parts.has_states:
            self.between()

    def inside(self, tile: slice) -> None:
        """Through what positions of a chunk see of each other; writes the gradients of B and C."""
        parts = self.parts
        x, steps = parts.x[tile], parts.steps[tile]
        wide, between, scores = parts.weights(tile)
        arriving = parts.laid_out(self.to_y[tile])
        to_weighted = (between * scores).transpose(-1, -2) @ arriving
        weighted = parts.laid_out(x, steps)
        to_weights = (arriving @ weighted.transpose(-1, -2)).mul_(between)
        to_scores = to_weights.sum(2).tril_()
        # By the exponents: one sum over rows and one over columns of the same products, in fp32, as what both have in
        # common cancels.
        to_exponents = wide.copy_(to_weights).mul_(scores.to(parts.wide))
        self.to_decay[tile].add_((to_exponents.sum(-1) - to_exponents.sum(-2)).transpose(2, 3))
        del wide, between, to_weights, to_exponents
        self.to_C[tile] = to_scores @ parts.B[tile]
        self.to_B[tile] = to_scores.transpose(-1, -2) @ parts.C[tile]
        own = torch.mul(to_weighted, x.transpose(2, 3), out=weighted).sum(-1)
        self.to_dt[tile].add_(own.transpose(2, 3))
        self.to_x[tile].add_(to_weighted.mul_(steps.transpose(2, 3)).transpose(2, 3))
        skipped = torch.mul(arriving, x.transpose(2, 3), out=weighted).sum(-1)
        self.to_D += skipped.to(parts.wide).sum((0, 3)).flatten()

    def between(self) -> None:
        """Through the states that chunks leave to later ones; adds to what is there."""
        parts = self.parts
        states, reaching = parts.states()
        B, C = parts.earlier(parts.B), parts.later(parts.C)
        to_read = torch.empty_like(parts.later(self.to_y), memory_format=torch.contiguous_format)
        since = torch.exp(parts.later(parts.decay)).to(parts.narrow)[..., None]
        torch.mul(parts.later(self.to_y), since, out=to_read)
        read = (C @ states.transpose(-1, -2)).view_as(to_read)
        parts.later(self.to_decay).add_(read.mul_(to_read).sum(-1))
        del read
        to_read = to_read.flatten(-2)
        parts.later(self.to_C).add_(to_read @ states)
        to_states = to_read.transpose(-1, -2) @ C
        del to_read
        to_across = self.carried_back(states, to_states)
        del states
        # What reaches a state: x, decaying to the chunk's end.
        parts.earlier(self.to_B).add_(reaching @ to_states)
        to_reaching = (B @ to_states.transpose(-1, -2)).unflatten(-1, (parts.shared, -1))
        del to_states
        x, to_ends, dt = parts.earlier(parts.x), parts.to_ends(), parts.earlier(parts.dt)
        own = torch.mul(to_reaching, x, out=reaching.view_as(to_reaching)).sum(-1)
        parts.earlier(self.to_dt).add_(own * to_ends)
        weights = to_ends.mul_(dt)
        to_exponents = own * weights
        to_decay = parts.earlier(self.to_decay)
        to_decay -= to_exponents
        to_decay[..., -1, :] += to_exponents.sum(-2) + to_across
        parts.earlier(self.to_x).add_(to_reaching.mul_(weights.to(parts.narrow)[..., None]))

    def carried_back(self, states: Tensor, to_states: Tensor) -> Tensor:
        """Gradients of the decays' exponents over chunks, (batch, chunks - 1, groups, shared); those of what chunks
        read, ``to_states``, become those of what they leave."""
        parts = self.parts
        across = parts.across()
        after, before = (part.unflatten(-2, (parts.shared, -1)).flatten(-2) for part in (to_states, states))
        to_across = torch.zeros_like(across[..., 0])
        last = after.shape[1] - 1
        now = after[:, last].to(parts.wide, copy=True)
        for index in range(last, 0, -1):
            to_across[:, index] = (after[:, index] * before[:, index - 1]).sum(-1)
            now.mul_(across[:, index]).add_(after[:, index - 1])
            after[:, index - 1].copy_(now)
        return to_across.mul_(across[..., 0])

    def of_arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of ``mixed``, dt, A and D."""
        parts = self.parts
        to_rates = self.to_decay.flip(2).cumsum(2).flip(2)
        to_dt = self.to_dt.addcmul_(to_rates, parts.rates.expand_as(to_rates))
        to_A = to_rates.mul_(parts.dt).sum((0, 2)).flatten()
        return (
            parts.unchunked(self.to_rows),
            parts.unchunked(to_dt.transpose(1, 2).flatten(2).contiguous()),
            to_A,
            self.to_D,
        )


class _Dual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mixed: Tensor, dt: Tensor, A: Tensor, D: Tensor, groups: int, state: int, chunk: int
    ) -> Tensor:
        ctx.save_for_backward(mixed, dt, A, D)
        ctx.sizes = groups, state, chunk
        return _Chunks(mixed, dt, A, groups, state, chunk).outputs(D)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        mixed, dt, A, D = ctx.saved_tensors
        found = _Gradients(_Chunks(mixed, dt, A, *ctx.sizes), D, gradients[0])
        return *found.of_arguments(), None, None, None


def dual(mixed: Tensor, dt: Tensor, A: Tensor, D: Tensor, groups: int, state: int, chunk: int) -> Tensor:
    """State space dual with its skip, y + D x, (batch, positions, heads · head_dim) in the type of ``mixed``.

    mixed (batch, positions, heads · head_dim + 2 · groups · state) holds x, B and C; dt (batch, positions, heads), not
    negative, A (heads,), negative, and D (heads,) are in fp32 or fp64.
    """
    result: Tensor = _Dual.apply(mixed, dt, A, D, groups, state, chunk)
    return result


def dual_from(
    initial: Tensor, mixed: Tensor, dt: Tensor, A: Tensor, D: Tensor, groups: int, state: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """As :func:`dual`, from a state (batch, heads, head_dim, state) and without gradients; also the state after the
    last position."""
    parts = _Chunks(mixed, dt, A, groups, state, chunk, continues=True)
    by_group = initial.unflatten(1, (groups, -1)).flatten(2, 3)
    with torch.no_grad():
        y, last = parts.outputs(D, by_group)
    assert last is not None
    return y, last.reshape(initial.shape)
