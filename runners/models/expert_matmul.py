"""One matrix multiplication over all experts: rows sorted by expert, each group times its expert's matrix.

A custom operator, since PyTorch's own grouped product counts no FLOPs and its fake kernel refuses fp32. Where the
grouped product does not take the inputs (float64, sizes that are no multiple of eight on some devices) the groups are
multiplied one after the other, with the same result.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def _groups(ends: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *ends.tolist()]))


def _is_grouped(*tensors: Tensor) -> bool:
    sizes = [size for tensor in tensors for size in tensor.shape[1:]]
    return all(t.dtype in (torch.float32, torch.bfloat16) for t in tensors) and all(size % 8 == 0 for size in sizes)


Groups = list[tuple[int, int, int]]
"""Of each group of rows its expert, its first row and the one behind its last."""


def multiplied_in_groups(rows: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """rows (rows, inputs) in the order of the groups, weights (experts, inputs, outputs): without experts of no row."""
    return torch.cat([rows[first:last] @ weights[expert] for expert, first, last in groups])


def groups_of(experts: Tensor) -> Groups:
    """The groups of rows whose experts (rows,) are in order; experts of no row have none."""
    spans = itertools.pairwise(itertools.accumulate(torch.bincount(experts).tolist(), initial=0))
    return [(expert, first, last) for expert, (first, last) in enumerate(spans) if last > first]


def reads_numbers(rows: Tensor) -> bool:
    """Whether what a tensor holds costs nothing to know, and no backward pass follows: a real one on the CPU."""
    return type(rows) is Tensor and rows.device.type == "cpu" and not torch.is_grad_enabled()


@torch.library.custom_op("plumbline::expert_matmul", mutates_args=())
def expert_matmul(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """rows (rows, inputs) sorted by expert, weights (experts, inputs, outputs), ends (experts,) int32 of the groups."""
    if _is_grouped(rows, weights):
        return F.grouped_mm(rows, weights, offs=ends)
    result = rows.new_empty(rows.shape[0], weights.shape[2])
    for expert, (first, last) in enumerate(_groups(ends)):
        result[first:last] = rows[first:last] @ weights[expert]
    return result


@expert_matmul.register_fake
def _(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[2])


@torch.library.custom_op("plumbline::expert_weight_gradient", mutates_args=())
def expert_weight_gradient(rows: Tensor, gradient: Tensor, ends: Tensor) -> Tensor:
    """Gradient of the weights, (experts, inputs, outputs), from rows (rows, inputs) and gradient (rows, outputs)."""
    if _is_grouped(rows, gradient):
        return F.grouped_mm(rows.t(), gradient, offs=ends)
    result = rows.new_zeros(ends.shape[0], rows.shape[1], gradient.shape[1])
    for expert, (first, last) in enumerate(_groups(ends)):
        result[expert] = rows[first:last].t() @ gradient[first:last]
    return result


@expert_weight_gradient.register_fake
def _(rows: Tensor, gradient: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(ends.shape[0], rows.shape[1], gradient.shape[1])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, weights, ends = ctx.saved_tensors
    gradient = gradient.contiguous()
    return (
        expert_matmul(gradient, weights.transpose(1, 2), ends),
        expert_weight_gradient(rows, gradient, ends),
        None,
    )


expert_matmul.register_autograd(_backward, setup_context=_setup)
for _device in ("cpu", "cuda"):
    expert_matmul.register_autocast(_device, torch.bfloat16)


@register_flop_formula(torch.ops.plumbline.expert_matmul)
def _matmul_flops(rows: Any, weights: Any, ends: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * rows[0] * weights[1] * weights[2])


@register_flop_formula(torch.ops.plumbline.expert_weight_gradient)
def _gradient_flops(rows: Any, gradient: Any, ends: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * rows[0] * rows[1] * gradient[1])
