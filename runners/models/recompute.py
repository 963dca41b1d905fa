"""Operations that keep their arguments alone, and are computed again in the backward pass, as fused kernels do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        ctx.save_for_backward(*arguments)
        ctx.function = function
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        kept: tuple[Tensor | None, ...] = ctx.saved_tensors
        again = [part.detach().requires_grad_() if _is_real(part) else part for part in kept]
        with torch.enable_grad():
            result = ctx.function(*again)
        found = iter(torch.autograd.grad(result, [part for part in again if _is_real(part)], gradients[0]))
        return None, *(next(found) if _is_real(part) else None for part in again)


def _is_real(part: Tensor | None) -> TypeGuard[Tensor]:
    return part is not None and part.is_floating_point()


def recomputed(function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    """``function(*arguments)`` with nothing kept for the backward pass but the arguments.

    What autograd would keep of a chunk or of scores is quadratic in its length for every head. Arguments that are no
    floating-point tensors, and whatever else the function reads, get no gradient.
    """
    result: Tensor = _Recomputed.apply(function, *arguments)
    return result
