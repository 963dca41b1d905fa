"""The head and its cross-entropy in one, over chunks of positions: no logits of the whole batch ever exist.

As in Liger's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989, section 3.2), the gradients are made in the
forward pass, chunk by chunk, so that nothing is multiplied twice: the FLOPs are those of the plain head and loss.

What is kept for the backward pass are the gradients of the hidden states (in their type) and of the head's matrix and
bias (in the parameter's type). While a chunk of ``LOSS_CHUNK_TOKENS`` positions is worked on there are besides it: its
logits in the type that matrices are multiplied in, their copy and their log-probabilities in fp32 (or fp64), and the
product that is added to the matrix's gradient; under autocast also the matrix cast once. Of the plain loss that takes
away, for all positions, the logits, their log-probabilities and both of their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_CHUNK_TOKENS = 512
"""Positions whose logits exist at a time."""


def _bounded(logits: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    logits = logits if scale is None else logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _through_bounds(gradient: Tensor, logits: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """The gradient of what the head multiplied, from that of the bounded ``logits``."""
    if softcap is not None:
        gradient = gradient * (1 - (logits / softcap).square())
    return gradient if scale is None else gradient * scale


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignored: int,
        scale: float | None,
        softcap: float | None,
        is_trained: bool,
    ) -> Tensor:
        wide = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
        matrix = weight.to(hidden.dtype)
        offsets = None if bias is None else bias.to(hidden.dtype)
        # Positions that count; none at all gives what the mean over nothing is, not a number.
        counted = (targets != ignored).sum().to(wide)
        total = hidden.new_zeros((), dtype=wide)
        wanted = [needed and is_trained for needed in ctx.needs_input_grad]
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        to_weight = torch.zeros_like(weight) if wanted[1] else None
        to_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
        for first in range(0, hidden.shape[0], LOSS_CHUNK_TOKENS):
            rows, labels = hidden[first : first + LOSS_CHUNK_TOKENS], targets[first : first + LOSS_CHUNK_TOKENS]
            logits = _bounded(F.linear(rows, matrix, offsets), scale, softcap)
            likelihoods = torch.log_softmax(logits.to(wide), -1)
            is_counted = (labels != ignored)[:, None]
            place = labels.clamp(min=0)[:, None]
            total -= (likelihoods.gather(1, place) * is_counted).sum()
            if not any(wanted):
                continue
            gradient = likelihoods.exp_()
            gradient.scatter_add_(1, place, torch.full_like(place, -1, dtype=wide))
            gradient *= is_counted / counted
            # CUDA's autocast takes squares in fp32.
            gradient = _through_bounds(gradient.to(hidden.dtype), logits, scale, softcap).to(hidden.dtype)
            del logits, likelihoods
            if to_hidden is not None:
                torch.mm(gradient, matrix, out=to_hidden[first : first + LOSS_CHUNK_TOKENS])
            if to_weight is not None:
                to_weight += gradient.t() @ rows
            if to_bias is not None:
                to_bias += gradient.sum(0)
        # Not among the saved tensors, which stay referred to: so the gradients may be handed on without a copy.
        ctx.made = to_hidden, to_weight, to_bias
        return total / counted

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        if ctx.made is None:
            raise RuntimeError("the chunked loss hands its gradients on once: compute the loss anew")
        made, ctx.made = ctx.made, None
        scaled = [None if part is None else part.mul_(gradients[0].to(part.dtype)) for part in made]
        return *scaled, None, None, None, None, None


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignored: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Mean cross-entropy in nats of ``targets`` (rows,) under the head's logits of ``hidden`` (rows, channels).

    ``weight`` is (vocab_size, channels), ``bias`` (vocab_size,). Rows whose target is ``ignored`` are left out. Logits
    are multiplied by ``scale`` and bounded by ``softcap * tanh(logit / softcap)`` where these are given. Multiplied in
    the type of ``hidden``; the loss is fp32 (fp64 of fp64). Its backward pass runs once.
    """
    loss: Tensor = _ChunkedLoss.apply(hidden, weight, bias, targets, ignored, scale, softcap, torch.is_grad_enabled())
    return loss
