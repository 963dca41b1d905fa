"""What every kernel of this package is made of.

A kernel file holds its ``@jit`` functions, a ``reference`` in plain PyTorch, an autograd-capable public function, the
launch it takes for a size and an architecture, and a ``KERNEL`` that describes all this to the report, the benchmark
and the registry.

This module (and so every kernel file) imports without Triton and without a GPU: the references and the PyTorch paths
must work everywhere. What needs Triton then says so through :class:`KernelUnsupported`. It knows nothing of models,
specifications or jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

try:
    import triton as triton
    import triton.language as language

    tl: Any = language
except ImportError:  # platforms for which no Triton wheel exists
    triton = None
    tl = None

# Triton's name of an element type, by PyTorch's. Float64 is for references alone.
TRITON_DTYPES: Mapping[torch.dtype, str] = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

# Shared memory that one block may ask for, in bytes, by compute capability × 10.
# CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications-technical-specifications-per-compute-capability
SHARED_MEMORY_BYTES: Mapping[int, int] = {
    80: 163 * 1024,
    86: 99 * 1024,
    87: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    103: 227 * 1024,
    120: 99 * 1024,
}
SMALLEST_SHARED_MEMORY_BYTES = 99 * 1024

# Where the interpreter stands in for a GPU, launches are chosen as for this architecture.
INTERPRETED_ARCHITECTURE = 80


class KernelUnsupported(ValueError):
    """A Triton kernel was demanded for inputs, or on a machine, that it isn't written for.

    ``kernel`` names it, ``reason`` says what is in the way, ``remedy`` what to do instead.
    """

    def __init__(self, kernel: str, reason: str, remedy: str = 'use kernels="auto" or "eager"') -> None:
        self.kernel = kernel
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{kernel}: {reason}; {remedy}")


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: block sizes (its constexpr parameters), warps a block, stages of the load pipeline."""

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int = 1

    def options(self) -> dict[str, int]:
        """The keyword arguments that Triton's launcher and its compiler both take."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class CompileVariant:
    """One compilation of a kernel, as a launch on a GPU would ask for it.

    ``signature`` maps each parameter, in order, to Triton's type (``"*bf16"``, ``"i32"``, ``"fp32"``, ``"constexpr"``);
    ``constants`` gives the values of the constexpr ones; ``aligned`` names the integers that a launch would find
    divisible by 16 (pointers always are). ``sizes`` are the model's own numbers, such as ``head_dim``.
    """

    kernel: str
    function: Any
    dtype: str
    sizes: Mapping[str, int]
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    launch: Launch
    aligned: frozenset[str] = frozenset()

    @property
    def function_name(self) -> str:
        """The name of the compiled function, without the underscore of a private one."""
        return str(self.function.__name__).lstrip("_")


@dataclass(frozen=True)
class BenchmarkCase:
    """Inputs of one timing: ``make(device)`` allocates them, ``call(kernels, inputs)`` runs the public function.

    ``moved_bytes`` is what the call must read and write at least, ``operations`` its floating-point operations
    (attention counts the pairs under the mask), so that times become GB/s and TFLOP/s.
    """

    label: str
    make: Callable[[torch.device], tuple[torch.Tensor, ...]]
    call: Callable[[str, tuple[torch.Tensor, ...]], object]
    moved_bytes: int
    operations: int = 0


@dataclass(frozen=True)
class Kernel:
    """A kernel as the registry, the report and the benchmark see it."""

    name: str
    summary: str
    variants: Callable[[int], Iterator[CompileVariant]]
    benchmark_cases: Callable[[], Sequence[BenchmarkCase]]
    tensor_core: bool = field(default=False)


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit`` where Triton is present; else the function itself, which nothing then calls."""
    return function if triton is None else triton.jit(function)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (``TRITON_INTERPRET=1`` before the first import)."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def architecture_of(device: torch.device) -> int:
    """Compute capability × 10 of a CUDA device: 80, 89, 90, 100 …; the interpreter counts as 80."""
    if device.type != "cuda":
        return INTERPRETED_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def shared_memory_limit_bytes(architecture: int) -> int:
    """Shared memory a block may use, in bytes; the smallest known for an architecture that isn't in the table."""
    return SHARED_MEMORY_BYTES.get(architecture, SMALLEST_SHARED_MEMORY_BYTES)


def launch_obstacle(*tensors: torch.Tensor) -> str | None:
    """Why no Triton kernel can be launched on these tensors, or None: device, Triton, dtype, fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensor

    if triton is None:
        return "Triton is not installed"
    first = tensors[0]
    if any(isinstance(tensor, FakeTensor) or tensor.device.type == "meta" for tensor in tensors):
        return "fake and meta tensors hold no data to run on"
    if any(tensor.device != first.device for tensor in tensors):
        return f"tensors are on several devices ({', '.join(sorted({str(t.device) for t in tensors}))})"
    for tensor in tensors:
        if tensor.dtype not in TRITON_DTYPES:
            return f"dtype {tensor.dtype} is not one of float16, bfloat16 and float32"
    if first.device.type == "cpu" and interpreted():
        return None
    if first.device.type != "cuda":
        return f"tensors are on {first.device.type}, not on a CUDA device"
    if torch.version.hip is not None:
        return "launches are chosen for NVIDIA GPUs, and this PyTorch is built for AMD's"
    if architecture_of(first.device) < 80:
        return f"compute capability {architecture_of(first.device) / 10} is older than 8.0"
    return None


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value`` (value ≥ 1)."""
    return 1 << (value - 1).bit_length()


def ceiling_division(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` rounded up, in integers."""
    return -(-numerator // denominator)
