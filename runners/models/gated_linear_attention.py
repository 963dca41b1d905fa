"""Gated linear attention, the twin of :mod:`planner.components.gated_linear_attention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from runners.models.channel_decay import below_diagonal
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.lightning_attention import DecayCache
from runners.models.mlp import gated
from runners.models.norms import RMSNorm
from runners.models.recompute import recomputed


def logarithms(logits: Tensor, normalizer: float) -> Tensor:
    """``log(sigmoid(logits)) / normalizer``, in fp32 or fp64."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return F.logsigmoid(logits.to(wide)) / normalizer


class _LogarithmsFunction(torch.autograd.Function):
    """Saves its input in its own type, where autograd keeps it widened, and more of it on a CPU."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, normalizer: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.normalizer = normalizer
        return logarithms(logits, normalizer)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        slope = torch.sigmoid(-logits.to(gradients[0].dtype)) / ctx.normalizer
        return (gradients[0] * slope).to(logits.dtype), None


def chunked_gated(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int, initial: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Outputs like ``v``, and from an ``initial`` state also the state after the last position.

    q and k (batch, positions, heads, key_dim); v (batch, positions, heads, value_dim); decay, the logarithms of a, like
    k; initial (batch, heads, key_dim, value_dim). Decays are computed and states carried in the type of ``decay``,
    products in that of ``v``. Positions are padded to whole chunks; without decay and key a position changes no state.
    """
    length, wide, narrow = v.shape[1], decay.dtype, v.dtype
    q = q * k.shape[-1] ** -0.5
    missing = -length % chunk
    if missing:
        q, k, v, decay = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (q, k, v, decay))
    chunks = (length + missing) // chunk
    q, k, v, decay = (
        part.unflatten(1, (chunks, chunk)).transpose(2, 3) for part in (q, k, v, decay)
    )  # (batch, chunks, heads, chunk, …)
    decay = decay.cumsum(-2)
    (scores,) = below_diagonal(q, k, decay, False)
    y = (scores + torch.diag_embed((q * k).sum(-1))) @ v

    # What each chunk adds to the state, and what the later ones read of it.
    first, last = (1, chunks - 1) if initial is None else (0, chunks)
    carried = initial
    if chunks > first:
        to_end = torch.exp(decay[:, :last, :, -1:] - decay[:, :last]).to(narrow)
        left = ((k[:, :last] * to_end).transpose(-1, -2) @ v[:, :last]).to(wide).unbind(1)
        across = torch.exp(decay[:, :last, :, -1])[..., None].unbind(1)
        before = [] if carried is None else [carried.to(wide)]
        for added, share in zip(left, across, strict=True):
            before.append(before[-1] * share + added if before else added)
        carried = before[-1]
        read = torch.stack(before[: chunks - first], 1).to(narrow)
        later = (q[:, first:] * torch.exp(decay[:, first:]).to(narrow)) @ read
        y = torch.cat((y[:, :first], y[:, first:] + later), 1) if first else y + later
    y = y.transpose(2, 3).flatten(1, 2)
    return (y[:, :length].clone() if missing else y), carried


def recomputed_gated(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int) -> Tensor:
    """The outputs of :func:`chunked_gated`, with nothing kept for the backward pass but the arguments."""
    return recomputed(lambda q, k, v, decay: chunked_gated(q, k, v, decay, chunk)[0], q, k, v, decay)


def gated_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """One position from a state; shapes as in :func:`chunked_gated` with one position, all in the state's type."""
    state = initial * torch.exp(decay[:, 0])[..., None] + k[:, 0, ..., None] * v[:, 0, :, None, :]
    return (q[:, 0, :, None, :] @ state)[..., 0, :][:, None] * k.shape[-1] ** -0.5, state


class GatedLinearAttention(nn.Module):
    """Linear attention with decays from the input over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.GatedLinearAttention, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        hidden = context.hidden_size
        self.q_proj = nn.Linear(hidden, component.key_size, bias=False)
        self.k_proj = nn.Linear(hidden, component.key_size, bias=False)
        self.v_proj = nn.Linear(hidden, component.value_size, bias=False)
        self.gate_proj = nn.Linear(hidden, component.value_size, bias=False)
        self.decay_a_proj = nn.Linear(hidden, component.gate_rank, bias=False)
        self.decay_b_proj = nn.Linear(component.gate_rank, component.key_size)
        epsilon = context.norm.epsilon if component.norm_epsilon is None else component.norm_epsilon
        self.norm = RMSNorm(component.value_head_dim, epsilon, False, context.kernels)
        self.o_proj = nn.Linear(component.value_size, hidden, bias=False)

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> DecayCache:
        """An empty cache with the shape that the planner counts."""
        entries = self.component.cache(self.o_proj.out_features, context_length)
        return DecayCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(self, x: Tensor, cache: DecayCache | None = None, start: int = 0) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        q, k, v, logits = (
            part.unflatten(-1, (component.num_heads, -1))
            for part in (self.q_proj(x), self.k_proj(x), self.v_proj(x), self.decay_b_proj(self.decay_a_proj(x)))
        )
        normalizer = component.gate_logit_normalizer
        if self.kernels == "reference":
            decay = logarithms(logits, normalizer)
        else:
            decay = _LogarithmsFunction.apply(logits, normalizer)
        if cache is not None:
            held = cache.state.to(decay.dtype)
            parts = (q.to(decay.dtype), k.to(decay.dtype), v.to(decay.dtype), decay)
            last: Tensor | None
            if x.shape[1] == 1:
                y, last = gated_step(*parts, held)
            else:
                y, last = chunked_gated(*parts, component.chunk_size, held)
            assert last is not None
            cache.state.copy_(last)
            y = y.to(v.dtype)
        elif self.kernels == "reference":
            y, _ = chunked_gated(q, k, v, decay, component.chunk_size)
        else:
            y = recomputed_gated(q, k, v, decay, component.chunk_size)
        gate = self.gate_proj(x).view_as(y)
        return self.o_proj(gated(gate, self.norm(y), "silu", self.kernels).flatten(2))
