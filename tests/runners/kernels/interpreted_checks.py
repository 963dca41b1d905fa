"""Run in a process of its own with TRITON_INTERPRET=1: each kernel in Triton's interpreter against float64.

Prints a line a check; ends with status 1 if one fails. bf16 is left out, since the interpreter multiplies its bits as
integers.
"""

from __future__ import annotations

import itertools
import sys

import torch
from torch import Tensor

from runners.kernels import causal_attention, rms_norm, swiglu
from runners.kernels.base import KernelUnsupported

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
failures = 0


def check(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    global failures
    error = ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-9)).item()
    good = error <= tolerance
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {error:.2e}", flush=True)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def gradients(result: Tensor, inputs: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((result.double() * weights).sum(), inputs)


def check_norm() -> None:
    for dtype, (rows, channels), centered in itertools.product(TOLERANCE, [(5, 64), (3, 100), (300, 8)], [False, True]):
        inputs = drawn(rows, channels, dtype=dtype), drawn(channels, dtype=dtype)
        weights = torch.randn(rows, channels).double()
        wide = tuple(part.detach().double().requires_grad_() for part in inputs)
        found = rms_norm.triton_rms_norm(*inputs, 1e-5, centered)
        expected = rms_norm.reference(*wide, 1e-5, centered)
        name = f"rms_norm {dtype} {rows}x{channels} centered={centered}"
        check(name, found, expected, TOLERANCE[dtype])
        for part, one, other in zip(
            ("x", "weight"), gradients(found, inputs, weights), gradients(expected, wide, weights), strict=True
        ):
            check(f"{name} gradient of {part}", one, other, TOLERANCE[dtype] * 2)


def check_swiglu() -> None:
    for dtype, shape in itertools.product(TOLERANCE, [(4, 64), (3, 7, 100), (1, 1), (2, 1500)]):
        inputs = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
        weights = torch.randn(*shape).double()
        wide = tuple(part.detach().double().requires_grad_() for part in inputs)
        found, expected = swiglu.triton_swiglu(*inputs), swiglu.reference(*wide)
        name = f"swiglu {dtype} {shape}"
        check(name, found, expected, TOLERANCE[dtype])
        for part, one, other in zip(
            ("gate", "up"), gradients(found, inputs, weights), gradients(expected, wide, weights), strict=True
        ):
            check(f"{name} gradient of {part}", one, other, TOLERANCE[dtype] * 2)


def check_attention() -> None:
    cases = [
        # batch, heads, key heads, queries, keys, head size, window
        (1, 2, 2, 33, 33, 16, None),
        (2, 4, 2, 50, 50, 24, None),
        (1, 4, 1, 70, 70, 64, 9),
        (1, 2, 1, 140, 140, 16, 33),
        (1, 2, 2, 5, 40, 32, None),
        (1, 2, 2, 1, 17, 32, 4),
        # several tiles of queries, windows just wider than a block of keys, and than a tile
        (1, 1, 1, 300, 300, 32, 65),
        (1, 1, 1, 140, 300, 80, 129),
    ]
    for dtype, case in itertools.product(TOLERANCE, cases):
        batch, heads, key_heads, queries, keys, size, window = case
        inputs = (
            drawn(batch, heads, queries, size, dtype=dtype),
            drawn(batch, key_heads, keys, size, dtype=dtype),
            drawn(batch, key_heads, keys, size, dtype=dtype),
        )
        wide = tuple(part.detach().double().requires_grad_() for part in inputs)
        found = causal_attention.triton_causal_attention(*inputs, size**-0.5, window)
        expected = causal_attention.reference(*wide, size**-0.5, window)
        name = f"causal_attention {dtype} {case}"
        check(name, found, expected, TOLERANCE[dtype])
        weights = torch.randn_like(expected)
        for part, one, other in zip(
            "qkv", gradients(found, inputs, weights), gradients(expected, wide, weights), strict=True
        ):
            check(f"{name} gradient of {part}", one, other, TOLERANCE[dtype] * 4)


def check_refusals() -> None:
    """Shapes that disagree would be read past their ends; a kernel says so instead."""
    global failures
    x, heads = torch.zeros(2, 8), torch.zeros(1, 2, 4, 16)
    calls = {
        "weight of another width": lambda: rms_norm.triton_rms_norm(x, torch.zeros(4), 1e-6),
        "fewer values than keys": lambda: causal_attention.triton_causal_attention(heads, heads, heads[:, :, :3], 1.0),
        "fewer batches of keys": lambda: causal_attention.triton_causal_attention(
            heads.expand(2, 2, 4, 16), heads, heads, 1.0
        ),
        "an empty window": lambda: causal_attention.triton_causal_attention(heads, heads, heads, 1.0, 0),
    }
    for what, call in calls.items():
        try:
            call()
        except KernelUnsupported as refused:
            print(f"ok   {what}: {refused}", flush=True)
        else:
            failures += 1
            print(f"FAIL {what} was taken", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    {
        "rms_norm": check_norm,
        "swiglu": check_swiglu,
        "causal_attention": check_attention,
        "refusals": check_refusals,
    }[sys.argv[1]]()
    sys.exit(1 if failures else 0)
