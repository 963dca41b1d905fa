"""Arithmetic intensity of each operator, and the length at which attention costs as much as the MLPs.

An operator's intensity is its FLOPs over the bytes that an ideal kernel moves: weights, inputs, outputs and what it
reads of the cache, each once. Below a device's ridge point (peak FLOPs over memory bandwidth) memory decides how long
it takes, above it the arithmetic units do (the roofline model; Williams et al. 2009, doi:10.1145/1498765.1498785).

Two phases are told apart. ``prefill`` reads ``length`` tokens a sequence at once, as a training step's forward pass
does; ``decode`` adds one token to each sequence that has ``length`` tokens, the new one included. What is elementwise
(norms, activations, convolutions, Mamba-1's scan) has no operator of its own: the arithmetic counted here is that of
matrix multiplications. All formulas read numbers, arrays and symbols alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from planner.cache import entry_bytes
from planner.components import Attention, LatentAttention
from planner.components.base import CacheEntry, Component, Tensor
from planner.compute import model_operations
from planner.hardware import Device
from planner.plans import ServingPlan
from planner.quantities import Quantity, exact_divide, product
from planner.serving import check_serving_plan, is_quantized, largest_true, tensor_bytes
from planner.sizing import active_count, outer_tensors
from planner.spec import ArchitectureSpec

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
ACTIVATION_BYTES = 2
"""Activations are moved in 16 bits, whatever the weights are kept in."""
STATE_FLOPS = 4
"""FLOPs an element of recurrent state takes a token: one multiply-add to update it and one to read it."""
LONGEST_CROSSOVER = 2**30

_VECTORS = ("bias", "norm", "conv")
"""In the names of tensors of several dimensions that no token is multiplied by as by a matrix."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator over all layers that are alike and all sequences of the batch."""

    name: str
    """The tensor that is multiplied by, or ``mixing`` for what a sequence mixer does between tokens."""
    component: str
    path: str
    """The block that it belongs to, such as ``layer_groups[0].layers[1].sequence_mixer``."""
    times: Quantity
    """Layers that it stands for together."""
    flops: Quantity
    weight_bytes: Quantity
    cache_bytes: Quantity
    activation_bytes: Quantity
    status: Literal["modelled", "approximated"] = "modelled"

    @property
    def moved_bytes(self) -> Quantity:
        """Everything that an ideal kernel moves."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def intensity(self) -> Quantity:
        """FLOPs a byte."""
        return self.flops / self.moved_bytes


def operators(
    spec: ArchitectureSpec,
    plan: ServingPlan,
    phase: Phase,
    length: Quantity | None = None,
    batch_size: Quantity | None = None,
) -> list[Operator]:
    """Every operator of one pass, in the order in which the model applies them.

    ``length`` and ``batch_size`` are those of the plan where they are absent; the plan gives the types of weights and
    cache. Routed experts are read as often as some token chooses them, of tokens that choose evenly.

    Raises
    ------
    UnsupportedPlan
        where the plan is not modelled.
    """
    check_serving_plan(plan)
    length = plan.context_length if length is None else length
    batch = plan.batch_size if batch_size is None else batch_size
    tokens = batch * length if phase == "prefill" else batch
    found: list[Operator] = []
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            where = f"layer_groups[{group_index}].layers[{layer_index}]"
            for stem, mixer in (("sequence_mixer", layer.sequence_mixer), ("channel_mixer", layer.channel_mixer)):
                if mixer is None:
                    continue
                path = f"{where}.{stem}"
                for tensor in matrices(mixer, spec.hidden_size):
                    found.append(_by_matrix(tensor, path, group.repeats, tokens, plan))
                    if isinstance(mixer, LatentAttention) and phase == "decode" and tensor.name == "kv_b_proj.weight":
                        found[-1] = replace(found[-1], activation_bytes=_absorbed_bytes(mixer, tokens) * group.repeats)
                for end, part in mixer.parts() if stem == "sequence_mixer" else ():
                    where_part, times = f"{path}{end}", group.repeats
                    found.append(_mixing(part, spec.hidden_size, where_part, times, length, batch, phase, plan))
    found += _outer(spec, tokens, plan)
    return found


def matrices(mixer: Component, hidden_size: Quantity) -> Iterator[Tensor]:
    """The tensors of a mixer that tokens are multiplied by."""
    for tensor in mixer.tensors(hidden_size):
        own = tensor.name.removesuffix(".weight")
        is_matrix = len(tensor.shape) >= 2 and tensor.is_matrix and tensor.dtype_class == "weight"
        if is_matrix and not any(word in own for word in _VECTORS):
            yield tensor


def matrix_flops(mixer: Component, hidden_size: Quantity, tokens: Quantity) -> Quantity:
    """FLOPs of ``tokens`` tokens through a mixer's matrices: two a weight that a token touches."""
    total: Quantity = 0
    for tensor in matrices(mixer, hidden_size):
        total = total + 2 * tokens * active_count(tensor)
    return total


def _by_matrix(tensor: Tensor, path: str, times: Quantity, tokens: Quantity, plan: ServingPlan) -> Operator:
    chosen, available = tensor.active_share
    outputs, inputs = tensor.shape[-2:]
    # Each block of a block-diagonal matrix reads and writes channels of its own.
    rows, read = tokens * product(tensor.shape[:-2]), tensor_bytes(tensor, plan.weight_format, is_quantized(tensor))
    if not (isinstance(available, int) and available == 1):
        rows = tokens * chosen
        # Of E experts, E·(1 − (1 − k/E)ⁿ) are chosen by at least one of n tokens that choose k evenly.
        read = read * (1 - (1 - chosen / available) ** tokens)
    return Operator(
        tensor.name.removesuffix(".weight"),
        tensor.component,
        path,
        times,
        2 * tokens * active_count(tensor) * times,
        read * times,
        0,
        ACTIVATION_BYTES * rows * (inputs + outputs) * times,
    )


def _absorbed_bytes(mixer: LatentAttention, tokens: Quantity) -> Quantity:
    """What the expansion moves beside its weights: queries into the latent space, and mixed latents out of it."""
    unrotated = mixer.qk_nope_head_dim + mixer.v_head_dim
    return ACTIVATION_BYTES * tokens * mixer.num_attention_heads * (unrotated + 2 * mixer.kv_lora_rank)


def _mixing(
    mixer: Component,
    hidden_size: Quantity,
    path: str,
    times: Quantity,
    length: Quantity,
    batch: Quantity,
    phase: Phase,
    plan: ServingPlan,
) -> Operator:
    """What a sequence mixer does between tokens: attention by a fused kernel, or the update of a state."""
    tokens = batch * length if phase == "prefill" else batch
    entries = list(_read_entries(mixer, hidden_size, length))
    held: Quantity = 0
    for entry in entries:
        held = held + entry_bytes(entry, plan.cache_dtype) * batch
    attends = any(entry.grows for entry in entries)
    status: Literal["modelled", "approximated"] = "modelled"
    moved = _between_matrices(mixer, hidden_size) * tokens * ACTIVATION_BYTES
    if phase == "prefill":
        flops = _between_tokens(mixer, hidden_size, length, batch)
        cached = 0 if attends else held  # a state is written once; keys and values are counted as activations
    elif isinstance(mixer, LatentAttention):
        # Queries are taken into the latent space, so that keys and values need not be expanded (arXiv:2405.04434, 2.1).
        flops = batch * (mixer.mixing_flops(1, length, True) - mixer.mixing_flops(1, 0, True))
        moved = batch * mixer.num_attention_heads * (2 * mixer.kv_lora_rank + mixer.qk_rope_head_dim) * ACTIVATION_BYTES
        cached = held
    elif attends:
        before = _between_tokens(mixer, hidden_size, length - 1, batch)
        flops = _between_tokens(mixer, hidden_size, length, batch) - before
        cached = held
    else:
        state: Quantity = 0
        for entry in entries:
            if entry.name != "convolution":
                state = state + entry.elements
        flops, cached, status = STATE_FLOPS * batch * state, 2 * held, "approximated"
    return Operator(
        "mixing", mixer.component, path, times, flops * times, 0, cached * times, moved * times, status=status
    )


def _between_tokens(mixer: Component, hidden_size: Quantity, length: Quantity, batch: Quantity) -> Quantity:
    """FLOPs of a mixer beside its matrices, without what a mask leaves out."""
    total: Quantity = 0
    for operation in mixer.operations(hidden_size, length, batch):
        total = total + operation.needed_flops
    return total - matrix_flops(mixer, hidden_size, length * batch)


def _between_matrices(mixer: Component, hidden_size: Quantity) -> Quantity:
    """Elements a token that mixing reads and writes: queries, keys, values (or their like) and the result."""
    known = list(matrices(mixer, hidden_size))
    if isinstance(mixer, LatentAttention):
        heads, key = mixer.num_attention_heads, mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
        return heads * (2 * key + 2 * mixer.v_head_dim)
    elements: Quantity = 0
    for tensor in known[:-1]:
        elements = elements + product(tensor.shape[:-1])
    return elements + known[-1].shape[-1] if known else elements


def _read_entries(mixer: Any, hidden_size: Quantity, length: Quantity) -> Iterator[CacheEntry]:
    """What is read of the cache; a layer that keeps none of its own reads another's that is shaped like its own."""
    if getattr(mixer, "shares_key_values", False):
        mixer = type(mixer).model_construct(**{**dict(mixer), "shares_key_values": False})
    yield from mixer.cache(hidden_size, length)


def _outer(spec: ArchitectureSpec, tokens: Quantity, plan: ServingPlan) -> Iterator[Operator]:
    """Multiplications outside the layers: the head, and projections of an embedding of another width."""
    matrix = next(tensor for tensor in outer_tensors(spec) if tensor.name == "embed_tokens.weight")
    for path, times, operation in model_operations(spec, 1, 1):
        if path.startswith("layer_groups"):
            continue
        elements = exact_divide(operation.flops, 2)
        # Kept in the type that the embedding is kept in.
        read = exact_divide(tensor_bytes(matrix, plan.weight_format, False) * elements, matrix.count)
        is_head = operation.name == "language model head"
        ends = (matrix.shape[0] if is_head else spec.hidden_size) + matrix.shape[1]
        moved = ACTIVATION_BYTES * tokens * ends
        yield Operator(path, operation.component, path, times, 2 * tokens * elements * times, read, 0, moved)


def merged(found: Sequence[Operator]) -> list[Operator]:
    """Operators of one name and component as one, in the order of their first occurrence; in numbers."""
    together: dict[tuple[str, str], Operator] = {}
    for each in found:
        key = (each.component, each.name)
        before = together.get(key)
        if before is None:
            together[key] = replace(each, path="")
            continue
        together[key] = replace(
            before,
            times=before.times + each.times,
            flops=before.flops + each.flops,
            weight_bytes=before.weight_bytes + each.weight_bytes,
            cache_bytes=before.cache_bytes + each.cache_bytes,
            activation_bytes=before.activation_bytes + each.activation_bytes,
        )
    return list(together.values())


@dataclass(frozen=True, slots=True)
class Bound:
    """What holds an operator back on a device, at best."""

    operator: Operator
    by: Literal["memory", "arithmetic"]
    seconds: float
    """Not less than this: the device's promised rates, both in full use."""
    share: float
    """Of the sum over all operators."""


def bounds(found: Sequence[Operator], device: Device, dtype: str) -> list[Bound]:
    """Each operator against the device's ridge point; empty where the device has no rate of ``dtype`` or bandwidth."""
    peak, bandwidth = device.peak_flops.get(dtype), device.memory_bandwidth_bytes_per_second
    if peak is None or bandwidth is None:
        return []
    times = [(each.flops / peak, each.moved_bytes / bandwidth) for each in found]
    total = sum(max(pair) for pair in times)
    return [
        Bound(each, "arithmetic" if arithmetic > memory else "memory", max(arithmetic, memory), max(pair) / total)
        for each, pair in zip(found, times, strict=True)
        for arithmetic, memory in [pair]
    ]


def ridge_point(device: Device, dtype: str) -> float | None:
    """FLOPs a byte at which a device's memory and its arithmetic take equally long; ``None`` where one is not known."""
    peak, bandwidth = device.peak_flops.get(dtype), device.memory_bandwidth_bytes_per_second
    return None if peak is None or bandwidth is None else peak / bandwidth


@dataclass(frozen=True, slots=True)
class Crossover:
    """Sequence lengths from which attention between tokens costs at least what all channel mixers do."""

    counted_tokens: Quantity | None
    """With the whole square multiplied, as a plain kernel does; ``None`` where nothing attends or there is no MLP."""
    needed_tokens: int | None
    """Without what causal masks and windows leave out; ``None`` also where it never comes to that."""


def crossover(spec: ArchitectureSpec) -> Crossover:
    """The attention-to-MLP crossover of a model: scores and weighted values against the channel mixers.

    The projections of attention are on neither side. For multi-head attention as wide as the stream and a plain MLP of
    four times its width the counted length is four hidden sizes.
    """
    counted = crossover_counted(spec)
    if counted is None:
        return Crossover(None, None)

    channel = channel_flops(spec)

    def below(length: int) -> bool:
        return bool(attention_flops(spec, length)[1] < channel * length)

    last = largest_true(below, LONGEST_CROSSOVER)
    return Crossover(counted, None if last == LONGEST_CROSSOVER else last + 1)


def crossover_counted(spec: ArchitectureSpec) -> Quantity | None:
    """The counted length as a formula: what the channel mixers take a token, over what attention takes a pair."""
    nothing = not list(_attending(spec)) or not any(
        layer.channel_mixer is not None for group in spec.layer_groups for layer in group.layers
    )
    return None if nothing else channel_flops(spec) / attention_flops(spec, 1)[0]


def attention_flops(spec: ArchitectureSpec, length: Quantity) -> tuple[Quantity, Quantity]:
    """FLOPs of all scores and weighted values over a sequence: of the whole square, and of what the masks leave."""
    counted: Quantity = 0
    needed: Quantity = 0
    for mixer, repeats in _attending(spec):
        for operation in mixer.operations(spec.hidden_size, length, 1):
            counted = counted + operation.flops * repeats
        counted = counted - matrix_flops(mixer, spec.hidden_size, length) * repeats
        needed = needed + _between_tokens(mixer, spec.hidden_size, length, 1) * repeats
    return counted, needed


def _attending(spec: ArchitectureSpec) -> Iterator[tuple[Component, Quantity]]:
    for group in spec.layer_groups:
        for layer in group.layers:
            for _, mixer in layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ():
                if isinstance(mixer, (Attention, LatentAttention)):
                    yield mixer, group.repeats


def channel_flops(spec: ArchitectureSpec) -> Quantity:
    """FLOPs a token of all channel mixers."""
    total: Quantity = 0
    for group in spec.layer_groups:
        for layer in group.layers:
            if layer.channel_mixer is not None:
                for operation in layer.channel_mixer.operations(spec.hidden_size, 1, 1):
                    total = total + operation.flops * group.repeats
    return total
