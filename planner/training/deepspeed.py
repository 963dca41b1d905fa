"""What DeepSpeed makes between the last backward pass and the optimizer's step, in Megatron-DeepSpeed's training.

Gradients are reduced in flat copies of buckets of half a billion elements (``MEMORY_OPT_ALLREDUCE_SIZE``, and the
default of ``reduce_bucket_size``), or of one parameter that is larger. In bf16 those of the last micro batch are
widened one by one to be added to the ones in fp32 (``runtime/bf16_optimizer.py``, ``_update_hp_grad``). In fp16, ZeRO-1
lets the other ranks' gradients go, flattens its share and widens it (``runtime/zero/stage_1_and_2.py``, ``step``).
"""

from __future__ import annotations

from planner.plans import TrainingPlan
from planner.quantities import Quantity, ceiling_divide, largest, smallest
from planner.training.engine import Division, is_many
from planner.training.states import States

BUCKET_ELEMENTS = 500_000_000


def deepspeed_step(
    states: States, plan: TrainingPlan, division: Division, largest_parameter: Quantity
) -> tuple[Quantity, Quantity]:
    """Bytes of these tensors, and of all gradients when the optimizer's step begins.

    The tensors are larger than what a pass leaves to the caching allocator in one piece, so that it takes them from the
    device beside.
    """
    bucket = smallest(largest(largest_parameter, BUCKET_ELEMENTS), states.elements)
    if plan.gradient_dtype == "fp32":
        return 4 * bucket, states.gradients
    shares = plan.zero_stage >= 1 and is_many(division.replicas)
    own = ceiling_divide(states.elements, division.replicas) if shares else states.elements
    return 2 * bucket + (2 + 4) * own, (2 + 2 + 4) * own
