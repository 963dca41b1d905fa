"""PyTorch models built from the planner's specifications: one module a component, file by file."""

from __future__ import annotations

import torch

from planner.spec import ArchitectureSpec
from runners.models.context import Kernels
from runners.models.decoder import Decoder, ModelOutput

__all__ = ["Decoder", "Kernels", "ModelOutput", "build"]


def build(
    spec: ArchitectureSpec,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "auto",
    seed: int = 0,
) -> Decoder:
    """The module of a specification, initialized from ``seed``.

    ``kernels``: ``reference`` is plain PyTorch, the truth that others are held against; ``eager`` the best without
    Triton; ``triton`` demands the kernels; ``auto`` takes them on a CUDA device and ``eager`` elsewhere.
    """
    with torch.random.fork_rng():  # a caller's own random numbers stay as they are
        with torch.device(device):
            model = Decoder(spec, kernels)
        if dtype != torch.float32:
            model = model.to(dtype)
        if str(device) != "meta":
            model.reset_parameters(seed)
    return model
