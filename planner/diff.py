"""What differs between two designs, and what each difference did to parameters, FLOPs and cache.

The effect of one field is found by changing that field alone in the first design. Where the design that results
contradicts itself (25 heads of a width of 4,096 that 8 KV heads share), there is no such effect, and the reason is
given. Fields multiply, so what two of them do together is more or less than the sum of what each does alone: that is
their interaction, found by changing both. The effects of all fields and all interactions sum to the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from planner.cache import cache_bytes
from planner.compute import flops
from planner.errors import InvalidSpec
from planner.sizing import size
from planner.spec import ArchitectureSpec, Layer, parse_spec

MOST_PAIRED = 12
"""Fields up to which every pair is changed together; of more, what they do to each other is one number."""


@dataclass(frozen=True, slots=True)
class Quantities:
    """The numbers that are compared."""

    parameters: int
    active_parameters: int
    flops: int
    """Of one forward pass over ``sequence_length`` tokens."""
    cache_bytes: int

    def less(self, other: Quantities) -> Quantities:
        """Differences to ``other``."""
        return Quantities(
            self.parameters - other.parameters,
            self.active_parameters - other.active_parameters,
            self.flops - other.flops,
            self.cache_bytes - other.cache_bytes,
        )

    def plus(self, other: Quantities) -> Quantities:
        """Sums with ``other``."""
        return Quantities(
            self.parameters + other.parameters,
            self.active_parameters + other.active_parameters,
            self.flops + other.flops,
            self.cache_bytes + other.cache_bytes,
        )


NOTHING = Quantities(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs."""

    path: str
    before: Any
    """``None`` where the field is absent."""
    after: Any
    effect: Quantities | None
    """What changing this field alone in the first design adds; ``None`` where ``reason`` says why there is no such."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Interaction:
    """What several fields do together beyond what they do in smaller company."""

    paths: tuple[str, ...]
    effect: Quantities


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Layers that differ in the same way."""

    layers: tuple[int, ...]
    """Their indices, from the embedding."""
    before: str
    """What the layer was, such as ``attention + mlp``; empty where there was none."""
    after: str
    fields: tuple[str, ...]
    """Fields that differ inside layers that both designs have."""

    @property
    def layers_text(self) -> str:
        """The indices for people: ``0–3, 7``."""
        runs: list[list[int]] = []
        for index in self.layers:
            if runs and runs[-1][-1] == index - 1:
                runs[-1].append(index)
            else:
                runs.append([index])
        return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


@dataclass(frozen=True, slots=True)
class SpecDiff:
    """Everything that differs between two designs."""

    changes: tuple[FieldChange, ...]
    interactions: tuple[Interaction, ...]
    """Those that are not nothing, the pairs first; with the effects of the fields they sum to ``effect``."""
    layers: tuple[LayerChange, ...]
    before: Quantities
    after: Quantities
    sequence_length: int
    context_length: int

    @property
    def effect(self) -> Quantities:
        """All differences together."""
        return self.after.less(self.before)

    @property
    def identical(self) -> bool:
        """Whether nothing but the name may differ."""
        return not self.changes


def quantities(spec: ArchitectureSpec, sequence_length: int, context_length: int) -> Quantities:
    """The numbers of one design."""
    parameters = size(spec).parameters
    return Quantities(
        parameters.total,
        parameters.active,
        flops(spec, sequence_length).total,
        cache_bytes(spec, context_length),
    )


def diff(
    a: ArchitectureSpec, b: ArchitectureSpec, *, sequence_length: int = 4096, context_length: int = 32_768
) -> SpecDiff:
    """What ``b`` changed of ``a``, field by field and layer by layer; the name is no difference."""
    before, after = a.model_dump(mode="json", exclude={"name"}), b.model_dump(mode="json", exclude={"name"})
    start, end = (quantities(spec, sequence_length, context_length) for spec in (a, b))

    def effect_of(parts: Sequence[_Difference]) -> Quantities:
        data = before
        for _, steps, _, new in parts:
            data = _with(data, steps, new)
        return quantities(parse_spec(data), sequence_length, context_length).less(start)

    parts = list(_differences(before, after))
    changes = []
    for path, steps, old, new in parts:
        try:
            changes.append(FieldChange(path, old, new, effect_of([(path, steps, old, new)])))
        except InvalidSpec as error:
            changes.append(FieldChange(path, old, new, None, f"Alone it makes no valid design: {error}"))
    return SpecDiff(
        tuple(changes),
        tuple(_interactions(parts, [change.effect for change in changes], effect_of, end.less(start))),
        tuple(_layer_changes(a, b)),
        start,
        end,
        sequence_length,
        context_length,
    )


def _interactions(
    parts: Sequence[_Difference],
    alone: Sequence[Quantities | None],
    effect_of: Callable[[Sequence[_Difference]], Quantities],
    whole: Quantities,
) -> Iterator[Interaction]:
    """What pairs of fields do beyond each alone, and what is left for all of them together."""
    rest = whole
    for effect in alone:
        rest = rest.less(effect or NOTHING)
    if 2 < len(parts) <= MOST_PAIRED:
        for one, other in itertools.combinations(range(len(parts)), 2):
            try:
                together = effect_of([parts[one], parts[other]])
            except InvalidSpec:
                continue
            beyond = together.less(alone[one] or NOTHING).less(alone[other] or NOTHING)
            if beyond != NOTHING:
                yield Interaction((parts[one][0], parts[other][0]), beyond)
                rest = rest.less(beyond)
    if rest != NOTHING:
        yield Interaction(tuple(part[0] for part in parts), rest)


Steps = tuple[str | int, ...]
_Difference = tuple[str, Steps, Any, Any]
"""Path, steps that lead there, value before and after."""


def _differences(before: Any, after: Any, path: str = "", steps: Steps = ()) -> Iterator[_Difference]:
    """Places at which plain data differs: as deep as both sides have the same structure."""
    if before == after:
        return
    both_mappings = isinstance(before, dict) and isinstance(after, dict)
    if both_mappings and before.get("kind") == after.get("kind") and before.keys() == after.keys():
        for key in before:
            yield from _differences(before[key], after[key], f"{path}.{key}" if path else key, (*steps, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(old, new, f"{path}[{index}]", (*steps, index))
    else:
        yield path, steps, before, after


def _with(data: Any, steps: Steps, value: Any) -> Any:
    """A copy of plain data with ``value`` at the place that ``steps`` lead to."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(step, int):
        return [_with(item, rest, value) if index == step else item for index, item in enumerate(data)]
    return {key: _with(item, rest, value) if key == step else item for key, item in data.items()}


def layer_kinds(layer: Layer) -> str:
    """The mixers of a layer: ``attention + moe``."""
    mixers = (layer.sequence_mixer, layer.channel_mixer)
    return " + ".join(mixer.kind for mixer in mixers if mixer is not None)


def _layer_changes(a: ArchitectureSpec, b: ArchitectureSpec) -> Iterator[LayerChange]:
    ours, theirs = [layer for _, layer in a.iterate_layers()], [layer for _, layer in b.iterate_layers()]
    alike: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for index in range(max(len(ours), len(theirs))):
        old = ours[index] if index < len(ours) else None
        new = theirs[index] if index < len(theirs) else None
        if old == new:
            continue
        fields: tuple[str, ...] = ()
        if old is not None and new is not None:
            pairs = _differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
            fields = tuple(path for path, *_ in pairs)
        kinds = ("" if old is None else layer_kinds(old), "" if new is None else layer_kinds(new))
        alike.setdefault((*kinds, fields), []).append(index)
    for (was, became, fields), indices in alike.items():
        yield LayerChange(tuple(indices), was, became, fields)
