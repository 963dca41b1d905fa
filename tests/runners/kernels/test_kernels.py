"""Kernels in Triton's interpreter against float64, refusals, and on a GPU the compiled ones."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from runners.kernels import causal_attention, rms_norm, swiglu
from runners.kernels.base import KernelUnsupported
from runners.kernels.choice import takes_triton

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kernel, checks", [("rms_norm", 36), ("swiglu", 24), ("causal_attention", 64), ("refusals", 4)]
)
def test_interpreted_kernel_equals_float64_forward_and_backward(kernel: str, checks: int) -> None:
    """In its own process: Triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "tests.runners.kernels.interpreted_checks", kernel],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == checks


@pytest.mark.parametrize("query_length", [1, 6])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_eager_attention_is_the_reference(query_length: int, window: int | None) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, query_length, 8).double()
    k, v = torch.randn(2, 2, 6, 8).double(), torch.randn(2, 2, 6, 8).double()
    torch.testing.assert_close(
        causal_attention.eager(q, k, v, 0.3, window), causal_attention.reference(q, k, v, 0.3, window)
    )


def test_what_a_kernel_does_not_take_is_refused_with_the_reason() -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    for call in (
        lambda: rms_norm.triton_rms_norm(x, x[0], 1e-6),
        lambda: swiglu.triton_swiglu(x, x),
        lambda: causal_attention.triton_causal_attention(*[torch.zeros(1, 1, 2, 8)] * 3, 1.0),
    ):
        with pytest.raises(KernelUnsupported) as refused:
            call()
        assert refused.value.reason
        assert refused.value.remedy


def test_the_choice_is_pytorch_away_from_a_gpu_unless_triton_is_demanded() -> None:
    x = torch.zeros(2)
    assert [takes_triton(kernels, x) for kernels in ("auto", "reference", "eager", "triton")] == [
        False, False, False, True,
    ]  # fmt: skip


@pytest.mark.gpu
def test_the_choice_on_a_gpu_leaves_what_no_kernel_takes_to_pytorch() -> None:
    assert takes_triton("auto", torch.zeros(2, device="cuda"))
    assert not takes_triton("auto", torch.zeros(2, device="cuda", dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_compiled_attention_on_a_gpu(dtype: torch.dtype, window: int | None, head_dim: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 8, 300, head_dim, device="cuda", dtype=dtype)
    k, v = (torch.randn(2, 2, 300, head_dim, device="cuda", dtype=dtype) for _ in range(2))
    found = causal_attention.triton_causal_attention(q, k, v, head_dim**-0.5, window)
    expected = causal_attention.reference(q.double(), k.double(), v.double(), head_dim**-0.5, window)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [64, 1000, 8192])
def test_compiled_norm_and_product_on_a_gpu(channels: int) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(77, channels, device="cuda", requires_grad=True) for _ in range(2))
    weight = torch.randn(channels, device="cuda", requires_grad=True)
    found = swiglu.triton_swiglu(rms_norm.triton_rms_norm(x, weight, 1e-6), y)
    wide = [part.detach().double().requires_grad_() for part in (x, weight, y)]
    expected = swiglu.reference(rms_norm.reference(wide[0], wide[1], 1e-6), wide[2])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        torch.autograd.grad(found.sum(), (x, weight, y)), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)
