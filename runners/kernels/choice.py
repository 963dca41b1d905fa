"""Whether a Triton kernel computes an operation: always where demanded, on a CUDA device where the choice is left."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from runners.kernels.base import launch_obstacle

Kernels = Literal["auto", "reference", "eager", "triton", "block_sparse"]


def takes_triton(kernels: Kernels, x: Tensor, widest: int | None = None) -> bool:
    """``auto`` means Triton on an NVIDIA device and PyTorch elsewhere; ``triton`` demands it, or fails saying why.

    float64, fake tensors, older devices, a missing Triton and rows wider than ``widest`` are "elsewhere" too.
    """
    if kernels == "auto":
        return x.is_cuda and launch_obstacle(x) is None and (widest is None or x.shape[-1] <= widest)
    return kernels == "triton"
