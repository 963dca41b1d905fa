"""The short causal convolution of state space layers, one filter a channel.

On a CPU oneDNN convolves, channels innermost. Elsewhere, in float64 and for the plain truth it is a sum of shifts:
FlopCounterMode counts a depthwise convolution's backward 66 times its forward; shifts are elementwise and count none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runners.models.context import Kernels


def _is_convolved(x: Tensor) -> bool:
    """Whether oneDNN has a fast convolution of one filter a channel for it, and it is worth the call."""
    if x.device.type != "cpu" or x.shape[1] == 1 or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """Each of x (batch, positions, channels) with those behind it, by filters (channels, taps); zeros on both sides."""
    images = x.transpose(1, 2)[:, :, None]
    result = F.conv2d(images, filters[:, None, None], bias, padding=(0, padding), groups=filters.shape[0])
    return result[:, :, 0].transpose(1, 2).contiguous()


def _shifted(padded: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The same as a sum, each tap added in place."""
    taps = filters.shape[1]
    length = padded.shape[1] - taps + 1
    mixed = padded[:, :length] * filters[:, 0]
    for tap in range(1, taps):
        mixed.addcmul_(padded[:, tap : tap + length], filters[:, tap])
    return mixed if bias is None else mixed.add_(bias)


def _shifted_back(gradient: Tensor, filters: Tensor) -> Tensor:
    """The gradient of what was padded, from that of the sum."""
    taps, length = filters.shape[1], gradient.shape[1]
    to_padded = gradient.new_zeros(gradient.shape[0], length + taps - 1, gradient.shape[2])
    for tap in range(taps):
        to_padded[:, tap : tap + length].addcmul_(gradient, filters[:, tap])
    return to_padded


class _Convolution(torch.autograd.Function):
    """Saves the padded inputs and the filters."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, filters: Tensor, bias: Tensor | None, plain: bool) -> Tensor:
        ctx.save_for_backward(padded, filters)
        ctx.has_bias, ctx.plain = bias is not None, plain
        return _shifted(padded, filters, bias) if plain else _convolved(padded, filters, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        padded, filters = ctx.saved_tensors
        gradient, taps = gradients[0], filters.shape[1]
        length = gradient.shape[1]
        if ctx.plain:
            to_padded = _shifted_back(gradient, filters)
        else:
            to_padded = _convolved(gradient, filters.flip(1), padding=taps - 1)
        to_filters = torch.empty_like(filters)
        product = torch.empty_like(gradient)
        for tap in range(taps):
            torch.mul(gradient, padded[:, tap : tap + length], out=product)
            to_filters[:, tap] = product.sum((0, 1))
        return to_padded, to_filters, gradient.sum((0, 1)) if ctx.has_bias else None, None


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels, before: Tensor | None = None
) -> Tensor:
    """Convolve x (batch, positions, channels) with weight (channels, 1, taps), each position with those before it.

    ``before`` (batch, taps - 1, channels) are the inputs ahead of the first position; zeros where absent.
    """
    taps = weight.shape[-1]
    padded = F.pad(x, (0, 0, taps - 1, 0)) if before is None else torch.cat((before.to(x.dtype), x), 1)
    filters = weight[:, 0, :].to(x.dtype)
    plain = kernels == "reference" or not _is_convolved(x)
    result: Tensor = _Convolution.apply(padded, filters, None if bias is None else bias.to(x.dtype), plain)
    return result


def last_inputs(before: Tensor, x: Tensor) -> Tensor:
    """The last inputs, (batch, channels, taps), of those held so far and new x (batch, positions, channels)."""
    taps = before.shape[-1]
    return torch.cat((before, x.transpose(1, 2).to(before.dtype)), -1)[..., -taps:]
