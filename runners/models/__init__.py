"""PyTorch models built from the planner's specifications: one module a component, file by file."""

from __future__ import annotations

import torch

from planner.sizing import size
from planner.spec import ArchitectureSpec
from runners.models.context import Kernels
from runners.models.decoder import Decoder, ModelOutput
from runners.models.generation import GREEDY, GeneratedStep, Sampling
from runners.models.huggingface import load_huggingface
from runners.models.huggingface_files import save_huggingface
from runners.models.speculative import SpeculatedToken, Speculation

__all__ = [
    "GREEDY",
    "Decoder",
    "GeneratedStep",
    "Kernels",
    "ModelOutput",
    "Sampling",
    "SpeculatedToken",
    "Speculation",
    "build",
    "load_huggingface",
    "save_huggingface",
]


def _keep_in_float32(model: Decoder) -> None:
    """Decay rates, skips and biases of time steps stay in full precision, as the planner counts them."""
    sized = size(model.spec)
    kept = {tensor.name for tensor in (*sized.tensors, *sized.buffers) if tensor.dtype_class == "float32"}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in kept:
            tensor.data = tensor.data.float()


def build(
    spec: ArchitectureSpec,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "auto",
    seed: int = 0,
) -> Decoder:
    """The module of a specification, initialized from ``seed``.

    ``kernels``: ``reference`` is plain PyTorch, the truth that others are held against; ``eager`` the best without
    Triton; ``triton`` demands the kernels; ``auto`` takes them on a CUDA device and ``eager`` elsewhere;
    ``block_sparse`` is ``eager`` that computes no block of scores that a mask empties.
    """
    with torch.random.fork_rng():  # a caller's own random numbers stay as they are
        with torch.device(device):
            model = Decoder(spec, kernels)
        if dtype != torch.float32:
            model = model.to(dtype)
        if dtype in (torch.bfloat16, torch.float16):
            _keep_in_float32(model)
        if str(device) != "meta":
            model.reset_parameters(seed)
    return model
