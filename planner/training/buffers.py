"""What an engine sets aside beside states and activations: for communication, and in place of gradients."""

from __future__ import annotations

from collections.abc import Iterator

from planner.activations import ACTIVATION_TYPES
from planner.components.moe import MoE
from planner.hardware import hardware
from planner.plans import TrainingPlan
from planner.quantities import Quantity, largest
from planner.sizing import layer_tensors, leading_tensors, trailing_tensors
from planner.spec import ArchitectureSpec
from planner.training.engine import Division, engine_of, is_many
from planner.training.layers import Shape, multiplied_shapes
from planner.training.narrow import has_weight_copies, is_narrow, weight_copy_bytes
from planner.training.pipeline import Stage
from planner.training.records import Buffer
from planner.training.states import state_bytes

LARGE_WORKSPACE, SMALL_WORKSPACE = 32 * 2**20, 4 * 2**20
EXPERT_STREAMS, OVERLAP_STREAMS = 4, 3


def engine_buffers(
    spec: ArchitectureSpec, plan: TrainingPlan, stage: Stage, shape: Shape, division: Division
) -> Iterator[Buffer]:
    """All that a stage's engine sets aside."""
    types = ACTIVATION_TYPES[plan.precision]
    stream = division.of(types.residual * shape.tokens * spec.hidden_size, "stream")
    if engine_of(plan).is_megatron:
        yield Buffer(
            "workspaces of matrix multiplications",
            _workspace_bytes(spec, plan),
            "cuBLAS's for the forward and for the backward thread, and Transformer Engine's own",
        )
        if plan.tp_comm_overlap:
            yield Buffer(
                "workspaces of products beside their exchange",
                OVERLAP_STREAMS * _own_workspace(plan),
                "Transformer Engine's, one for each of the streams that overlap with tensor parallelism",
            )
    if plan.precision == "fp8" and has_weight_copies(plan):
        yield Buffer(
            "weights in fp8" if not plan.fp8_param_gather else "transposed weights in fp8, and scales",
            _narrow_copies(spec, plan, stage, division),
            "Transformer Engine casts a weight once a step and keeps the copy, by columns too where the backward pass "
            "needs it so",
        )
    if engine_of(plan).has_placeholders:
        yield Buffer(
            "placeholders of weight gradients",
            types.compute * _placeholder_elements(spec, stage, division),
            "Transformer Engine's get_dummy_wgrad: one tensor a shape of weight, kept for the whole run, where "
            "gradients are summed into main gradients",
        )
    if is_many(plan.pipeline_parallel):
        yield Buffer(
            "what a stage sends on", stream, "Point to point, one tensor of the stream: Narayanan et al. 2021, 2.2"
        )
    if is_many(plan.context_parallel) and plan.context_exchange == "ring":
        yield Buffer(
            "keys and values on their way round",
            types.compute * _ring_elements(spec, stage, shape, division),
            "Ring attention (Liu et al. 2023, arXiv:2310.01889): the block that is attended to and the next one",
        )
    if gathers_weights(plan, division):
        yield from _gathered(spec, plan, stage, division)


def _workspace_bytes(spec: ArchitectureSpec, plan: TrainingPlan) -> int:
    """Bytes that libraries of matrix multiplications take from the allocator, by their own defaults.

    PyTorch gives cuBLAS 32 MiB a thread and stream on Hopper and later devices, or where results are to be the same
    from run to run; Transformer Engine takes as much once, or 4 MiB on older devices, and four times as much again for
    the streams that multiply experts.
    """
    if engine_of(plan).is_deepspeed:
        return 2 * LARGE_WORKSPACE  # without Transformer Engine
    own = _own_workspace(plan)
    has_experts = any(isinstance(layer.channel_mixer, MoE) for group in spec.layer_groups for layer in group.layers)
    return 2 * LARGE_WORKSPACE + own * (1 + (EXPERT_STREAMS if has_experts else 0))


def _own_workspace(plan: TrainingPlan) -> int:
    is_older = plan.hardware is not None and "fp8" not in hardware(plan.hardware).peak_flops
    return SMALL_WORKSPACE if is_older else LARGE_WORKSPACE


def _narrow_copies(spec: ArchitectureSpec, plan: TrainingPlan, stage: Stage, division: Division) -> Quantity:
    total: Quantity = 0
    for chunk in stage.chunks:
        for repeats, layers in chunk.runs:
            for layer in layers:
                for _, tensor in layer_tensors(spec, layer):
                    if is_narrow(tensor):
                        count = division.of_parameter(tensor.count, tensor.split)
                        total = total + repeats * weight_copy_bytes(count, plan)
    return total


def _placeholder_elements(spec: ArchitectureSpec, stage: Stage, division: Division) -> Quantity:
    seen: set[tuple[str, ...] | tuple[int, int]] = set()
    total: Quantity = 0
    for chunk in stage.chunks:
        for _, layers in chunk.runs:
            for layer in layers:
                for name, (outputs, inputs) in multiplied_shapes(spec, layer, division):
                    is_known = isinstance(outputs, int) and isinstance(inputs, int)
                    key = (outputs, inputs) if is_known else (name, str(outputs), str(inputs))
                    if key not in seen:
                        seen.add(key)
                        total = total + outputs * inputs
    return total


def _ring_elements(spec: ArchitectureSpec, stage: Stage, shape: Shape, division: Division) -> Quantity:
    """Keys and values of one layer, twice: the block at hand and the one that is received."""
    most: Quantity = 0
    for chunk in stage.chunks:
        for _, layers in chunk.runs:
            for layer in layers:
                mixer = layer.sequence_mixer
                if mixer is None:
                    continue
                for saved in mixer.saved_activations(spec.hidden_size, shape.positions, shape.batch_size):
                    if saved.name in ("keys", "values"):
                        most = largest(most, 2 * 2 * division.of(saved.elements, saved.split))
    return most


def gathers_weights(plan: TrainingPlan, division: Division) -> bool:
    """Whether a device holds a part of each weight, or none, and gathers the whole where it is used."""
    return (plan.zero_stage == 3 and is_many(division.replicas)) or plan.offload == "optimizer_and_parameters"


def outer_elements(spec: ArchitectureSpec, stage: Stage, division: Division) -> Quantity:
    """Elements of a stage's parameters outside its layers, as one device multiplies by them."""
    outer: Quantity = 0
    for chunk in stage.chunks:
        if chunk.is_first:
            for tensor in leading_tensors(spec):
                outer = outer + division.of_parameter(tensor.count, tensor.split)
        if chunk.is_last:
            for tensor in trailing_tensors(spec):
                outer = outer + division.of_parameter(tensor.count, tensor.split)
    return outer


def _gathered(spec: ArchitectureSpec, plan: TrainingPlan, stage: Stage, division: Division) -> Iterator[Buffer]:
    """Weights outside the layers, which FSDP2 keeps whole: its root does not reshard after the forward pass."""
    yield Buffer(
        "gathered weights outside the layers",
        state_bytes(plan).weight * outer_elements(spec, stage, division),
        "The root of FSDP2 keeps embedding, final norm and head whole from the forward to the end of the backward pass",
    )
