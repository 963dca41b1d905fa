"""Weights, gradients and the optimizer's state: bytes a parameter, and what one device holds of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.components.base import Tensor
from planner.errors import UnsupportedPlan
from planner.plans import TrainingPlan
from planner.quantities import Quantity, ceiling_divide, product
from planner.training.engine import Division, divided, is_many
from planner.training.narrow import has_narrow_weights, is_narrow

BLOCK_8BIT = 256
"""Elements of a moment in 8 bits that share one fp32 scale (Dettmers et al. 2021, arXiv:2110.02861; the block of
today's kernels)."""


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes that one parameter takes under a precision; ``moments``: two of them, as AdamW keeps."""

    weight: int
    gradient: int
    master: int
    moments: int


def state_bytes(plan: TrainingPlan) -> StateBytes:
    """Bytes a parameter of the plan's precision."""
    match plan.precision:
        case "fp32":
            return StateBytes(weight=4, gradient=4, master=0, moments=8)
        case "bf16_autocast":
            return StateBytes(weight=4, gradient=4, master=0, moments=8)
        case "bf16_mixed" | "fp8":
            gradient = 4 if plan.gradient_dtype == "fp32" else 2
            if plan.engine == "deepspeed" and gradient == 4:
                gradient += 2  # those of the last micro batch stay in 16 bits beside
            return StateBytes(weight=2, gradient=gradient, master=4, moments=8)
        case "bf16":
            return StateBytes(weight=2, gradient=2, master=0, moments=4)
    raise UnsupportedPlan.of(
        f"Training in {plan.precision} is not modelled.",
        path="precision",
        remedy="Choose fp32, bf16_autocast, bf16_mixed, bf16 or fp8.",
        code="unsupported_precision",
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A parameter, or several alike, as one device holds it before states are divided over replicas."""

    tensor: Tensor
    count: Quantity
    """Elements of one of them."""
    times: Quantity
    in_layers: bool


def placed(tensor: Tensor, times: Quantity, in_layers: bool, division: Division) -> Placed:
    """A parameter as a device holds it."""
    return Placed(tensor, division.of_parameter(tensor.count, tensor.split), times, in_layers)


def moments_bytes(part: Placed, plan: TrainingPlan, division: Division) -> Quantity:
    """What the optimizer keeps of one parameter besides its master weight.

    AdamW: two moments. In 8 bits: the same in a byte each, with a scale a block. Lion (Chen et al. 2023,
    arXiv:2302.06675): one. Muon (Jordan et al. 2024): one of matrices inside the layers, AdamW's of the rest. Adafactor
    (Shazeer & Stern 2018, arXiv:1804.04235): of a matrix a row and a column. SGD without momentum: none.
    """
    of_two = 8 if part.tensor.dtype_class == "float32" else state_bytes(plan).moments
    match plan.optimizer:
        case "sgd":
            return 0
        case "lion":
            return of_two // 2 * part.count
        case "muon":
            is_matrix = part.in_layers and len(part.tensor.shape) >= 2 and part.tensor.is_matrix
            return (of_two // 2 if is_matrix else of_two) * part.count
        case "adamw_8bit":
            return 2 * part.count + 2 * 4 * ceiling_divide(part.count, BLOCK_8BIT)
        case "adafactor":
            if len(part.tensor.shape) < 2:
                return 4 * part.count
            *outer, rows, columns = part.tensor.shape
            stacked = product(tuple(outer))
            match part.tensor.split:
                case "columns" if outer and part.tensor.is_matrix:  # filters and blocks: whole ones
                    stacked = divided(stacked, division.tensor)
                case "columns":
                    rows = divided(rows, division.tensor)
                case "rows":
                    columns = divided(columns, division.tensor)
                case "experts" if outer:
                    stacked = divided(stacked, division.expert)
                case "experts":  # a bias: a row an expert
                    rows = divided(rows, division.expert)
            return 4 * stacked * (rows + columns)
    return of_two * part.count


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of what a device holds from step to step."""

    parameters: Quantity
    """Buffers included."""
    gradients: Quantity
    optimizer: Quantity
    whole_gradients: Quantity
    """Before they are divided over replicas."""
    elements: Quantity
    """Parameters that these are of, before they are divided over replicas."""


def held_states(parts: Iterator[Placed], buffer_bytes: Quantity, plan: TrainingPlan, division: Division) -> States:
    """The states of the parameters that a device is given, divided over replicas as the stage of ZeRO says.

    ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 5): the optimizer's state, then gradients, then weights.
    """
    width = state_bytes(plan)
    sums: dict[bool, list[Quantity]] = {is_expert: [0, 0, 0] for is_expert in (False, True)}
    elements: Quantity = 0
    for part in parts:
        is_float32 = part.tensor.dtype_class == "float32"
        whole = part.count * part.times
        elements = elements + whole
        own = sums[part.tensor.split == "experts"]
        is_byte = part.in_layers and has_narrow_weights(plan) and is_narrow(part.tensor)
        own[0] = own[0] + (4 if is_float32 else 1 if is_byte else width.weight) * whole
        own[1] = own[1] + (4 if is_float32 else width.gradient) * whole
        master = 0 if is_float32 else width.master
        own[2] = own[2] + master * whole + moments_bytes(part, plan, division) * part.times
    totals: list[Quantity] = [buffer_bytes, 0, 0]
    for is_expert, parts_of in sums.items():
        replicas = division.expert_replicas if is_expert else division.replicas
        for index, divided_from in enumerate((3, 2, 1)):
            shared = plan.zero_stage >= divided_from and is_many(replicas)
            totals[index] = totals[index] + (ceiling_divide(parts_of[index], replicas) if shared else parts_of[index])
    if plan.offload != "none":
        totals[2] = 0
    if plan.offload == "optimizer_and_parameters":
        totals[0] = buffer_bytes
    return States(totals[0], totals[1], totals[2], sums[False][1] + sums[True][1], elements)
