"""The twin of the toy component."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from runners.models.context import BuildContext


class SumCache:
    """The sum of what was read."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return (self.total,)


class ToyGate(nn.Module):
    """Over x (batch, positions, hidden_size)."""

    seen: Tensor

    def __init__(self, component: Any, context: BuildContext) -> None:
        super().__init__()
        self.down_proj = nn.Linear(context.hidden_size, component.rank, bias=False)
        self.up_proj = nn.Linear(component.rank, context.hidden_size, bias=False)
        self.decay = nn.Parameter(torch.zeros(context.hidden_size))
        self.register_buffer("seen", torch.zeros(1))

    def reset_special(self) -> None:
        """A decay of its own, which no general initialization gives."""
        with torch.no_grad():
            self.decay.fill_(0.75)

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> SumCache:
        """An empty cache."""
        return SumCache(torch.zeros(batch_size, self.decay.numel(), device=device, dtype=dtype))

    def forward(self, x: Tensor, cache: SumCache | None = None, start: int = 0) -> Tensor:
        gate = self.up_proj(self.down_proj(x))
        sums = x.cumsum(1)
        if cache is not None:
            sums = sums + cache.total[:, None]
            cache.total.copy_(sums[:, -1])
        return gate * (sums * self.decay)
