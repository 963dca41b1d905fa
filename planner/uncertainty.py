"""How far a number may be from the truth, and how that is known.

What is counted (``exact``) has none. Everything else says between which values it lies and on what ground, or that
nobody has bounded it. Bounds of a sum are the sums of its parts' bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.cache import allocated_entry, assumption_text, entry_bytes
from planner.components.attention import Attention
from planner.components.base import CacheEntry
from planner.compute import flops
from planner.plans import ServingPlan, TrainingPlan
from planner.scaling import LAWS, TOKENS_PER_PARAMETER
from planner.serving import ServingMemory, planned_cache
from planner.serving.memory import draft_cache, fullest_stage
from planner.sizing import size
from planner.spec import ArchitectureSpec
from planner.training import DEVICE_OVERHEAD_BYTES, TrainingMemory
from planner.training.engine import engine_of

Status = Literal["exact", "measured", "modelled", "approximated", "unsupported"]
STATUSES: tuple[Status, ...] = ("exact", "measured", "modelled", "approximated", "unsupported")
"""From the surest to what is not known at all."""

PEAK_ERROR = 0.06
"""Of what is measured: within this tests hold the peak to MemTracker's on small models of every component; that of
whole designs, scaled down, to 5%."""
PEAK_LOW_ON_CUDA = 0.09
"""So far below CUDA's allocator on an H200 the peak is at most, where keys are repeated for grouped queries."""
MEGATRON_ERROR = 0.1
"""Within this the peak is of six in seven of Megatron-LM's own tests."""
MEGATRON_GROUND = (
    f"peak: within 1% of 22 steps of Megatron on eight B200, and within {MEGATRON_ERROR:.0%} of six in seven of "
    "Megatron-LM's own tests, 2% in the median; experts that are given more tokens than others need more"
)
MEASURED_PRECISIONS = ("fp32", "bf16_autocast")
OVERHEAD_RANGE = (3 * 2**30 // 10, 6 * 2**30 // 10)
"""Context and libraries' workspaces on current devices: 0.3 to 0.6 GiB."""
MOST_TOKENS_A_PARAMETER = 21.6
"""The upper end of Hoffmann et al. 2022 (arXiv:2203.15556), table 3."""

EACH_SAVED_TENSOR = (
    "counted to the byte for PyTorch's own kernels with fused attention; other kernels keep other tensors, and no "
    "single tensor is bounded"
)
PART_OF_A_RULE = "the rule is for the whole, and bounds no single term"


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Between which values the truth lies; ``None`` where nobody has bounded it."""

    low: float | None
    high: float | None
    ground: str

    @property
    def bounded(self) -> bool:
        """Whether there are bounds."""
        return self.low is not None and self.high is not None

    @property
    def text(self) -> str:
        """The bounds and their ground on one line."""
        if self.low is None or self.high is None:
            return f"without bounds: {self.ground}"
        low, high = (f"{round(each):,}" if abs(self.high) >= 100 else f"{each:.3g}" for each in (self.low, self.high))
        return f"between {low} and {high}: {self.ground}"


def worst(statuses: Sequence[Status]) -> Status:
    """The least sure of several."""
    return max(statuses, key=STATUSES.index)


def sum_of(parts: Sequence[tuple[float, Uncertainty | None]]) -> Uncertainty | None:
    """The bounds of a sum of values, each with its own; ``None`` where a part has no bounds, or none is uncertain."""
    uncertain = [own for _, own in parts if own is not None]
    if not uncertain or not all(own.bounded for own in uncertain):
        return None
    low = sum(value if own is None or own.low is None else own.low for value, own in parts)
    high = sum(value if own is None or own.high is None else own.high for value, own in parts)
    return Uncertainty(low, high, "; ".join(dict.fromkeys(own.ground for own in uncertain)))


def of_overhead() -> Uncertainty:
    """Of what a process takes on a device beside its allocator."""
    low, high = OVERHEAD_RANGE
    return Uncertainty(low, high, f"overhead: 0.3 to 0.6 GiB on current devices, taken as {DEVICE_OVERHEAD_BYTES:,}")


def of_blocks(entry: CacheEntry, plan: ServingPlan, times: int) -> Uncertainty:
    """Of the blocks that a cached tensor takes up: from the tensor alone to blocks of the whole context."""
    whole = allocated_entry(entry, plan.cache_block_size, "context")
    low, high = (times * entry_bytes(each, plan.cache_dtype) for each in (entry, whole))
    return Uncertainty(low, high, _blocks_ground(plan))


def _blocks_ground(plan: ServingPlan) -> str:
    return (
        f"cache: {assumption_text(plan.cache_block_size, plan.windowed_pages)} At least what its tensors fill, at "
        "most blocks of the whole context in every layer; engines that reserve ahead take more"
    )


def of_serving(spec: ArchitectureSpec, plan: ServingPlan, memory: ServingMemory) -> Uncertainty:
    """Of all memory of serving under a plan; the weights are counted."""
    plan = fullest_stage(spec, plan)
    whole = plan.model_copy(update={"windowed_pages": "context"})
    use = planned_cache(spec, whole, plan.context_length, plan.batch_size)
    cache = None
    if use.state_bytes != use.ideal_bytes:  # something is paged
        draft = draft_cache(plan, plan.context_length, plan.batch_size)
        most = use.allocated_bytes + (0 if draft is None else draft.allocated_bytes)
        cache = Uncertainty(memory.ideal_cache_bytes, most, _blocks_ground(plan))
    found = sum_of(
        [
            (memory.weights_bytes, None),
            (memory.cache_bytes, cache),
            (memory.activations_bytes, of_pass(memory.activations_bytes)),
            (memory.overhead_bytes, of_overhead()),
        ]
    )
    assert found is not None
    return found


def of_training(spec: ArchitectureSpec, plan: TrainingPlan, memory: TrainingMemory) -> Uncertainty:
    """Of all memory of a training step under a plan: the peak has been measured, the overhead has a range."""
    held = memory.peak.activations_bytes
    found = sum_of(
        [
            (memory.total_bytes - held - memory.overhead_bytes, None),
            (held, of_training_activations(spec, held, memory, plan)),
            (memory.overhead_bytes, of_overhead()),
        ]
    )
    assert found is not None
    return found


def of_pass(value: int) -> Uncertainty:
    """Of what one pass of serving holds at once."""
    return Uncertainty(0, value, "activations: an upper bound by its construction, not measured on a device")


def repeats_keys(spec: ArchitectureSpec, plan: TrainingPlan) -> bool:
    """Whether CUDA's fused attention needs keys and values repeated for every head: grouped queries that meet a window,
    a chunk or fp32."""
    return any(
        isinstance(part, Attention)
        and part.num_key_value_heads < part.num_attention_heads
        and (part.sees_a_part or plan.precision == "fp32")
        for group in spec.layer_groups
        for layer in group.layers
        if layer.sequence_mixer is not None
        for _, part in layer.sequence_mixer.parts()
    )


def of_training_activations(
    spec: ArchitectureSpec, value: int, memory: TrainingMemory, plan: TrainingPlan
) -> Uncertainty:
    """Of what is alive at the peak beside the states: the peak as a whole has been measured."""
    peak = memory.peak.total_bytes
    if engine_of(plan).is_megatron:
        apart = round(MEGATRON_ERROR * peak)
        return Uncertainty(value - apart, value + apart, MEGATRON_GROUND)
    below, above = round(PEAK_ERROR * peak), round(peak / (1 - PEAK_ERROR)) - peak
    where = " and ".join(MEASURED_PRECISIONS)
    ground = (
        f"peak: within {PEAK_ERROR:.0%} of MemTracker's on small models of every component in {where}, and nearer to "
        "CUDA's allocator on an H200 with 0.2 to 0.6 billion parameters"
    )
    if repeats_keys(spec, plan):
        above = max(above, round(peak / (1 - PEAK_LOW_ON_CUDA)) - peak)
        ground += (
            f"; up to {PEAK_LOW_ON_CUDA:.0%} low where grouped queries meet a window or fp32, as here: CUDA's fused "
            "attention then repeats keys and values"
        )
    if plan.precision not in MEASURED_PRECISIONS:
        ground += f"; {plan.precision} itself is not measured, and taken to be as near"
    return Uncertainty(value - below, value + above, ground)


def of_six_n(spec: ArchitectureSpec, length: int, batch: int) -> Uncertainty:
    """Of the 6N rule: the exact count is known, and says how far the rule is off."""
    counted = flops(spec, length, batch, training=True)
    rule, exact = counted.approximate_total, counted.total
    return Uncertainty(
        min(rule, exact),
        max(rule, exact),
        f"the exact count at this length is {exact:,}: the rule is off by {(rule - exact) / exact:+.1%}, as it leaves "
        "out the scores of attention",
    )


def of_chinchilla(spec: ArchitectureSpec) -> Uncertainty:
    """Of twenty tokens a parameter: what the fitted laws say of this size."""
    parameters = size(spec).parameters.active
    rule = TOKENS_PER_PARAMETER * parameters
    optima = [law.optimal_tokens(parameters) for law in LAWS]
    found = [rule, MOST_TOKENS_A_PARAMETER * parameters, *optima]
    said = ", ".join(f"{tokens / parameters:,.3g} ({law.name})" for law, tokens in zip(LAWS, optima, strict=True))
    ground = (
        f"20 to {MOST_TOKENS_A_PARAMETER} tokens a parameter in the source's table; the laws fitted to the same kind "
        f"of runs say {said} at this size"
    )
    return Uncertainty(min(found), max(found), ground)
