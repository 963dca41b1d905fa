"""The short causal convolution of state space layers, one filter a channel, written as a sum of shifts.

FlopCounterMode counts a depthwise convolution's backward 66 times its forward; shifts are elementwise and count none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Convolution(torch.autograd.Function):
    """Saves the padded inputs and the filters; each tap is added in place, forward and backward."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, filters)
        ctx.has_bias = bias is not None
        taps = filters.shape[1]
        length = padded.shape[1] - taps + 1
        mixed = padded[:, :length] * filters[:, 0]
        for tap in range(1, taps):
            mixed.addcmul_(padded[:, tap : tap + length], filters[:, tap])
        return mixed if bias is None else mixed.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        padded, filters = ctx.saved_tensors
        gradient, taps = gradients[0], filters.shape[1]
        length = gradient.shape[1]
        to_padded, to_filters = torch.zeros_like(padded), torch.empty_like(filters)
        product = torch.empty_like(gradient)
        for tap in range(taps):
            to_padded[:, tap : tap + length].addcmul_(gradient, filters[:, tap])
            torch.mul(gradient, padded[:, tap : tap + length], out=product)
            to_filters[:, tap] = product.sum((0, 1))
        return to_padded, to_filters, gradient.sum((0, 1)) if ctx.has_bias else None


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None = None) -> Tensor:
    """Convolve x (batch, positions, channels) with weight (channels, 1, taps), each position with those before it.

    ``before`` (batch, taps - 1, channels) are the inputs ahead of the first position; zeros where absent.
    """
    taps = weight.shape[-1]
    padded = F.pad(x, (0, 0, taps - 1, 0)) if before is None else torch.cat((before.to(x.dtype), x), 1)
    filters = weight[:, 0, :].to(x.dtype)
    result: Tensor = _Convolution.apply(padded, filters, None if bias is None else bias.to(x.dtype))
    return result


def last_inputs(before: Tensor, x: Tensor) -> Tensor:
    """The last inputs, (batch, channels, taps), of those held so far and new x (batch, positions, channels)."""
    taps = before.shape[-1]
    return torch.cat((before, x.transpose(1, 2).to(before.dtype)), -1)[..., -taps:]
