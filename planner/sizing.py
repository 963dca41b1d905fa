"""Parameters: every tensor of a model, and their totals.

The totals are sums over the distinct layers times their repeats, so a deep model costs no more than a shallow one;
the full list of tensors is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from planner.components.base import Component, Tensor
from planner.quantities import Quantity, exact_divide
from planner.spec import ArchitectureSpec, Layer, LearnedPositions


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Elements of parameters. A tied matrix is counted once."""

    total: int
    active: int
    """What one token touches: of the routed experts the chosen ones, of everything else all. The embedding is
    included whole, as its rows are the head's where they are tied; without it see ``active_without_embedding``."""
    active_without_embedding: int
    """The same without the token and position embeddings that are only looked up (a tied matrix stays: the head
    multiplies by it)."""
    by_component: dict[str, int]


@dataclass(frozen=True)
class Size:
    """What a specification consists of."""

    spec: ArchitectureSpec
    parameters: ParameterCounts

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every parameter, in the order in which the model applies them."""
        return tuple(model_tensors(self.spec))

    @cached_property
    def buffers(self) -> tuple[Tensor, ...]:
        """Every persistent buffer: saved with the model, but no parameter."""
        return tuple(
            replace(buffer, name=f"layers.{index}.{part}.{buffer.name}")
            for index, layer in self.spec.iterate_layers()
            for part, buffer in layer_buffers(self.spec, layer)
        )


def embedding_width(spec: ArchitectureSpec) -> Quantity:
    """Channels of the token embedding and of what the head reads."""
    return spec.hidden_size if spec.embedding_size is None else spec.embedding_size


def leading_tensors(spec: ArchitectureSpec) -> Iterator[Tensor]:
    """The tensors before the layers."""
    width, hidden_size = embedding_width(spec), spec.hidden_size
    yield Tensor("embed_tokens.weight", (spec.vocab_size, width), "token_embedding", split="columns")
    if spec.embedding_size is not None:
        yield Tensor("embedding_in.weight", (hidden_size, width), "token_embedding")
    if spec.embedding_norm:
        for tensor in spec.norm.tensors(hidden_size):
            yield replace(tensor, name=f"embedding_norm.{tensor.name}")
    if isinstance(spec.positions, LearnedPositions):
        rows = spec.positions.num_positions + spec.positions.offset
        yield Tensor("embed_positions.weight", (rows, hidden_size), "position_embedding")


def trailing_tensors(spec: ArchitectureSpec) -> Iterator[Tensor]:
    """The tensors after the layers."""
    width, hidden_size = embedding_width(spec), spec.hidden_size
    if spec.final_norm:
        for tensor in spec.norm.tensors(hidden_size):
            yield replace(tensor, name=f"final_norm.{tensor.name}")
    if spec.embedding_size is not None:
        yield Tensor("embedding_out.weight", (width, hidden_size), "lm_head")
    if not spec.tie_word_embeddings:
        yield Tensor("lm_head.weight", (spec.vocab_size, width), "lm_head", split="columns")
    if spec.lm_head_bias:
        yield Tensor("lm_head.bias", (spec.vocab_size,), "lm_head", split="columns")


def outer_tensors(spec: ArchitectureSpec) -> Iterator[Tensor]:
    """The tensors outside the layers."""
    yield from leading_tensors(spec)
    yield from trailing_tensors(spec)


def outer_block(tensor_name: str) -> str:
    """The block that a tensor outside the layers stands in: ``token_embedding``, ``lm_head`` …"""
    stem = tensor_name.partition(".")[0]
    return {
        "embed_tokens": "token_embedding",
        "embedding_in": "token_embedding",
        "embed_positions": "position_embedding",
        "embedding_out": "lm_head",
    }.get(stem, stem)


def looked_up_tensors(spec: ArchitectureSpec) -> Iterator[Tensor]:
    """The tensors of which a token only reads a row: embeddings, unless the head multiplies by them."""
    for tensor in leading_tensors(spec):
        tied = tensor.name == "embed_tokens.weight" and spec.tie_word_embeddings
        if tensor.name.startswith("embed_") and not tied:
            yield tensor


def layer_components(spec: ArchitectureSpec, layer: Layer) -> Iterator[tuple[str, Component]]:
    """The norms and mixers of a layer by name, in the order in which they act."""
    mixers = {"sequence_mixer": layer.sequence_mixer, "channel_mixer": layer.channel_mixer}
    for part in layer.parts:
        mixer = mixers.get(part)
        yield part, spec.norm if mixer is None else mixer.under(spec.positions.kind)


def layer_tensors(spec: ArchitectureSpec, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one layer, each with the name of the part of the layer that holds it."""
    for part, component in layer_components(spec, layer):
        for tensor in component.tensors(spec.hidden_size):
            yield part, tensor


def layer_buffers(spec: ArchitectureSpec, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """The persistent buffers of one layer, each with the name of the part of the layer that holds it."""
    for part, component in layer_components(spec, layer):
        for buffer in component.buffers(spec.hidden_size):
            yield part, buffer


def model_tensors(spec: ArchitectureSpec) -> Iterator[Tensor]:
    """Every parameter with its full name, such as ``layers.3.sequence_mixer.q_proj.weight``."""
    yield from leading_tensors(spec)
    for index, layer in spec.iterate_layers():
        for part, tensor in layer_tensors(spec, layer):
            yield replace(tensor, name=f"layers.{index}.{part}.{tensor.name}")
    yield from trailing_tensors(spec)


def is_partly_active(tensor: Tensor) -> bool:
    """Whether a token touches only a share of a tensor; an array or a symbol of experts might be one of one."""
    available = tensor.active_share[1]
    return not (isinstance(available, int) and available == 1)


def active_count(tensor: Tensor) -> Quantity:
    """Elements of a tensor that one token touches."""
    return _share(tensor, tensor.count) if is_partly_active(tensor) else tensor.count


def _share(tensor: Tensor, count: Quantity) -> Quantity:
    chosen, available = tensor.active_share
    return exact_divide(count * chosen, available)


def count_parameters(spec: ArchitectureSpec) -> ParameterCounts:
    """Totals of all parameters; works on all three readings of the specification's fields.

    Repeats are multiplied once a group and shares taken of experts alone: with arrays, each operation counts.
    """
    by_component: dict[str, Quantity] = {}
    untouched: Quantity = 0
    for tensor in outer_tensors(spec):
        _add(by_component, tensor.component, tensor.count)
    for group in spec.layer_groups:
        once: dict[str, Quantity] = {}
        untouched_once: Quantity = 0
        for layer in group.layers:
            for _, tensor in layer_tensors(spec, layer):
                count = tensor.count
                _add(once, tensor.component, count)
                if is_partly_active(tensor):
                    untouched_once = untouched_once + (count - _share(tensor, count))
        for component, count in once.items():
            _add(by_component, component, count * group.repeats)
        untouched = untouched + untouched_once * group.repeats
    looked_up: Quantity = 0
    for tensor in looked_up_tensors(spec):
        looked_up = looked_up + tensor.count
    total: Quantity = 0
    for count in by_component.values():
        total = total + count
    active = total - untouched
    return ParameterCounts(total, active, active - looked_up, by_component)


def _add(counts: dict[str, Quantity], component: str, count: Quantity) -> None:
    counts[component] = counts[component] + count if component in counts else count


def size(spec: ArchitectureSpec) -> Size:
    """Parameters of a specification, exact to the last element."""
    return Size(spec, count_parameters(spec))
