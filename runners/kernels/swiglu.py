"""SwiGLU's product, silu(gate) times up (Shazeer 2020, arXiv:2002.05202), forward and backward in one pass each.

The backward pass computes the sigmoid again from the saved gate, so that nothing but the two inputs is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from runners.kernels.base import (
    BenchmarkCase,
    CompileVariant,
    Kernel,
    KernelUnsupported,
    Launch,
    ceiling_division,
    jit,
    launch_obstacle,
    tl,
)

NAME = "swiglu"
LAUNCH = Launch({"BLOCK": 1024}, num_warps=4)


@jit
def _forward(gate, up, output, elements, BLOCK: tl.constexpr):
    offsets = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    gates = tl.load(gate + offsets, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + offsets, (gates * tl.sigmoid(gates) * ups).to(output.dtype.element_ty), mask=inside)


@jit
def _backward(gate, up, gradient, to_gate, to_up, elements, BLOCK: tl.constexpr):
    offsets = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    gates = tl.load(gate + offsets, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + offsets, mask=inside, other=0.0).to(tl.float32)
    received = tl.load(gradient + offsets, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gates)
    silu = gates * share
    slope = share * (1.0 + gates * (1.0 - share))
    tl.store(to_gate + offsets, (received * ups * slope).to(to_gate.dtype.element_ty), mask=inside)
    tl.store(to_up + offsets, (received * silu).to(to_up.dtype.element_ty), mask=inside)


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """Plain PyTorch, both inputs and the result of one shape."""
    return torch.nn.functional.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        output = torch.empty_like(gate)
        ctx.save_for_backward(gate, up)
        if gate.numel():
            grid = (ceiling_division(gate.numel(), LAUNCH.blocks["BLOCK"]),)
            _forward[grid](gate, up, output, gate.numel(), **LAUNCH.blocks, **LAUNCH.options())
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        if gate.numel():
            grid = (ceiling_division(gate.numel(), LAUNCH.blocks["BLOCK"]),)
            _backward[grid](gate, up, gradient, to_gate, to_up, gate.numel(), **LAUNCH.blocks, **LAUNCH.options())
        return to_gate, to_up


def triton_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The kernels; raises ``KernelUnsupported`` where they do not take the inputs."""
    reason = launch_obstacle(gate, up)
    if reason is None and (gate.shape != up.shape or gate.dtype != up.dtype):
        reason = "gate and up differ in shape or type"
    if reason is not None:
        raise KernelUnsupported(NAME, reason)
    result: Tensor = _SwiGLU.apply(gate, up)
    return result


def variants(architecture: int) -> Iterator[CompileVariant]:
    """Forward and backward by type; the width plays no part."""
    for dtype in ("bf16", "fp16", "fp32"):
        constants = dict(LAUNCH.blocks)
        constexprs = dict.fromkeys(constants, "constexpr")
        aligned = frozenset({"elements"})
        forward = {name: f"*{dtype}" for name in ("gate", "up", "output")} | {"elements": "i32"} | constexprs
        yield CompileVariant(NAME, _forward, dtype, {}, forward, constants, LAUNCH, aligned)
        names = ("gate", "up", "gradient", "to_gate", "to_up")
        backward = {name: f"*{dtype}" for name in names} | {"elements": "i32"} | constexprs
        yield CompileVariant(NAME, _backward, dtype, {}, backward, constants, LAUNCH, aligned)


def benchmark_cases() -> Sequence[BenchmarkCase]:
    """The gate of an 8B model over a prefill."""
    rows, width = 8192, 14_336

    def make(device: torch.device) -> tuple[Tensor, ...]:
        return tuple(torch.randn(rows, width, device=device, dtype=torch.bfloat16) for _ in range(2))

    def call(kernels: str, inputs: tuple[Tensor, ...]) -> Tensor:
        return triton_swiglu(*inputs) if kernels == "triton" else reference(*inputs)

    return [BenchmarkCase(f"{rows:,} rows of {width:,}", make, call, 3 * 2 * rows * width)]


KERNEL = Kernel(NAME, "SwiGLU, forward and backward", variants, benchmark_cases)
