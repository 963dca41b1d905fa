"""A small model of the same structure: what a prototype trains in place of the whole.

The kinds of layers and their pattern stay, and so do the ratios that make a design what it is: query heads a KV head,
MLP width over hidden size, experts and experts a token, a window's share of the context. Depth and width shrink
together until the parameters fit the budget; what each field became, and why, is said in ``rules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from planner.components import Component
from planner.components.narrowing import Scale
from planner.errors import UnsupportedPlan
from planner.plans import BYTE_VOCABULARY
from planner.sizing import count_parameters
from planner.spec import ArchitectureSpec, Layer, LayerGroup, LearnedPositions, RotaryPositions, parse_spec

REFERENCE_CONTEXT = 8192
"""The context that windows are a share of, where positions do not name one: the length that models of the size for
which windows are chosen are mostly trained on."""
LEAST_WIDTH = 16
COMFORTABLE_WIDTH = 32
"""Experts are given up before the residual stream becomes narrower than this."""
STEPS = (8, 4, 2)
"""Steps of widths that are tried, the finer where the coarser leave the budget unused."""
ENOUGH = 0.95
"""Share of the budget with which the search for finer steps ends."""
LEAST_FILL = 0.86
"""Share of the budget that counts before the shape does."""


@dataclass(frozen=True, slots=True)
class ScaledSpec:
    """The small model, and how each field came to be."""

    spec: ArchitectureSpec
    rules: list[str]
    parameters: int


_Build = Callable[[int, float, int, int], ArchitectureSpec]
"""From hidden size, share of the depth, divisor of the experts and step of the widths to a model."""


def scale_down(
    spec: ArchitectureSpec, parameter_budget: int, *, vocab_size: int = BYTE_VOCABULARY, sequence_length: int = 256
) -> ScaledSpec:
    """The largest model of the structure of ``spec`` with at most ``parameter_budget`` parameters, embeddings included.

    Raises
    ------
    UnsupportedPlan
        where not even the smallest such model fits, naming the least budget that works.
    """
    whole = spec.model_copy(update={"vocab_size": vocab_size})
    if count_parameters(whole).total <= parameter_budget:
        return _result(spec, whole)
    context = spec.positions.num_positions if isinstance(spec.positions, LearnedPositions) else REFERENCE_CONTEXT
    window = min(1.0, sequence_length / context)

    def build(hidden_size: int, depth: float, divisor: int, step: int) -> ArchitectureSpec:
        scale = Scale(hidden_size / spec.hidden_size, window, divisor, step)
        return _scaled(spec, scale, hidden_size, depth, vocab_size, sequence_length)

    divisors = _expert_divisors(spec)
    depths = _depths(spec)
    narrowest = min(LEAST_WIDTH, spec.hidden_size)
    least = min(count_parameters(build(narrowest, depths[0], divisors[-1], step)).total for step in STEPS)
    if least > parameter_budget:
        raise UnsupportedPlan.of(
            f"The smallest model of this structure has {least:,} parameters, more than {parameter_budget:,}.",
            path="parameter_budget",
            remedy=f"Choose at least {least:,}.",
            code="budget_too_small",
        )
    best: tuple[tuple[float, float], float, ArchitectureSpec] | None = None
    for divisor in divisors:
        for step in STEPS:
            for depth in depths:
                found = _widest(build, spec.hidden_size, narrowest, step, depth, divisor, parameter_budget)
                if found is None:
                    continue
                candidate, total = found
                fill = total / parameter_budget
                # Depth and width shrink alike where they can: a small model neither flat nor thin.
                skew = abs(math.log(depth * spec.hidden_size / candidate.hidden_size))
                score = (min(fill, LEAST_FILL), min(fill, ENOUGH) - 0.05 * skew)
                if best is None or score > best[0]:
                    best = (score, fill, candidate)
            if best is not None and best[1] >= ENOUGH:
                break
        if best is not None and (best[2].hidden_size >= min(COMFORTABLE_WIDTH, spec.hidden_size)):
            break
    if best is None:
        raise AssertionError("the smallest model fits, so some candidate does")
    small = best[2]
    return _result(spec, small if best[1] >= LEAST_FILL else _deepened(small, spec, parameter_budget))


def narrowed(spec: ArchitectureSpec, hidden_size: int, sequence_length: int, window_share: float) -> ScaledSpec:
    """All layers of a design in a stream of ``hidden_size`` channels, with as few experts as its mixtures allow.

    Windows and chunks keep ``window_share`` of their positions, at least 8.
    """
    narrow = min(hidden_size, spec.hidden_size)
    scale = Scale(narrow / spec.hidden_size, window_share, _expert_divisors(spec)[-1], STEPS[-1])
    return _result(spec, _scaled(spec, scale, narrow, 1.0, BYTE_VOCABULARY, sequence_length))


def _deepened(small: ArchitectureSpec, whole: ArchitectureSpec, budget: int) -> ArchitectureSpec:
    """``small`` with single repeats more, in the groups that lost most of theirs, as far as the budget allows."""
    groups = list(small.layer_groups)
    while True:
        shares = [
            (group.repeats / of.repeats, index)
            for index, (group, of) in enumerate(zip(groups, whole.layer_groups, strict=True))
        ]
        for share, index in sorted(shares):
            deeper = list(groups)
            deeper[index] = groups[index].model_copy(update={"repeats": groups[index].repeats + 1})
            candidate = small.model_copy(update={"layer_groups": tuple(deeper)})
            if share < 1 and count_parameters(candidate).total <= budget:
                groups = deeper
                break
        else:
            return small.model_copy(update={"layer_groups": tuple(groups)})


def _widest(
    build: _Build, hidden_size: int, narrowest: int, step: int, depth: float, divisor: int, budget: int
) -> tuple[ArchitectureSpec, int] | None:
    """The widest model of one depth that the budget allows, in steps of ``step``, and its parameters."""
    low, high = 0, (hidden_size - narrowest) // step + 1

    def at(position: int) -> tuple[ArchitectureSpec, int]:
        candidate = build(narrowest + position * step, depth, divisor, step)
        return candidate, count_parameters(candidate).total

    found = at(0)
    if found[1] > budget:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        tried = at(middle)
        if tried[1] <= budget:
            low, found = middle, tried
        else:
            high = middle
    return found


def _depths(spec: ArchitectureSpec) -> list[float]:
    """Shares of the depth to try: every number of repeats of the longest group, thinned out where they are many."""
    longest = max(group.repeats for group in spec.layer_groups)
    repeats = sorted({min(longest, round(1.12**power)) for power in range(200)} & set(range(1, longest + 1)))
    return [count / longest for count in repeats]


def _expert_divisors(spec: ArchitectureSpec) -> list[int]:
    """Powers of two by which the number of experts may be divided, ending where every mixture is at its least."""
    span = max(mixer.expert_span for mixer in _mixers(spec.layer_groups))
    return [2**power for power in range(math.ceil(math.log2(span)) + 1)]


def _mixers(groups: Sequence[LayerGroup]) -> Iterator[Component]:
    """The mixers of every distinct layer."""
    for group in groups:
        for layer in group.layers:
            for mixer in (layer.sequence_mixer, layer.channel_mixer):
                if mixer is not None:
                    yield from (part for _, part in mixer.parts())


def _scaled(
    spec: ArchitectureSpec, scale: Scale, hidden_size: int, depth: float, vocab_size: int, sequence_length: int
) -> ArchitectureSpec:
    groups = tuple(
        LayerGroup.model_construct(
            repeats=max(1, round(group.repeats * depth)),
            layers=tuple(_layer(layer, scale) for layer in group.layers),
        )
        for group in spec.layer_groups
    )
    changed: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "layer_groups": groups,
    }
    if isinstance(spec.positions, LearnedPositions):
        kept = min(spec.positions.num_positions, sequence_length)
        changed["positions"] = spec.positions.model_copy(update={"num_positions": kept})
    if isinstance(spec.positions, RotaryPositions) and spec.positions.scaling is not None:
        # Of layers that rotate, all rotate as many channels where the scaling is a list of them.
        rotated = max(getattr(mixer, "rotary_dim", 0) for mixer in _mixers(groups))
        scaling = spec.positions.scaling.for_channels(rotated)
        changed["positions"] = spec.positions.model_copy(update={"scaling": scaling})
    if spec.embedding_size is not None:
        changed["embedding_size"] = scale.width_of(spec.embedding_size)
    if spec.embedding_scale is not None:
        changed["embedding_scale"] = spec.embedding_scale * math.sqrt(scale.width)
    return spec.model_copy(update=changed)


def _layer(layer: Layer, scale: Scale) -> Layer:
    return layer.model_copy(
        update={
            "sequence_mixer": None if layer.sequence_mixer is None else layer.sequence_mixer.scaled(scale),
            "channel_mixer": None if layer.channel_mixer is None else layer.channel_mixer.scaled(scale),
        }
    )


IN_PROPORTION = "the ratio to the hidden size is kept, in small steps"
_WHY = {
    "vocab_size": "bytes, or the symbols of a task, in place of a trained tokenizer",
    "hidden_size": "the width that the budget allows",
    "embedding_size": IN_PROPORTION,
    "repeats": "depth shrinks with width, at least one whole pattern stays",
    "num_positions": "the prototype's sequence length",
    "embedding_scale": "follows the square root of the hidden size",
    "short_factor": "as many as there are pairs of rotated channels",
    "long_factor": "as many as there are pairs of rotated channels",
}


def _result(before: ArchitectureSpec, after: ArchitectureSpec) -> ScaledSpec:
    name = f"{before.name[:108]} prototype"
    checked = parse_spec({**after.model_dump(mode="json"), "name": name})
    places: dict[tuple[str, str], list[str]] = {}
    for path, old, new in _changes(before.model_dump(mode="json"), checked.model_dump(mode="json")):
        if path != "name":
            places.setdefault((path.rsplit(".", 1)[-1], f"{_plain(old)} → {_plain(new)}"), []).append(path)
    why = dict(_WHY)
    for mixer in _mixers(before.layer_groups):
        why |= dict.fromkeys(mixer.widths, IN_PROPORTION) | mixer.reasons
    rules = []
    for (field, change), paths in places.items():
        more = f" and {len(paths) - 1} more like it" if len(paths) > 1 else ""
        rules.append(f"{paths[0]}{more}: {change} ({why.get(field, 'follows the width')})")
    return ScaledSpec(checked, rules, count_parameters(checked).total)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value):,} values"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _changes(before: object, after: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Fields that differ between two specifications of one structure."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _changes(value, after[key], f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list) and any(isinstance(item, dict) for item in before):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield path, before, after
