"""Training in fp8 as Transformer Engine does it with Megatron-Core: what has a byte an element, what is there twice.

Matrices of the layers are multiplied in fp8; embedding, head, routers, norms, attention and the stream stay in 16 bits,
gradients and the optimizer's states are those of bf16 (``transformer_engine/pytorch/module/linear.py`` and
``layernorm_linear.py``). A product keeps its input in fp8. Where something else reads that input in 16 bits (fused
attention its own output, a router its tokens), both are kept.

Multiplications backward read matrices by columns. Tensor cores before Blackwell want fp8 operands in one layout, so
with one scale a tensor a transposed copy is made (``nvte_is_non_tn_fp8_gemm_supported``); scales of blocks differ by
direction, so there each direction has a copy of its own everywhere. Copies of weights are made once a step and stay
from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.components.attention import Attention
from planner.components.base import Component, SavedTensor, Tensor
from planner.components.latent_attention import LatentAttention
from planner.components.mlp import MLP, READ_FROM_RESULT
from planner.components.moe import MoE
from planner.hardware import hardware
from planner.plans import TrainingPlan
from planner.quantities import Quantity, ceiling_divide
from planner.training.engine import is_many

BLOCK_1D, BLOCK_2D = 128, 128 * 128
"""Elements that share one fp32 scale under DeepSeek-V3's recipe (arXiv:2412.19437, section 3.3.2): of activations, of
weights."""
BLOCK_MX = 32
"""Elements that share one scale of 8 bits in MXFP8 (OCP Microscaling Formats, 2023)."""


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast copies a layer's parameter to bf16 and autograd keeps the copy: matrices that are multiplied."""
    multiplied = len(tensor.shape) >= 2 and tensor.is_matrix
    return multiplied and tensor.dtype_class == "weight" and "conv1d." not in tensor.name


def is_narrow(tensor: Tensor) -> bool:
    """Whether fp8 multiplies by a layer's parameter: matrices, but for those that choose or weigh experts."""
    return is_cast(tensor) and not tensor.name.startswith(("router.", "shared_expert_gate"))


def has_narrow_weights(plan: TrainingPlan) -> bool:
    """Whether the weights themselves are in fp8, and gathered so."""
    return plan.precision == "fp8" and plan.fp8_param_gather


def _is_by_block(plan: TrainingPlan) -> bool:
    return plan.fp8_recipe in ("blockwise", "mxfp8")


def directions(plan: TrainingPlan) -> int:
    """Copies of a tensor that is read by rows and by columns. Without a device: as before Blackwell."""
    if _is_by_block(plan) or plan.hardware is None:
        return 2
    return 1 if "fp4" in hardware(plan.hardware).peak_flops else 2


def has_weight_copies(plan: TrainingPlan) -> bool:
    """Whether weights have copies in fp8 beside their parameters, or scales of blocks."""
    return not plan.fp8_param_gather or directions(plan) > 1


def weight_copy_bytes(count: Quantity, plan: TrainingPlan) -> Quantity:
    """Bytes of the copies of a weight in fp8, scales of blocks included, beside what its parameter takes."""
    held = directions(plan)
    scales: Quantity = 0
    if plan.fp8_recipe == "blockwise":
        scales = held * 4 * ceiling_divide(count, BLOCK_2D)
    elif plan.fp8_recipe == "mxfp8":
        scales = held * ceiling_divide(count, BLOCK_MX)
    return (held - (1 if plan.fp8_param_gather else 0)) * count + scales


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of a mixer's products among what it keeps, by name."""

    alone: tuple[str, ...]
    """Those that nothing else reads."""
    shared: tuple[str, ...] = ()
    """Those that are kept in 16 bits too."""


def inputs_of(mixer: Component, plan: TrainingPlan) -> Inputs | None:
    """What a mixer's products read of what it keeps; ``None``: nobody has said."""
    out = "attention output"
    if isinstance(mixer, Attention):
        if mixer.sub_norm or mixer.output_gate is not None:
            return Inputs(("input", "normalized mixed values" if mixer.sub_norm else "gated output"))
        is_read = plan.attention == "fused" and not (
            plan.context_exchange == "all_to_all" and plan.context_parallel != 1
        )
        return Inputs(("input",), (out,)) if is_read else Inputs(("input", out))
    if isinstance(mixer, LatentAttention):
        alone = ("input", "normalized query latent", "normalized key-value latent")
        is_read = plan.attention == "fused" and not (
            plan.context_exchange == "all_to_all" and plan.context_parallel != 1
        )
        return Inputs(alone, (out,)) if is_read else Inputs((*alone, out))
    if isinstance(mixer, MLP):
        if mixer.sub_norm:
            return Inputs(("input", "normalized"))
        return _activated(mixer, ("input",), ("activated",))
    if isinstance(mixer, MoE) and mixer.latent_size is None:
        names = ("activated", "activated of the shared expert")
        found = _activated(mixer, ("rows sorted by expert",), names)
        # The router keeps its tokens in 16 bits, and the shared expert, where there is one, in fp8.
        return found if mixer.shared_intermediate_size is None else replace(found, shared=(*found.shared, "input"))
    return None


def _attention(alone: tuple[str, ...], plan: TrainingPlan) -> Inputs:
    out = "attention output"
    is_exchanged = is_many(plan.context_parallel) and plan.context_exchange == "all_to_all"
    if plan.attention == "fused" and not is_exchanged:
        return Inputs(alone, (out,))  # its backward pass reads it
    return Inputs((*alone, out))


def _activated(mixer: MLP | MoE, alone: tuple[str, ...], activated: tuple[str, ...]) -> Inputs:
    if not mixer.gated and mixer.activation in READ_FROM_RESULT:
        return Inputs(alone, activated)  # its backward pass reads what it gave
    return Inputs((*alone, *activated))


def in_fp8(tensors: list[SavedTensor], mixer: Component, plan: TrainingPlan) -> Iterator[SavedTensor]:
    """What a mixer keeps, inputs of its products in fp8; copies and scales of blocks stand behind the rest."""
    found = inputs_of(mixer, plan)
    behind: list[SavedTensor] = []
    for tensor in tensors:
        is_alone = found is not None and tensor.name in found.alone
        is_shared = found is not None and tensor.name in found.shared
        yield replace(tensor, dtype_class="fp8") if is_alone else tensor
        if is_shared:
            behind.append(SavedTensor(f"{tensor.name} in fp8", tensor.elements, "fp8_copy", tensor.split))
        if (is_alone or is_shared) and _is_by_block(plan):
            name = f"scales of {tensor.name}"
            if plan.fp8_recipe == "mxfp8":
                count, kind = ceiling_divide(tensor.elements, BLOCK_MX), "fp8_copy"
            else:
                count, kind = ceiling_divide(tensor.elements, BLOCK_1D), "float32"
            behind.append(SavedTensor(name, count, kind, tensor.split))
    yield from behind
