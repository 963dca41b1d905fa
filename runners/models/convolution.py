"""The short causal convolution of state space layers, one filter a channel, written as a sum of shifts.

FlopCounterMode counts a depthwise convolution's backward 66 times its forward; shifts are elementwise and count none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None = None) -> Tensor:
    """Convolve x (batch, positions, channels) with weight (channels, 1, taps), each position with those before it.

    ``before`` (batch, taps - 1, channels) are the inputs ahead of the first position; zeros where absent.
    """
    taps = weight.shape[-1]
    length = x.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0)) if before is None else torch.cat((before.to(x.dtype), x), 1)
    filters = weight[:, 0, :].to(x.dtype)
    mixed = padded[:, :length] * filters[:, 0]
    for tap in range(1, taps):
        mixed = mixed + padded[:, tap : tap + length] * filters[:, tap]
    return mixed if bias is None else mixed + bias.to(x.dtype)


def last_inputs(before: Tensor, x: Tensor) -> Tensor:
    """The last inputs, (batch, channels, taps), of those held so far and new x (batch, positions, channels)."""
    taps = before.shape[-1]
    return torch.cat((before, x.transpose(1, 2).to(before.dtype)), -1)[..., -taps:]
