"""Whether a Triton kernel computes an operation: always where demanded, on a CUDA device where the choice is left."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from runners.kernels.base import launch_obstacle

Kernels = Literal["auto", "reference", "eager", "triton"]


def takes_triton(kernels: Kernels, x: Tensor) -> bool:
    """``auto`` means Triton on an NVIDIA device and PyTorch elsewhere; ``triton`` demands it, or fails saying why.

    float64, fake tensors, older devices and a missing Triton are "elsewhere" too.
    """
    return kernels == "triton" or (kernels == "auto" and x.is_cuda and launch_obstacle(x) is None)
