"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), forward and backward, one row a program.

x (rows, channels) times its inverse root mean square times weight (channels,), or times one plus the weight where it is
stored around zero. The forward pass keeps the scale of each row; the backward pass gives the input's gradient and, a
partial sum a program, the weight's.
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
    jit,
    launch_obstacle,
    next_power_of_two,
    tl,
)

NAME = "rms_norm"
WIDEST = 16_384
BACKWARD_PROGRAMS = 256
"""Programs that share the rows of a backward pass; each keeps one partial sum of the weight's gradient."""


@jit
def _forward(x, weight, output, scales, row_stride, channels, epsilon, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """One row: mean square, scale, product."""
    row = tl.cast(tl.program_id(0), tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < channels
    values = tl.load(x + row * row_stride + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / channels + epsilon)
    factors = tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32) + OFFSET
    tl.store(scales + row, scale)
    tl.store(output + row * channels + offsets, (values * scale * factors).to(output.dtype.element_ty), mask=inside)


@jit
def _backward(
    x, weight, scales, gradient, to_x, to_weight, row_stride, gradient_stride, rows, channels, rows_each,
    OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``rows_each`` rows after each other; the weight's gradient is summed in registers."""
    program = tl.cast(tl.program_id(0), tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < channels
    factors = tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32) + OFFSET
    summed = tl.zeros((BLOCK,), tl.float32)
    first = program * rows_each
    for row in range(first, tl.minimum(first + rows_each, rows)):
        values = tl.load(x + row * row_stride + offsets, mask=inside, other=0.0).to(tl.float32)
        received = tl.load(gradient + row * gradient_stride + offsets, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        normalized = values * scale
        weighted = received * factors
        along = tl.sum(weighted * normalized, 0) / channels
        result = (weighted - normalized * along) * scale
        tl.store(to_x + row * channels + offsets, result.to(to_x.dtype.element_ty), mask=inside)
        summed += received * normalized
    tl.store(to_weight + program * channels + offsets, summed, mask=inside)


def launch_for(channels: int) -> Launch:
    """Warps by width, so that a program's registers hold its row."""
    block = next_power_of_two(channels)
    return Launch({"BLOCK": block}, num_warps=min(16, max(1, block // 512)))


def reference(x: Tensor, weight: Tensor, epsilon: float, zero_centered: bool = False) -> Tensor:
    """Plain PyTorch."""
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale * (weight.to(wide.dtype) + (1.0 if zero_centered else 0.0))).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        channels = x.shape[-1]
        flat = x.reshape(-1, channels)
        flat = flat if flat.stride(-1) == 1 else flat.contiguous()
        output = torch.empty(flat.shape, dtype=x.dtype, device=x.device)
        scales = torch.empty(flat.shape[0], dtype=torch.float32, device=x.device)
        launch = launch_for(channels)
        if flat.shape[0]:
            _forward[(flat.shape[0],)](
                flat, weight, output, scales, flat.stride(0), channels, epsilon,
                OFFSET=offset, **launch.blocks, **launch.options(),
            )  # fmt: skip
        ctx.save_for_backward(flat, weight, scales)
        ctx.offset = offset
        return output.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        rows, channels = x.shape
        received = gradient.reshape(rows, channels).contiguous()
        to_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        programs = min(BACKWARD_PROGRAMS, max(1, rows))
        rows_each = -(-rows // programs)
        partial = torch.zeros(programs, channels, dtype=torch.float32, device=x.device)
        launch = launch_for(channels)
        _backward[(programs,)](
            x, weight, scales, received, to_x, partial, x.stride(0), received.stride(0), rows, channels, rows_each,
            OFFSET=ctx.offset, **launch.blocks, **launch.options(),
        )  # fmt: skip
        return to_x.view(gradient.shape), partial.sum(0).to(weight.dtype), None, None


def triton_rms_norm(x: Tensor, weight: Tensor, epsilon: float, zero_centered: bool = False) -> Tensor:
    """The kernels; raises ``KernelUnsupported`` where they do not take the inputs."""
    reason = launch_obstacle(x, weight)
    if reason is None and x.shape[-1] > WIDEST:
        reason = f"rows of {x.shape[-1]:,} channels are wider than {WIDEST:,}"
    if reason is None and (weight.shape != x.shape[-1:] or not weight.is_contiguous()):
        reason = f"a weight of {tuple(weight.shape)} is not one contiguous value for each of {x.shape[-1]:,} channels"
    if reason is not None:
        raise KernelUnsupported(NAME, reason)
    result: Tensor = _RMSNorm.apply(x, weight, epsilon, 1.0 if zero_centered else 0.0)
    return result


def variants(architecture: int) -> Iterator[CompileVariant]:
    """Forward and backward at three widths in bf16, and one in fp32."""
    for dtype, channels in (("bf16", 1024), ("bf16", 4096), ("bf16", 8192), ("fp32", 4096)):
        launch = launch_for(channels)
        constants: dict[str, Any] = {"OFFSET": 0.0, **launch.blocks}
        constexprs = dict.fromkeys(constants, "constexpr")
        forward = {"x": f"*{dtype}", "weight": f"*{dtype}", "output": f"*{dtype}", "scales": "*fp32"}
        forward |= {"row_stride": "i32", "channels": "i32", "epsilon": "fp32"} | constexprs
        yield CompileVariant(
            NAME,
            _forward,
            dtype,
            {"channels": channels},
            forward,
            constants,
            launch,
            frozenset({"row_stride", "channels"}),
        )
        backward = {"x": f"*{dtype}", "weight": f"*{dtype}", "scales": "*fp32", "gradient": f"*{dtype}"}
        backward |= {"to_x": f"*{dtype}", "to_weight": "*fp32"}
        backward |= (
            dict.fromkeys(("row_stride", "gradient_stride", "rows", "channels", "rows_each"), "i32") | constexprs
        )
        aligned = frozenset({"row_stride", "gradient_stride", "channels"})
        yield CompileVariant(NAME, _backward, dtype, {"channels": channels}, backward, constants, launch, aligned)


def _case(rows: int, channels: int) -> BenchmarkCase:
    def make(device: torch.device) -> tuple[Tensor, ...]:
        x = torch.randn(rows, channels, device=device, dtype=torch.bfloat16)
        return x, torch.ones(channels, device=device, dtype=torch.bfloat16)

    def call(kernels: str, inputs: tuple[Tensor, ...]) -> Tensor:
        x, weight = inputs
        if kernels == "triton":
            return triton_rms_norm(x, weight, 1e-6)
        if kernels == "eager":
            return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6)
        return reference(x, weight, 1e-6)

    return BenchmarkCase(f"{rows:,} rows of {channels:,}", make, call, 2 * 2 * rows * channels)


def benchmark_cases() -> Sequence[BenchmarkCase]:
    """A prefill's rows at two widths."""
    return [_case(8192, 4096), _case(8192, 8192)]


KERNEL = Kernel(NAME, "RMSNorm, forward and backward", variants, benchmark_cases)
