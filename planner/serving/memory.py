"""Memory of serving on each device: weights, cache, activations and overhead.

What lies on a device is :mod:`planner.serving.devices`'s, the bytes of a tensor :mod:`planner.serving.formats`'s, and
the cache what an engine with paged memory sets aside (:mod:`planner.cache`). A draft of speculative decoding lies whole
on every device, its weights with the weights and its cache with the cache.

Activations are what one pass holds at once, by engine:

- ``serving``: an upper bound. Prompts are read in pieces of :data:`PREFILL_TOKENS`; the residual stream twice, the
  outputs of all projections of the widest mixer, and fp32 logits of the last position of each sequence.
- ``eager``: prompts are read whole. transformers keeps the embeddings, a layer's input and the residual beside the
  projections' outputs of the widest mixer and a product of these; then only half of the cache's keys and values that
  answers add is still to come, so the peak is at the end of the prompt or at the end of the answer.
- ``llama.cpp``: its compute buffer in fp32 for :data:`MICRO_BATCH` tokens, without flash attention (the default until
  2025): logits and the stream, or the scores of one layer against the whole context, their mask and four streams.
  Where stages take turns each has such a buffer, with :data:`COPIES` of the mask and of the stream that comes in. Its
  token embedding lies in the host's memory unless the head shares it.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cache import CACHE_FORMATS, CacheUse, cache_use
from planner.components import Attention, LatentAttention
from planner.errors import Problem, UnsupportedPlan
from planner.plans import ServingPlan
from planner.quantities import Quantity, exact_divide, largest, product, smallest
from planner.serving.devices import (
    ALONE,
    Split,
    StagePlan,
    device_entries,
    hosted_layers,
    kept_layers,
    on_one_stage,
    part_of,
    stages_of,
)
from planner.serving.formats import check_weight_format, engine_of
from planner.serving.speculative import speculation
from planner.serving.weights import Storage
from planner.sizing import outer_tensors
from planner.spec import ArchitectureSpec, Layer
from planner.training import DEVICE_OVERHEAD_BYTES

PREFILL_TOKENS = 2048
"""Tokens of prompts that one pass reads: the usual size of a chunk in engines that prefill in chunks."""
MICRO_BATCH = 512
"""Tokens that llama.cpp reads at a time (``n_ubatch``)."""
COPIES = 4
"""Of a stage's inputs that llama.cpp keeps, so that stages work on several pieces (``GGML_SCHED_MAX_COPIES``)."""

ENGINE_ACTIVATIONS = {
    "serving": "Upper bound: the residual stream twice, the outputs of the widest mixer's projections, and fp32 logits "
    "of the last position",
    "eager": "Embeddings, a layer's input and residual, the outputs of the widest mixer's projections and a product of "
    "these, of the whole prompt; less what of the cache is still to come",
    "llama.cpp": "llama.cpp's compute buffer for 512 tokens in fp32, without flash attention",
}
"""What activations are, by the plan's engine."""


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """Bytes on the fullest device."""

    weights_bytes: Quantity
    cache_bytes: Quantity
    """What the engine's blocks take up: see ``ideal_cache_bytes``."""
    activations_bytes: Quantity
    overhead_bytes: Quantity
    ideal_cache_bytes: Quantity
    """What of ``cache_bytes`` the cached tensors fill; no part of the sum."""
    host_bytes: Quantity = 0
    """Weights and cache of the offloaded layers, in the host's memory; no part of the sum."""

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


def check_serving_plan(plan: ServingPlan) -> None:
    """Refuse what is not modelled, naming every field that stands in the way."""
    problems: list[Problem] = []
    try:
        check_weight_format(plan.weight_format)
    except UnsupportedPlan as error:
        problems += error.problems
    if plan.cache_dtype not in CACHE_FORMATS:
        problems.append(
            Problem(
                "cache_dtype",
                f"No cache of type {plan.cache_dtype!r} is modelled.",
                f"Choose one of {', '.join(CACHE_FORMATS)}.",
                "unsupported_cache_dtype",
            )
        )
    try:
        speculation(plan.speculative)
    except UnsupportedPlan as error:
        problems += error.problems
    prompt = plan.context_length - (plan.output_length or 0)
    if prompt < 1:
        problems.append(
            Problem(
                "output_length",
                f"An answer of {plan.output_length:,} tokens leaves no prompt in a context of {plan.context_length:,}.",
                f"Choose less than {plan.context_length:,}.",
                "unsupported_output_length",
            )
        )
    elif plan.cached_prefix >= max(prompt, 2):
        problems.append(
            Problem(
                "cached_prefix",
                f"{plan.cached_prefix:,} cached tokens are not the beginning of a prompt of {prompt:,}.",
                f"Choose less than {prompt:,}.",
                "unsupported_cached_prefix",
            )
        )
    if problems:
        raise UnsupportedPlan(problems)


def device_weights(spec: ArchitectureSpec, plan: ServingPlan) -> Quantity:
    """Bytes of the weights and persistent buffers on the fullest device of a stage; works on all three readings."""
    total: Quantity = 0
    for _, _, held in outer_weights(spec, plan):
        total = total + held
    split, storage = Split.of(plan), Storage(spec, plan.weight_format)
    for group_index, layer_index, part, tensor, held in storage.tensors():
        layer = spec.layer_groups[group_index].layers[layer_index]
        mixer = layer.sequence_mixer if part == "sequence_mixer" else layer.channel_mixer
        if mixer is not None and part.endswith("_mixer"):
            held = part_of(held, split.of_tensor(mixer, tensor))
        total = total + on_device(held, spec, plan, group_index, layer_index)
    return total + draft_weights(plan)


def draft_weights(plan: ServingPlan) -> Quantity:
    """Bytes of the weights of a draft, which lies whole on each device; 0 where there is none."""
    found = speculation(plan.speculative)
    if found is None or found.draft is None:
        return 0
    return device_weights(found.draft, _alone(plan).model_copy(update={"attention_data_parallel": 1}))


def on_device(
    quantity: Quantity, spec: ArchitectureSpec, plan: ServingPlan, group_index: int, layer_index: int
) -> Quantity:
    """What of a quantity of all layers at one place of their group those have that are not offloaded."""
    if plan.offload_layers == 0 and not isinstance(plan, StagePlan):
        return quantity
    repeats = spec.layer_groups[group_index].repeats
    return part_of(quantity, (kept_layers(spec, plan, group_index, layer_index), repeats))


def outer_weights(spec: ArchitectureSpec, plan: ServingPlan) -> list[tuple[str, Quantity, Quantity]]:
    """Name, bytes in all and bytes on a device of every tensor outside the layers."""
    split, storage = Split.of(plan), Storage(spec, plan.weight_format)
    found = []
    for tensor in outer_tensors(spec):
        whole = storage.outer(tensor)
        held = part_of(whole, split.of_outer(tensor))
        if engine_of(plan) == "llama.cpp" and tensor.name == "embed_tokens.weight" and not spec.tie_word_embeddings:
            held = 0
        if isinstance(plan, StagePlan) and not _is_of_stage(tensor.name, spec, plan):
            held = 0
        found.append((tensor.name, whole, held))
    return found


def _is_of_stage(name: str, spec: ArchitectureSpec, plan: StagePlan) -> bool:
    """Whether a tensor outside the layers lies on a stage: a head that is the embedding at both ends."""
    if not name.startswith("embed"):
        return plan.is_last
    at_the_head = spec.tie_word_embeddings and name == "embed_tokens.weight"
    if engine_of(plan) == "llama.cpp" and at_the_head:
        return plan.is_last  # what is looked up lies in the host's memory
    return plan.is_first or (plan.is_last and at_the_head)


def _alone(plan: ServingPlan) -> ServingPlan:
    """The plan of a draft: whole on each device, for the sequences of its group."""
    return on_one_stage(plan, tensor_parallel=1, expert_parallel=1, offload_layers=0, speculative=None)


def projection_outputs(spec: ArchitectureSpec, split: Split = ALONE) -> list[Quantity]:
    """Elements a token that all projections of a mixer put out together on a device, of every distinct mixer."""
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
                        made = exact_divide(product(tensor.shape[:-1]) * chosen, available)
                        last = tensor.name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
                        outputs = outputs + (made if last else part_of(made, split.of_tensor(mixer, tensor)))
                widths.append(outputs)
    return widths


def pass_bytes(spec: ArchitectureSpec, context_length: Quantity, batch_size: Quantity, widest: Quantity) -> Quantity:
    """Upper bound of what one pass holds at once where its widest mixer puts out ``widest`` elements a token.

    Where mixers are in parallel, the first one's output waits for the second one's.
    """
    tokens = largest(smallest(context_length * batch_size, PREFILL_TOKENS), batch_size)
    streams = 3 if any(layer.residual != "sequential" for layer in _layers(spec)) else 2
    return 2 * tokens * (streams * spec.hidden_size + widest) + 4 * batch_size * spec.vocab_size


def _layers(spec: ArchitectureSpec) -> list[Layer]:
    return [layer for group in spec.layer_groups for layer in group.layers]


def activation_bytes(spec: ArchitectureSpec, context_length: Quantity, batch_size: Quantity) -> Quantity:
    """Upper bound of what one pass of an engine with paged memory holds at once on one device, in bytes."""
    return pass_bytes(spec, context_length, batch_size, widest_outputs(spec))


def widest_outputs(spec: ArchitectureSpec, split: Split = ALONE) -> Quantity:
    """The most that a mixer's projections put out a token."""
    widest: Quantity = 0
    for outputs in projection_outputs(spec, split):
        widest = largest(widest, outputs)
    return widest


def engine_activations(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch_size: Quantity, widest: Quantity
) -> Quantity:
    """What one pass of the plan's engine holds at once beside weights and cache; works on all three readings."""
    batch = Split.of(plan).sequences(batch_size)
    if engine_of(plan) == "llama.cpp":
        return _compute_buffer(spec, context_length, COPIES if _takes_turns(plan) else 1)
    if engine_of(plan) == "eager":
        return _eager_activations(spec, plan, context_length, batch, widest)
    found = speculation(plan.speculative)
    if found is not None:
        # Every sequence's proposals are read at once, and each has logits.
        return pass_bytes(spec, context_length, batch * (found.proposed + 1), widest)
    return pass_bytes(spec, context_length, batch, widest)


def _takes_turns(plan: ServingPlan) -> bool:
    """Whether llama.cpp's stages work on several micro-batches: only where all layers lie on devices."""
    return plan.pipeline_parallel > 1 and plan.offload_layers == 0


def _compute_buffer(spec: ArchitectureSpec, context_length: Quantity, copies: int) -> Quantity:
    tokens = smallest(context_length, MICRO_BATCH)
    heads: Quantity = 0
    attends = False
    for layer in _layers(spec):
        for _, mixer in layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ():
            if isinstance(mixer, (Attention, LatentAttention)):
                attends = True
                heads = largest(heads, mixer.num_attention_heads)
    at_the_head = spec.vocab_size + spec.hidden_size
    in_a_layer = (4 if copies == 1 else 4 + copies) * spec.hidden_size
    if attends:
        in_a_layer = in_a_layer + (heads + copies) * context_length
    return 4 * tokens * largest(at_the_head, in_a_layer)


def _eager_activations(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch: Quantity, widest: Quantity
) -> Quantity:
    prompt = largest(context_length - (plan.output_length or 0), 1)
    product_width: Quantity = 0
    for layer in _layers(spec):
        for mixer in (layer.sequence_mixer, layer.channel_mixer):
            product_width = largest(product_width, getattr(mixer, "intermediate_size", 0) if mixer is not None else 0)
    logits = 4 * batch * spec.vocab_size
    held = 2 * batch * prompt * (3 * spec.hidden_size + widest + product_width) + logits
    if plan.output_length is None:
        return held
    still_to_come = (
        planned_cache(spec, plan, context_length, batch).allocated_bytes
        - planned_cache(spec, plan, prompt, batch).allocated_bytes
    )
    at_the_end = 2 * batch * (3 * spec.hidden_size + widest + product_width) + logits
    return largest(held - still_to_come, at_the_end)


def planned_cache(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch_size: Quantity
) -> CacheUse:
    """The cache of one device under a plan, with quantities in place of its context and batch."""
    split = Split.of(plan)
    return cache_use(
        spec,
        context_length,
        split.sequences(batch_size),
        plan.cache_dtype,
        plan.cache_block_size,
        plan.windowed_pages,
        device_entries(spec, plan, context_length),
    )


def draft_cache(plan: ServingPlan, context_length: Quantity, batch_size: Quantity) -> CacheUse | None:
    """The cache of a draft on one device, where there is one."""
    found = speculation(plan.speculative)
    if found is None or found.draft is None:
        return None
    return planned_cache(found.draft, _alone(plan), context_length, batch_size)


def host_bytes(spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch_size: Quantity) -> Quantity:
    """Weights and cache of the offloaded layers of all devices together."""
    if plan.offload_layers == 0:
        return 0
    total: Quantity = 0
    plan = on_one_stage(plan)
    here = plan.model_copy(update={"offload_layers": 0})
    split = Split.of(plan)
    storage = Storage(spec, plan.weight_format)
    for group_index, layer_index, _, _, held in storage.tensors():
        repeats = spec.layer_groups[group_index].repeats
        hosted = hosted_layers(spec, plan, group_index, layer_index)
        total = total + part_of(held, (hosted, repeats))
    cached = (
        planned_cache(spec, here, context_length, batch_size).allocated_bytes
        - planned_cache(spec, plan, context_length, batch_size).allocated_bytes
    )
    return total + cached * split.devices


def memory_by_stage(
    spec: ArchitectureSpec, plan: ServingPlan, context_length: Quantity, batch_size: Quantity
) -> list[ServingMemory]:
    """Memory of the fullest device of each stage, in the order of the layers; in numbers."""
    return [serving_memory(spec, stage, context_length, batch_size) for stage in stages_of(plan)]


def fullest_stage(spec: ArchitectureSpec, plan: ServingPlan) -> ServingPlan:
    """The plan as the stage has it that needs most memory; itself where there is one. In numbers."""
    stages = stages_of(plan)
    if len(stages) == 1:
        return plan
    needed = [memory.total_bytes for memory in memory_by_stage(spec, plan, plan.context_length, plan.batch_size)]
    return stages[needed.index(max(needed))]


def serving_memory(
    spec: ArchitectureSpec,
    plan: ServingPlan,
    context_length: Quantity,
    batch_size: Quantity,
    weights: Quantity | None = None,
) -> ServingMemory:
    """Memory with quantities in place of the plan's numbers; works on all three readings.

    Of several stages it is that of the fullest, which only numbers tell. ``weights``: the bytes of
    :func:`device_weights`, where they are known already.
    """
    if len(stages_of(plan)) > 1:
        return max(memory_by_stage(spec, plan, context_length, batch_size), key=lambda memory: memory.total_bytes)
    cache = planned_cache(spec, plan, context_length, batch_size)
    draft = draft_cache(plan, context_length, batch_size)
    widest = widest_outputs(spec, Split.of(plan))
    return ServingMemory(
        weights_bytes=device_weights(spec, plan) if weights is None else weights,
        cache_bytes=cache.allocated_bytes + (0 if draft is None else draft.allocated_bytes),
        activations_bytes=engine_activations(spec, plan, context_length, batch_size, widest),
        overhead_bytes=DEVICE_OVERHEAD_BYTES,
        ideal_cache_bytes=cache.ideal_bytes + (0 if draft is None else draft.ideal_bytes),
        host_bytes=host_bytes(spec, plan, context_length, batch_size),
    )
