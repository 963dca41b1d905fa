"""How a plan's step computes and divides its work: the engine's habits, and by how much each kind of tensor is divided.

Engines differ in what they keep. PyTorch's own operators make temporaries in the backward pass and free gradients
between steps; Megatron-LM with Transformer Engine has fused kernels, adds weight gradients to buffers in fp32 as they
are computed, and overwrites logits by their gradient. DeepSpeed keeps gradients in 16 bits beside those in fp32 (its
``BF16_Optimizer``), or widens a rank's share of them for the optimizer's step (its ZeRO-1 in fp16).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.components.base import Computation
from planner.plans import TrainingPlan
from planner.quantities import Quantity, exact_divide


@dataclass(frozen=True, slots=True)
class Engine:
    """Habits of an engine under a plan."""

    is_megatron: bool
    """Whether operators are Megatron's."""
    is_deepspeed: bool
    """Whether DeepSpeed keeps the states and runs the pipeline."""
    cross_entropy: str
    """``plain``, ``parallel``, ``fused`` or ``chunked``; see :class:`planner.plans.TrainingPlan`."""
    has_placeholders: bool
    """Whether a placeholder stands for the gradient of each shape of weight (Transformer Engine's ``get_dummy_wgrad``,
    where gradients are summed into main gradients by the matrix multiplication itself)."""


def engine_of(plan: TrainingPlan) -> Engine:
    """The engine that a plan names, or that its precision implies."""
    is_deepspeed = plan.engine == "deepspeed"
    is_megatron = plan.engine in ("megatron", "deepspeed") or (
        plan.engine == "auto"
        and (plan.precision == "fp8" or (plan.precision == "bf16_mixed" and plan.gradient_dtype == "fp32"))
    )
    loss: str = plan.cross_entropy
    if loss == "auto":
        loss = "fused" if is_megatron else "plain"
    if plan.chunked_loss:
        loss = "chunked"
    return Engine(is_megatron, is_deepspeed, loss, is_megatron and not is_deepspeed and plan.gradient_fusion)


def is_many(degree: Quantity) -> bool:
    """Whether work is divided at all: a matter of structure. An array of degrees counts as divided."""
    return not (isinstance(degree, int) and degree == 1)


@dataclass(frozen=True, slots=True)
class Division:
    """By how much a plan divides what a layer holds."""

    tensor: Quantity
    sequence: Quantity
    """Of the stream's positions: ``tensor`` under sequence parallelism, else 1."""
    context: Quantity
    expert: Quantity
    expert_tensor: Quantity
    replicas: Quantity
    """Devices that hold the same weights and see other tokens: those that ZeRO divides states over."""
    expert_replicas: Quantity
    """The same of the experts' weights."""

    def of(self, elements: Quantity, split: str) -> Quantity:
        """What one device holds of a saved tensor."""
        match split:
            case "stream":
                return divided(elements, self.sequence)
            case "tensor" | "expert":
                return divided(elements, self.tensor)
            case "rows":
                # Tokens come to an expert from all the devices that it is divided over.
                return divided(elements * self.expert_tensor, self.tensor)
        return elements

    def of_parameter(self, elements: Quantity, split: str) -> Quantity:
        """What one device holds of a parameter."""
        match split:
            case "columns" | "rows":
                return divided(elements, self.tensor)
            case "experts":
                return divided(elements, self.expert * self.expert_tensor)
        return elements


def divided(elements: Quantity, degree: Quantity) -> Quantity:
    """``elements`` over ``degree``, which the checks of a plan have found to divide them."""
    return exact_divide(elements, degree) if is_many(degree) else elements


def division_of(plan: TrainingPlan) -> Division:
    """The division that a plan says; its checks have found the degrees to fit each other."""
    tensor, expert_tensor = plan.tensor_parallel, plan.expert_tensor_parallel
    replicas = plan.data_parallel * plan.context_parallel
    return Division(
        tensor=tensor,
        sequence=tensor if plan.sequence_parallel else 1,
        context=plan.context_parallel,
        expert=plan.expert_parallel,
        expert_tensor=expert_tensor,
        replicas=replicas,
        expert_replicas=divided(replicas * tensor, plan.expert_parallel * expert_tensor),
    )


def computation_of(plan: TrainingPlan, sequence_length: Quantity) -> Computation:
    """How the forward pass computes. ``sequence_length``: of the whole sequence, wherever its positions lie."""
    is_megatron = engine_of(plan).is_megatron
    is_divided = is_many(plan.context_parallel)
    return Computation(
        eager_attention=plan.attention == "eager",
        dropout=plan.attention == "eager" and plan.dropout != 0,
        key_length=sequence_length if is_divided else None,
        pads_heads=not is_megatron,
        weighs_inside=is_megatron,
        keeps_exchanged=is_divided and plan.context_exchange == "all_to_all",
    )
