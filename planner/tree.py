"""The tree of a number's terms, in whichever reading the fields of a specification have.

:mod:`planner.explain` builds one on numbers and one on symbols by the same code, and makes terms of the pairs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from planner.plans import Plan
from planner.quantities import Quantity
from planner.sizing import layer_components, layer_tensors, leading_tensors, outer_block, trailing_tensors
from planner.spec import ArchitectureSpec, Layer
from planner.training.pipeline import Stage
from planner.uncertainty import Status, Uncertainty


@dataclass(frozen=True, slots=True)
class Node:
    """One number of the tree, and what it is the sum of."""

    name: str
    value: Quantity
    path: str = ""
    times: int = 1
    source: str = ""
    children: tuple[Node, ...] = ()
    status: Status | None = None
    """Absent: that of the children, or of the quantity."""
    uncertainty: Uncertainty | None = None
    """In the reading of numbers; absent: that of the children."""

    def scaled(self, factor: Quantity, over: Quantity = 1) -> Node:
        """The same tree with every value times ``factor`` over ``over``, kept exact in numbers."""
        value = self.value * factor
        if isinstance(value, int) and isinstance(over, int):
            fraction = Fraction(value, over)
            value = fraction.numerator if fraction.denominator == 1 else fraction
        else:
            value = value / over
        return replace(self, value=value, children=tuple(child.scaled(factor, over) for child in self.children))


def node_sum(name: str, children: Sequence[Node], **more: Any) -> Node:
    """The node whose value is its children's sum."""
    total: Quantity = 0
    for child in children:
        total = total + child.value
    return Node(name, total, children=tuple(children), **more)


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a specification and of the numbers that a plan adds."""

    spec: ArchitectureSpec
    numbers: ArchitectureSpec
    """The same in numbers: for names and counts of layers."""
    sequence_length: Quantity
    batch_size: Quantity
    plan: Plan | None
    single: bool = False
    """Whether a layer is counted once, whatever its repeats."""
    stage: Stage | None = None
    """Of training memory: the pipeline stage whose layers the specification has."""

    @property
    def in_numbers(self) -> bool:
        """Whether this is the reading of numbers."""
        return self.spec is self.numbers

    def layers(self) -> Iterator[tuple[str, str, Layer, Quantity, int]]:
        """Path, name, layer, repeats in this reading and in numbers, of every distinct layer."""
        first = 0
        for index, (group, plain) in enumerate(zip(self.spec.layer_groups, self.numbers.layer_groups, strict=True)):
            period = len(plain.layers)
            for position, (layer, known) in enumerate(zip(group.layers, plain.layers, strict=True)):
                path = f"layer_groups[{index}].layers[{position}]"
                start, last = first + position, first + position + (plain.repeats - 1) * period
                every = f", every {period}" if period > 1 and plain.repeats > 1 else ""
                where = f"layer {start}" if plain.repeats == 1 else f"layers {start}–{last}{every}"
                kinds = " + ".join(
                    mixer.component.replace("_", " ")
                    for mixer in (known.sequence_mixer, known.channel_mixer)
                    if mixer is not None
                )
                if self.single:
                    yield path, f"{kinds} (one layer)", layer, 1, 1
                else:
                    yield path, f"{kinds} ({where})", layer, group.repeats, plain.repeats
            first += plain.num_layers


def component_source(part: Any) -> str:
    """Where a component is described: the first paragraph of its module."""
    module = inspect.getmodule(type(part))
    return " ".join((module.__doc__ or "").split()) if module is not None else ""


def over_tensors(reading: Reading, title: str, measure: Callable[[Any, bool], Quantity]) -> Node:
    """A tree over all tensors; ``measure`` takes a tensor and whether a layer holds it."""
    before, after = (
        [Node(tensor.name, measure(tensor, False), path=outer_block(tensor.name)) for tensor in tensors]
        for tensors in (leading_tensors(reading.spec), trailing_tensors(reading.spec))
    )
    layers: list[Node] = []
    for path, name, layer, repeats, times in reading.layers():
        leaves: dict[str, list[Node]] = {}
        for part, tensor in layer_tensors(reading.spec, layer):
            leaf = Node(tensor.name, measure(tensor, True) * repeats, path=f"{path}.{part}", times=times)
            leaves.setdefault(part, []).append(leaf)
        parts = [
            node_sum(part.replace("_", " "), leaves[part], path=f"{path}.{part}", times=times, source=source)
            for part, component in layer_components(reading.spec, layer)
            for source in [component_source(component)]
            if part in leaves
        ]
        layers.append(node_sum(name, parts, path=path, times=times))
    return node_sum(title, [*before, *layers, *after])


def place_of(path: str) -> tuple[int, int]:
    """Group and layer of a path that :meth:`Reading.layers` gives."""
    group, layer = (int(part.partition("]")[0]) for part in path.split("[")[1:3])
    return group, layer
