"""Operators of one pass of serving on one device: what each multiplies, reads and moves.

Two phases are told apart. ``prefill`` reads ``length`` tokens a sequence at once, as a training step's forward pass
does; ``decode`` adds one token to each sequence that has ``length`` tokens, the new one included. What is elementwise
(norms, activations, convolutions, Mamba-1's scan) has no operator of its own: the arithmetic counted here is that of
matrix multiplications. All formulas read numbers, arrays and symbols alike.

Routed experts are read as often as some token chooses them, of tokens that choose evenly: of E experts,
E·(1 − (1 − k/E)ⁿ) are chosen by at least one of n tokens that choose k. Of several devices an operator is the share of
one of them (:mod:`planner.serving.devices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from planner.cache import entry_bytes
from planner.components import Attention, LatentAttention
from planner.components.base import CacheEntry, Component, Tensor
from planner.compute import model_operations
from planner.matrices import between_tokens, matrices
from planner.plans import ServingPlan
from planner.quantities import Quantity, exact_divide, product
from planner.serving.devices import Split, StagePlan, hosted_layers, kept_layers, part_of
from planner.serving.formats import engine_of
from planner.serving.memory import check_serving_plan
from planner.serving.weights import Storage
from planner.sizing import active_count, outer_tensors
from planner.spec import ArchitectureSpec

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
ACTIVATION_BYTES = 2
"""Activations are moved in 16 bits, whatever the weights are kept in."""
STATE_FLOPS = 4
"""FLOPs an element of recurrent state takes a token: one multiply-add to update it and one to read it."""
MIXING = "mixing"


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
    on_host: bool = False
    """Whether it is of layers that are offloaded."""

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
    beside: Quantity = 0,
    head_tokens: Quantity | None = None,
) -> list[Operator]:
    """Every operator of one pass on one device, in the order in which the model applies them.

    ``length`` and ``batch_size`` (over all devices) are those of the plan where they are absent; the plan gives the
    types of weights and cache, and how devices share the work. ``beside`` are tokens that go through the matrices
    with the others, and ``head_tokens`` those that need logits; absent: all.

    Raises
    ------
    UnsupportedPlan
        where the plan is not modelled.
    """
    check_serving_plan(plan)
    length = plan.context_length if length is None else length
    batch = plan.batch_size if batch_size is None else batch_size
    reader = _Reader(spec, plan, phase, length, batch, beside)
    found: list[Operator] = []
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            kept = kept_layers(spec, plan, group_index, layer_index)
            places = [(False, kept)]
            if plan.offload_layers:
                places.append((True, hosted_layers(spec, plan, group_index, layer_index)))
            for stem, mixer in (("sequence_mixer", layer.sequence_mixer), ("channel_mixer", layer.channel_mixer)):
                if mixer is not None:
                    for on_host, times in places:
                        found += reader.of_mixer(mixer, stem, group_index, layer_index, times, on_host)
    if isinstance(plan, StagePlan) and not plan.is_last:
        return found
    return [*found, *reader.outer(head_tokens)]


@dataclass(frozen=True)
class _Reader:
    """One pass over a specification."""

    spec: ArchitectureSpec
    plan: ServingPlan
    phase: Phase
    length: Quantity
    batch: Quantity
    beside: Quantity

    @property
    def split(self) -> Split:
        return Split.of(self.plan)

    def tokens_of(self, sequences: Quantity, beside: Quantity) -> Quantity:
        """Tokens of as many sequences, and those beside them."""
        return (sequences * self.length if self.phase == "prefill" else sequences) + beside

    @property
    def own_tokens(self) -> Quantity:
        """Tokens of the sequences that a device has."""
        return self.tokens_of(self.split.sequences(self.batch), self.split.sequences(self.beside))

    @property
    def all_tokens(self) -> Quantity:
        """Tokens of all sequences: routed experts see them all."""
        return self.tokens_of(self.batch, self.beside)

    def of_mixer(
        self, mixer: Component, stem: str, group_index: int, layer_index: int, times: Quantity, on_host: bool
    ) -> Iterator[Operator]:
        path = f"layer_groups[{group_index}].layers[{layer_index}].{stem}"
        hidden_size, repeats = self.spec.hidden_size, self.spec.layer_groups[group_index].repeats
        storage = Storage(self.spec, self.plan.weight_format)
        for tensor in matrices(mixer, hidden_size):
            held = storage.inner(group_index, layer_index, tensor)
            if times is not repeats:
                held = part_of(held, (times, repeats))
            made = self._by_matrix(mixer, tensor, path, times, held)
            if isinstance(mixer, LatentAttention) and self.phase == "decode" and tensor.name == "kv_b_proj.weight":
                moved = _absorbed_bytes(mixer, self.own_tokens) * times
                made = replace(made, activation_bytes=part_of(moved, self.split.of_mixing(mixer)))
            yield replace(made, on_host=on_host)
        for end, part in mixer.parts() if stem == "sequence_mixer" else ():
            yield replace(self._mixing(part, f"{path}{end}", times), on_host=on_host)

    def _by_matrix(self, mixer: Component, tensor: Tensor, path: str, times: Quantity, held: Quantity) -> Operator:
        chosen, available = tensor.active_share
        outputs, inputs = tensor.shape[-2:]
        share = self.split.of_tensor(mixer, tensor)
        tokens = self.own_tokens
        # Each block of a block-diagonal matrix reads and writes channels of its own.
        rows, read = tokens * product(tensor.shape[:-2]), part_of(held, share)
        if not (isinstance(available, int) and available == 1):
            tokens = self.all_tokens
            rows = tokens * chosen
            read = read * (1 - (1 - chosen / available) ** tokens)
        return Operator(
            tensor.name.removesuffix(".weight"),
            tensor.component,
            path,
            times,
            part_of(2 * tokens * active_count(tensor) * times, share),
            read,
            0,
            part_of(ACTIVATION_BYTES * rows * (inputs + outputs) * times, share),
        )

    def _mixing(self, mixer: Component, path: str, times: Quantity) -> Operator:
        """What a sequence mixer does between tokens: attention by a fused kernel, or the update of a state."""
        hidden_size, length, batch = self.spec.hidden_size, self.length, self.split.sequences(self.batch)
        tokens = batch * length if self.phase == "prefill" else batch
        entries = [self.split.of_entry(entry) for entry in _read_entries(mixer, hidden_size, length)]
        held: Quantity = 0
        for entry in entries:
            held = held + entry_bytes(entry, self.plan.cache_dtype) * batch
        attends = any(entry.grows for entry in entries)
        share = self.split.of_mixing(mixer)
        status: Literal["modelled", "approximated"] = "modelled"
        moved = part_of(_between_matrices(mixer, hidden_size) * tokens * ACTIVATION_BYTES, share)
        if self.phase == "prefill":
            flops = part_of(between_tokens(mixer, hidden_size, length, batch), share)
            cached = 0 if attends else held  # a state is written once; keys and values are counted as activations
        elif isinstance(mixer, LatentAttention):
            # Queries are taken into the latent space, so that keys and values need not be expanded (arXiv:2405.04434,
            # section 2.1).
            flops = part_of(batch * (mixer.mixing_flops(1, length, True) - mixer.mixing_flops(1, 0, True)), share)
            width = mixer.num_attention_heads * (2 * mixer.kv_lora_rank + mixer.qk_rope_head_dim)
            moved = part_of(batch * width * ACTIVATION_BYTES, share)
            cached = held
        elif attends:
            before = between_tokens(mixer, hidden_size, length - 1, batch)
            flops = part_of(between_tokens(mixer, hidden_size, length, batch) - before, share)
            cached = held
            if engine_of(self.plan) == "eager" and isinstance(mixer, Attention):
                moved = moved + _copied_bytes(mixer, held)
        else:
            state: Quantity = 0
            for entry in entries:
                if entry.name != "convolution":
                    state = state + entry.elements
            flops, cached, status = STATE_FLOPS * batch * state, 2 * held, "approximated"
        return Operator(
            MIXING, mixer.component, path, times, flops * times, 0, cached * times, moved * times, status=status
        )

    def outer(self, head_tokens: Quantity | None) -> Iterator[Operator]:
        """Multiplications outside the layers: the head, and projections of an embedding of another width."""
        tensors = {tensor.name: tensor for tensor in outer_tensors(self.spec)}
        embedding = tensors["embed_tokens.weight"]
        storage = Storage(self.spec, self.plan.weight_format)
        for path, times, operation in model_operations(self.spec, 1, 1):
            if path.startswith("layer_groups"):
                continue
            elements = exact_divide(operation.flops, 2)
            is_head = operation.name == "language model head"
            matrix = tensors.get("lm_head.weight", embedding) if is_head else embedding
            share = self.split.of_outer(matrix)
            # A projection of the embedding is kept in the type that the embedding is kept in.
            read = part_of(exact_divide(storage.outer(matrix) * elements, matrix.count), share)
            ends = (matrix.shape[0] if is_head else self.spec.hidden_size) + matrix.shape[1]
            tokens = self.own_tokens if head_tokens is None or not is_head else self.split.sequences(head_tokens)
            flops = part_of(2 * tokens * elements * times, share)
            moved = part_of(ACTIVATION_BYTES * tokens * ends, share)
            yield Operator(path, operation.component, path, times, flops, read, 0, moved)


def _absorbed_bytes(mixer: LatentAttention, tokens: Quantity) -> Quantity:
    """What the expansion moves beside its weights: queries into the latent space, and mixed latents out of it."""
    unrotated = mixer.qk_nope_head_dim + mixer.v_head_dim
    return ACTIVATION_BYTES * tokens * mixer.num_attention_heads * (unrotated + 2 * mixer.kv_lora_rank)


def _copied_bytes(mixer: Attention, held: Quantity) -> Quantity:
    """What transformers moves of the cache beside reading it, for every token of every layer.

    ``torch.cat`` writes keys and values anew behind the last token, and ``repeat_kv`` reads and writes them once more
    for every query head, as which attention then reads them.
    """
    repeated = exact_divide(held * mixer.num_attention_heads, mixer.num_key_value_heads)
    return 2 * held + 2 * repeated


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


def merged(found: Sequence[Operator]) -> list[Operator]:
    """Operators of one name, component and place as one, in the order of their first occurrence; in numbers."""
    together: dict[tuple[str, str, bool], Operator] = {}
    for each in found:
        key = (each.component, each.name, each.on_host)
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
