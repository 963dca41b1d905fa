"""Kernels in Triton's interpreter against float64, refusals, and on a GPU the compiled ones."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from planner.components.patterns import MaskPattern
from runners.kernels import causal_attention, rms_norm, swiglu
from runners.kernels.attention_blocks import Places
from runners.kernels.base import KernelUnsupported
from runners.kernels.choice import takes_triton

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kernel, checks",
    [
        ("rms_norm", 36),
        ("swiglu", 24),
        ("causal_attention", 68),
        ("patterns", 126),
        ("places", 75),
        ("models", 78),
        ("refusals", 6),
    ],
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
        causal_attention.eager(q, k, v, 0.3, MaskPattern(window)),
        causal_attention.reference(q, k, v, 0.3, MaskPattern(window)),
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


GPU_PATTERNS = [
    MaskPattern(),
    MaskPattern(sliding_window=100),
    MaskPattern(sliding_window=30, dilation=3),
    MaskPattern(sliding_window=50, global_tokens=5),
    MaskPattern(attention_chunk_size=96),
    MaskPattern(attention_chunk_size=64, previous_chunks=2),
    MaskPattern(attention_chunk_size=60, previous_chunks=1, chunk_summaries=3, global_tokens=70),
    MaskPattern(stride=64),
    MaskPattern(sliding_window=40, stride=33, global_tokens=2),
    MaskPattern(block_size=32, block_offsets=(1, 4)),
    MaskPattern(block_size=20, block_offsets=(1,), random_blocks=2, random_seed=7, global_tokens=30),
]
GPU_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def compare_compiled(
    dtype: torch.dtype,
    head_dim: int,
    pattern: MaskPattern,
    lengths: tuple[int, int] = (300, 300),
    with_sinks: bool = False,
    places: Places | None = None,
    value_head_dim: int | None = None,
) -> None:
    """Output and gradients of the compiled kernels against float64, each to its largest number."""
    torch.manual_seed(0)
    queries, keys = lengths
    shapes = (8, queries, head_dim), (2, keys, head_dim), (2, keys, value_head_dim or head_dim)
    inputs = [torch.randn(2, *shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
    if with_sinks:
        inputs.append(torch.randn(8, device="cuda", requires_grad=True))
    wide = [part.detach().double().requires_grad_() for part in inputs]
    found, expected = (
        run(*parts[:3], head_dim**-0.5, pattern, parts[3] if with_sinks else None, places)
        for run, parts in ((causal_attention.triton_causal_attention, inputs), (causal_attention.reference, wide))
    )
    weights = torch.randn_like(expected)
    compared = [("output", found, expected)]
    gradients = [
        torch.autograd.grad((mixed.double() * weights).sum(), parts)
        for mixed, parts in ((found, inputs), (expected, wide))
    ]
    compared += list(zip(("q", "k", "v", "sinks"), *gradients, strict=False))
    for name, one, other in compared:
        error = ((one.double() - other).abs().max() / other.abs().max()).item()
        assert error <= GPU_TOLERANCE[dtype] * (1 if name == "output" else 3), f"{name}: {error:.1e}"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", [MaskPattern(), MaskPattern(sliding_window=100)], ids=MaskPattern.words)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_compiled_attention_on_a_gpu(dtype: torch.dtype, pattern: MaskPattern, head_dim: int) -> None:
    compare_compiled(dtype, head_dim, pattern)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [(300, 300), (70, 300), (1, 300)], ids=str)
@pytest.mark.parametrize("pattern", GPU_PATTERNS, ids=MaskPattern.words)
def test_compiled_attention_of_every_pattern_on_a_gpu(pattern: MaskPattern, lengths: tuple[int, int]) -> None:
    """Whole sequences, and queries behind a cache."""
    compare_compiled(torch.bfloat16, 64, pattern, lengths, with_sinks=True)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", GPU_PATTERNS, ids=MaskPattern.words)
def test_compiled_attention_of_documents_on_a_gpu(pattern: MaskPattern) -> None:
    ends = torch.tensor([[3, 70, 71, 230, 300], [300, 300, 300, 300, 300]], device="cuda")
    places = torch.arange(300, device="cuda")
    ids = (places[None, :, None] >= ends[:, None, :]).sum(-1)
    begins = torch.nn.functional.pad(ends, (1, 0)).gather(1, ids)
    compare_compiled(torch.float16, 128, pattern, places=Places(places - begins, ids))


@pytest.mark.gpu
def test_compiled_attention_of_unequal_and_odd_heads_on_a_gpu() -> None:
    compare_compiled(torch.bfloat16, 192, MaskPattern(), value_head_dim=128)
    compare_compiled(torch.bfloat16, 80, MaskPattern(sliding_window=100))


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
