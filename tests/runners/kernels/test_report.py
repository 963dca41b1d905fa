"""The compiled kernels: the default launches spill nothing, and attention multiplies on tensor cores."""

from __future__ import annotations

import pytest
import torch

from planner.components.patterns import CAUSAL
from runners.kernels.base import shared_memory_limit_bytes
from runners.kernels.causal_attention import BLOCKS, RICH, variant_for
from runners.kernels.report import CompileTask, compile_and_read, compile_tasks

pytest.importorskip("triton")

TASKS = list(compile_tasks())


def tasks_of(kernel: str, architecture: int) -> list[CompileTask]:
    return [task for task in TASKS if task.variant.kernel == kernel and task.architecture == architecture]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kernel", ["rms_norm", "swiglu", "causal_attention"])
def test_default_launches_spill_nothing(kernel: str, architecture: int) -> None:
    tasks = tasks_of(kernel, architecture)
    assert tasks
    for task in tasks:
        entry = compile_and_read(task)
        assert entry["spills"] == 0, task.label
        assert entry["shared_memory_bytes"] <= shared_memory_limit_bytes(architecture), task.label
        assert 0 < entry["registers"] <= 255, task.label
        uses_tensor_cores = bool(entry["tensor_core_instructions"])
        multiplies = kernel == "causal_attention" and task.variant.function_name != "weighted_gradients"
        assert uses_tensor_cores == (multiplies and task.variant.dtype != "fp32"), task.label


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("function", ["forward", "backward_keys", "backward_queries"])
def test_ordinary_heads_spill_nothing(architecture: int, function: str) -> None:
    """Heads of 64 in bf16, on consumer devices too; masks of several kinds take different registers."""
    for pattern in (CAUSAL, RICH, BLOCKS):
        task = CompileTask(variant_for(architecture, function, torch.bfloat16, 64, 64, pattern), architecture)
        entry = compile_and_read(task)
        assert entry["spills"] == 0
        assert entry["shared_memory_bytes"] <= shared_memory_limit_bytes(architecture)
        assert entry["tensor_core_instructions"]


def test_one_kernel_is_compiled_and_read() -> None:
    """The fast part of the above, for every run."""
    entry = compile_and_read(tasks_of("swiglu", 90)[0])
    assert entry["registers"] > 0
    assert entry["spills"] == 0
