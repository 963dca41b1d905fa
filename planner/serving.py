"""Memory of serving on one device: weights, cache, activations and overhead, and what fits.

Weights in ``bf16 fp16 fp32`` are all kept in that type. In ``fp8``, ``int8`` and ``int4`` the matrices of the mixers
are quantized, with scales; embeddings, head, norms, biases, routers and convolutions stay in bf16, as the common
engines leave them. ``fp8`` and ``int8`` have one fp32 scale an output channel; ``int4`` has one bf16 scale for every
128 weights of a row. Decay rates of state space layers are kept in fp32 throughout.

The cache is what an engine with paged memory sets aside (:mod:`planner.cache`): blocks of the plan's
``cache_block_size``, and of layers with a window those that ``windowed_pages`` says.

Activations are an upper bound of what one pass holds at once: the residual stream twice, the outputs of all projections
of the widest mixer, and fp32 logits of the last position of each sequence; prompts are read in pieces of
:data:`PREFILL_TOKENS`. Times are not modelled yet and are ``None``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.cache import CACHE_FORMATS, CacheUse, cache_use
from planner.components.base import Tensor
from planner.errors import Problem, UnsupportedPlan
from planner.hardware import Device, hardware
from planner.plans import ServingPlan, TrainingPlan
from planner.quantities import Quantity, ceiling_divide, exact_divide, largest, product, smallest
from planner.sizing import layer_buffers, layer_tensors, outer_tensors
from planner.spec import ArchitectureSpec, LearnedPositions
from planner.training import DEVICE_OVERHEAD_BYTES, estimate_training

PLAIN_FORMATS = {"bf16": 2, "fp16": 2, "fp32": 4}
QUANTIZED_FORMATS = ("fp8", "int8", "int4")
WEIGHT_FORMATS = (*PLAIN_FORMATS, *QUANTIZED_FORMATS)
INT4_GROUP = 128
PREFILL_TOKENS = 2048
"""Tokens of prompts that one pass reads: the usual size of a chunk in engines that prefill in chunks."""
LONGEST_CONTEXT = 2**30
"""Where the search for the longest context ends."""

TIME_NOTE = "Times of serving are not modelled yet: measure them with a benchmark."


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """Bytes on the device."""

    weights_bytes: Quantity
    cache_bytes: Quantity
    """What the engine's blocks take up: see ``ideal_cache_bytes``."""
    activations_bytes: Quantity
    overhead_bytes: Quantity
    ideal_cache_bytes: Quantity
    """What of ``cache_bytes`` the cached tensors fill; no part of the sum."""

    @property
    def total_bytes(self) -> Quantity:
        """The sum of the parts."""
        return self.weights_bytes + self.cache_bytes + self.activations_bytes + self.overhead_bytes

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part; they sum to the total."""
        return {
            "weights": self.weights_bytes,
            "cache": self.cache_bytes,
            "activations": self.activations_bytes,
            "overhead": self.overhead_bytes,
        }


@dataclass(frozen=True, slots=True)
class InferenceEstimate:
    """What a way of serving takes."""

    memory: ServingMemory
    max_context_length: int | None
    """Longest context at the plan's batch; ``None`` without hardware, or where ``max_context_note`` says why."""
    max_batch_size: int | None
    """Most sequences of the plan's context; ``None`` without hardware. Zero where not even one fits."""
    max_context_note: str
    time_to_first_token_seconds: float | None
    inter_token_latency_seconds: float | None
    tokens_per_second: float | None
    time_note: str
    status: str = "modelled"
    time_status: str = "unsupported"


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a way of running fits a device, by usable memory."""

    device: Device
    needed_bytes: int
    usable_bytes: int
    parts: dict[str, int]
    """They sum to ``needed_bytes``."""

    @property
    def fits(self) -> bool:
        """Whether what is needed is usable."""
        return self.needed_bytes <= self.usable_bytes

    @property
    def share(self) -> float:
        """Needed over usable: 1 is full."""
        return self.needed_bytes / self.usable_bytes


def check_serving_plan(plan: ServingPlan) -> None:
    """Refuse what is not modelled, naming every field that stands in the way."""
    problems: list[Problem] = []

    def refuse(path: str, message: str, remedy: str) -> None:
        problems.append(Problem(path, message, remedy, f"unsupported_{path}"))

    if plan.weight_format not in WEIGHT_FORMATS:
        refuse(
            "weight_format",
            f"Weights in {plan.weight_format!r} are not modelled.",
            f"Choose one of {', '.join(WEIGHT_FORMATS)}.",
        )
    if plan.cache_dtype not in CACHE_FORMATS:
        refuse(
            "cache_dtype",
            f"No cache of type {plan.cache_dtype!r} is modelled.",
            f"Choose one of {', '.join(CACHE_FORMATS)}.",
        )
    for field in ("tensor_parallel", "expert_parallel", "attention_data_parallel"):
        if getattr(plan, field) != 1:
            refuse(field, "Serving on several devices is not modelled.", "Set it to 1.")
    if plan.offload_layers:
        refuse("offload_layers", "Layers outside the device are not modelled.", "Set it to 0.")
    if plan.speculative is not None:
        refuse("speculative", "Speculative decoding is not modelled.", "Leave it out.")
    if problems:
        raise UnsupportedPlan(problems)


def is_quantized(tensor: Tensor) -> bool:
    """Whether a quantized format applies to a tensor of a layer: the large matrices of the mixers."""
    return (
        len(tensor.shape) >= 2
        and tensor.is_matrix
        and tensor.dtype_class == "weight"
        and not any(word in tensor.name for word in ("conv1d.", "router.", "shared_expert_gate."))
    )


def tensor_bytes(tensor: Tensor, weight_format: str, quantized: bool) -> Quantity:
    """Bytes of a tensor, its scales included."""
    if tensor.dtype_class == "float32":
        return 4 * tensor.count
    if weight_format in PLAIN_FORMATS:
        return PLAIN_FORMATS[weight_format] * tensor.count
    if not quantized:
        return 2 * tensor.count
    rows, inputs = product(tensor.shape[:-1]), tensor.shape[-1]
    if weight_format == "int4":
        # Two weights a byte along a row, and a bf16 scale a group.
        return rows * (ceiling_divide(inputs, 2) + 2 * ceiling_divide(inputs, INT4_GROUP))
    return tensor.count + 4 * rows


def weights_bytes(spec: ArchitectureSpec, weight_format: str = "bf16") -> Quantity:
    """Bytes of all weights and persistent buffers; works on all three readings."""
    total: Quantity = 0
    for tensor in outer_tensors(spec):
        total = total + tensor_bytes(tensor, weight_format, quantized=False)
    for group in spec.layer_groups:
        for layer in group.layers:
            for _, tensor in layer_tensors(spec, layer):
                total = total + group.repeats * tensor_bytes(tensor, weight_format, is_quantized(tensor))
            for _, buffer in layer_buffers(spec, layer):
                total = total + group.repeats * 4 * buffer.count
    return total


def projection_outputs(spec: ArchitectureSpec) -> list[Quantity]:
    """Elements a token that all projections of a mixer put out together, of every distinct mixer."""
    widths: list[Quantity] = []
    for group in spec.layer_groups:
        for layer in group.layers:
            for mixer in (layer.sequence_mixer, layer.channel_mixer):
                if mixer is None:
                    continue
                outputs: Quantity = 0
                for tensor in mixer.tensors(spec.hidden_size):
                    if len(tensor.shape) >= 2 and tensor.is_matrix and tensor.dtype_class == "weight":
                        chosen, available = tensor.active_share
                        outputs = outputs + exact_divide(product(tensor.shape[:-1]) * chosen, available)
                widths.append(outputs)
    return widths


def pass_bytes(spec: ArchitectureSpec, context_length: Quantity, batch_size: Quantity, widest: Quantity) -> Quantity:
    """Upper bound of what one pass holds at once where its widest mixer puts out ``widest`` elements a token.

    Where mixers are in parallel, the first one's output waits for the second one's.
    """
    tokens = largest(smallest(context_length * batch_size, PREFILL_TOKENS), batch_size)
    parallel = any(layer.residual != "sequential" for group in spec.layer_groups for layer in group.layers)
    streams = 3 if parallel else 2
    return 2 * tokens * (streams * spec.hidden_size + widest) + 4 * batch_size * spec.vocab_size


def activation_bytes(spec: ArchitectureSpec, context_length: Quantity, batch_size: Quantity) -> Quantity:
    """Upper bound of what one pass holds at once, in bytes; works on all three readings."""
    widest: Quantity = 0
    for outputs in projection_outputs(spec):
        widest = largest(widest, outputs)
    return pass_bytes(spec, context_length, batch_size, widest)


def planned_cache(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch_size: Quantity
) -> CacheUse:
    """The cache under a plan, with quantities in place of its context and batch."""
    return cache_use(spec, context_length, batch_size, plan.cache_dtype, plan.cache_block_size, plan.windowed_pages)


def serving_memory(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch_size: Quantity
) -> ServingMemory:
    """Memory with quantities in place of the plan's numbers; works on all three readings."""
    cache = planned_cache(spec, plan, context_length, batch_size)
    return ServingMemory(
        weights_bytes=weights_bytes(spec, plan.weight_format),
        cache_bytes=cache.allocated_bytes,
        activations_bytes=activation_bytes(spec, context_length, batch_size),
        overhead_bytes=DEVICE_OVERHEAD_BYTES,
        ideal_cache_bytes=cache.ideal_bytes,
    )


def estimate_inference(spec: ArchitectureSpec, plan: ServingPlan) -> InferenceEstimate:
    """Memory of serving, and with hardware the longest context and the largest batch.

    Raises
    ------
    UnsupportedPlan
        naming every field of the plan that is not modelled.
    """
    check_serving_plan(plan)
    longest = batch = None
    note = "Choose hardware to see the longest context."
    if plan.hardware is not None:
        usable = hardware(plan.hardware).usable_memory_bytes
        longest, note = longest_context(spec, plan, usable)
        batch = largest_true(
            lambda size: serving_memory(spec, plan, plan.context_length, size).total_bytes <= usable, LONGEST_CONTEXT
        )
    return InferenceEstimate(
        memory=serving_memory(spec, plan, plan.context_length, plan.batch_size),
        max_context_length=longest,
        max_batch_size=batch,
        max_context_note=note,
        time_to_first_token_seconds=None,
        inter_token_latency_seconds=None,
        tokens_per_second=None,
        time_note=TIME_NOTE,
    )


def longest_context(spec: ArchitectureSpec, plan: ServingPlan, usable_bytes: int) -> tuple[int | None, str]:
    """The longest context that fits, and what bounds it. Zero where not even one token fits."""
    bound, note = LONGEST_CONTEXT, "bounded by memory"
    if isinstance(spec.positions, LearnedPositions):
        bound = spec.positions.num_positions
    longest = largest_true(
        lambda length: serving_memory(spec, plan, length, plan.batch_size).total_bytes <= usable_bytes, bound
    )
    if longest == 0:
        return 0, "the weights alone do not fit"
    if longest == LONGEST_CONTEXT:
        return None, "memory stops growing with the context, so it sets no bound"
    if isinstance(spec.positions, LearnedPositions) and longest == bound:
        note = "bounded by the learned positions"
    return longest, note


def largest_true(holds: Callable[[int], bool], bound: int) -> int:
    """The largest whole number up to ``bound`` for which ``holds``, given that it holds up to some number; else 0."""
    if not holds(1):
        return 0
    low, high = 1, 2
    while high <= bound and holds(high):
        low, high = high, high * 2
    high = min(high, bound + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def fits(spec: ArchitectureSpec, plan: ServingPlan | TrainingPlan, device: Device | str) -> Fit:
    """Whether serving or training under ``plan`` fits ``device``, by usable memory."""
    if isinstance(device, str):
        device = hardware(device)
    if isinstance(plan, TrainingPlan):
        training = estimate_training(spec, plan).memory
        return Fit(device, training.total_bytes, device.usable_memory_bytes, training.parts)
    check_serving_plan(plan)
    serving = serving_memory(spec, plan, plan.context_length, plan.batch_size)
    return Fit(device, serving.total_bytes, device.usable_memory_bytes, serving.parts)
