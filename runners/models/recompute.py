"""Operations that keep their arguments alone, and are computed again in the backward pass, as fused kernels do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        ctx.function = function
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        leaves = [argument.detach().requires_grad_() for argument in ctx.saved_tensors]
        with torch.enable_grad():
            result = ctx.function(*leaves)
        return None, *torch.autograd.grad(result, leaves, gradients[0])


def recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """``function(*arguments)`` with nothing kept for the backward pass but the arguments, floating-point tensors all.

    What autograd would keep of a chunk or of scores is quadratic in its length for every head. Whatever else the
    function reads is bound to it beforehand, and gets no gradient.
    """
    result: Tensor = _Recomputed.apply(function, *arguments)
    return result
