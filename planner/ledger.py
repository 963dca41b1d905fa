"""Predictions that were followed by a measurement: the pairs, the planner's error over them, and the nearest ones.

A pair is immutable: the prediction is the one that stood before the measurement. Pairs of one's own come from stored
results; published runs (:mod:`planner.measured`) are predicted today, and say so.

The error of a pair is the prediction's, as a share of what was measured. A group of pairs is told by its median and
its worst, never by a mean that hides both.
"""

from __future__ import annotations

import datetime
import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.hardware import hardware
from planner.measured import TrainingRow, training_rows
from planner.measured.inference import InferenceRow, inference_rows
from planner.measured.predicted import Reading, memory_of, time_of
from planner.measured.rows import day_of
from planner.measured.served import error_of
from planner.presets import Preset, preset, preset_ids
from planner.sizing import size
from planner.spec import ArchitectureSpec

Origin = Literal["own", "published"]
NEAREST = 10
"""Pairs by which the error of an estimate is told."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One quantity of one run, predicted and measured."""

    quantity: str
    """As people read it: ``Peak training memory``."""
    unit: str
    predicted: float
    measured: float
    device: str
    """The device's name: the catalogue's, else as whoever measured wrote it."""
    kinds: frozenset[str]
    """Kinds of components of the model."""
    parameters: int
    origin: Origin
    label: str
    """What was run, in a few words."""
    source: str
    """Repository and path of a published run; a job's id of one's own."""
    when: datetime.date | None
    """The day of the measurement; of a published run the earliest that its source gives, which is no earlier."""
    profile: str = ""
    """The efficiencies, or the profile of a machine, that the prediction was made with."""

    @property
    def error(self) -> float:
        """The prediction's error as a share of what was measured: above 0 where it is too high."""
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else math.inf
        return (self.predicted - self.measured) / self.measured


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """How far the predictions of some pairs are off."""

    name: str
    count: int
    median: float
    """Of the errors' sizes."""
    ninth_decile: float
    """Nine of ten errors are no greater."""
    worst: float
    bias: float
    """Median of the errors with their signs: above 0 where predictions are mostly too high."""

    @classmethod
    def of(cls, name: str, pairs: Sequence[Pair]) -> ErrorSummary:
        """The summary of at least one pair."""
        errors = [pair.error for pair in pairs]
        sizes = sorted(abs(error) for error in errors)
        return cls(
            name,
            len(sizes),
            statistics.median(sizes),
            sizes[math.ceil(0.9 * len(sizes)) - 1],
            sizes[-1],
            statistics.median(errors),
        )


def summarise(pairs: Iterable[Pair], by: Callable[[Pair], Iterable[str]]) -> tuple[ErrorSummary, ...]:
    """Errors by group, the worst median first; a pair may stand in several groups (each component of its model)."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        for name in by(pair):
            groups.setdefault(name, []).append(pair)
    found = [ErrorSummary.of(name, group) for name, group in groups.items()]
    return tuple(sorted(found, key=lambda each: (-each.median, each.name)))


BY: dict[str, Callable[[Pair], Iterable[str]]] = {
    "quantity": lambda pair: (pair.quantity,),
    "device": lambda pair: (pair.device,),
    "component": lambda pair: sorted(pair.kinds),
    "source": lambda pair: ("/".join(pair.source.split("/")[:2]) if pair.origin == "published" else "this store",),
    "month": lambda pair: () if pair.when is None else (f"{pair.when:%Y-%m}",),
}
"""Ways of grouping pairs."""


def exact_quantities(pairs: Iterable[Pair]) -> dict[str, int]:
    """Quantities that were found just as predicted in every pair, and how many pairs that are."""
    known = list(pairs)
    off = {pair.quantity for pair in known if pair.error != 0}
    return dict(Counter(pair.quantity for pair in known if pair.quantity not in off).most_common())


@dataclass(frozen=True, slots=True)
class Quarter:
    """Three months of measurements of one quantity."""

    start: datetime.date
    end: datetime.date
    """Its last day."""
    summary: ErrorSummary


def over_time(pairs: Iterable[Pair]) -> tuple[Quarter, ...]:
    """Errors by the quarter of their measurement, the earliest first; pairs without a day are left out."""
    groups: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        if pair.when is not None:
            groups.setdefault((pair.when.year, (pair.when.month - 1) // 3), []).append(pair)
    found = []
    for (year, quarter), group in sorted(groups.items()):
        following = datetime.date(year + quarter // 3, 3 * ((quarter + 1) % 4) + 1, 1)
        last = following - datetime.timedelta(days=1)
        summary = ErrorSummary.of(f"{year}, quarter {quarter + 1}", group)
        found.append(Quarter(datetime.date(year, 3 * quarter + 1, 1), last, summary))
    return tuple(found)


def kinds_of_spec(spec: ArchitectureSpec) -> frozenset[str]:
    """The kinds of mixers of a model."""
    mixers = (
        mixer
        for group in spec.layer_groups
        for layer in group.layers
        for mixer in (layer.sequence_mixer, layer.channel_mixer)
    )
    return frozenset(mixer.kind for mixer in mixers if mixer is not None)


def nearest(
    pairs: Iterable[Pair], spec: ArchitectureSpec, quantity: str, device: str | None = None, count: int = NEAREST
) -> tuple[Pair, ...]:
    """The pairs of a quantity that are most like a design: its device, then its components, then its size.

    A pair on another device is one step away, a component that only one of both has a step times its share of all that
    either has, and ten times the parameters half a step.
    """
    kinds, parameters = kinds_of_spec(spec), size(spec).parameters.total

    def distance(pair: Pair) -> float:
        elsewhere = 0.0 if device is None or pair.device.lower() == device.lower() else 1.0
        return elsewhere + _unlike(pair, kinds) + _decades(pair, parameters) / 2

    own = [pair for pair in pairs if pair.quantity == quantity]
    return tuple(sorted(own, key=distance)[:count])


def _unlike(pair: Pair, kinds: frozenset[str]) -> float:
    return len(pair.kinds ^ kinds) / max(len(pair.kinds | kinds), 1)


def _decades(pair: Pair, parameters: int) -> float:
    return abs(math.log10(max(pair.parameters, 1) / max(parameters, 1)))


@dataclass(frozen=True, slots=True)
class NearestError:
    """How far the planner is on the runs that are most like a design."""

    quantity: str
    summary: ErrorSummary
    """Of the near pairs; of the least unlike ones where none is near."""
    is_near: bool
    """Whether these have every component of the design, few others, and a size within ten times its own."""
    missing: tuple[str, ...]
    """Components of the design that no measured run of the quantity has."""
    devices: tuple[str, ...]
    """Where these ran, the commonest first."""
    elsewhere: int
    """How many of them ran on other devices than the one that is asked about."""


def nearest_error(
    pairs: Iterable[Pair], spec: ArchitectureSpec, quantity: str, device: str | None = None, count: int = NEAREST
) -> NearestError | None:
    """The error of an estimate, told by its nearest pairs; ``None`` where the quantity was never measured."""
    known = [pair for pair in pairs if pair.quantity == quantity]
    if not known:
        return None
    kinds, parameters = kinds_of_spec(spec), size(spec).parameters.total
    near = [
        pair
        for pair in known
        if pair.kinds >= kinds and _unlike(pair, kinds) <= MOST_UNLIKE and _decades(pair, parameters) <= MOST_DECADES
    ]
    chosen = nearest(near or known, spec, quantity, device, count)
    return NearestError(
        quantity=quantity,
        summary=ErrorSummary.of(quantity, chosen),
        is_near=bool(near),
        missing=tuple(sorted(kinds - frozenset().union(*(pair.kinds for pair in known)))),
        devices=tuple(name for name, _ in Counter(pair.device for pair in chosen).most_common()),
        elsewhere=0 if device is None else sum(pair.device.lower() != device.lower() for pair in chosen),
    )


MOST_UNLIKE, MOST_DECADES = 0.5, 1.0
"""A near pair shares half of all components that it or the design has, and is within ten times the design's size."""


@dataclass(frozen=True, slots=True)
class NearestCount:
    """A known model with a published number of parameters, counted as a design is."""

    preset: Preset
    counted: int
    is_alike: bool
    """Whether it has the design's components."""


def nearest_count(spec: ArchitectureSpec) -> NearestCount:
    """The known model that is most like a design: by its components, then by its size."""
    kinds, parameters = kinds_of_spec(spec), size(spec).parameters.total

    def distance(known: tuple[Preset, frozenset[str], int]) -> float:
        unlike = len(known[1] ^ kinds) / max(len(known[1] | kinds), 1)
        return unlike + abs(math.log10(known[2] / max(parameters, 1))) / 2

    found, its_kinds, counted = min(published_counts(), key=distance)
    return NearestCount(found, counted, its_kinds == kinds)


@functools.cache
def published_counts() -> tuple[tuple[Preset, frozenset[str], int], ...]:
    """The known models whose source states the parameters: each with its kinds of mixers and what is counted."""
    known = (preset(name) for name in preset_ids())
    return tuple((each, kinds_of_spec(each.spec), size(each.spec).parameters.total) for each in known if each.published)


MEMORY, STEP_TIME = "Peak training memory", "Time of a training step"
SERVED = {
    "memory": "Memory of serving", "token": "Time between tokens", "answer": "Time of an answer",
    "prompt": "Time of a prompt",
}  # fmt: skip
"""What the readings of published runs of serving are called."""
MEASURED_AS = {
    "training_memory": MEMORY, "step_time": STEP_TIME, "training_tokens_per_second": STEP_TIME,
    "inference_memory": SERVED["memory"], "inter_token_latency": SERVED["token"], "tokens_per_second": SERVED["token"],
    "time_to_first_token": SERVED["prompt"],
}  # fmt: skip
"""The measured quantity that holds an estimate to account, by the estimate's name in :mod:`planner.explain` and
:mod:`planner.sensitivity`; a rate is held by the time that it is one over."""
COUNTED = (
    "parameters", "active_parameters", "flops", "needed_flops", "training_flops", "needed_training_flops",
    "flops_forward", "flops_training", "flops_per_token", "cache", "weights_memory",
)  # fmt: skip
"""Quantities that are counted and not estimated: a job that measures them finds them to the last one."""


@functools.cache
def published_pairs() -> tuple[Pair, ...]:
    """Every reading of a published run that the planner predicts; what it refuses is counted by :func:`unpredicted`."""
    return tuple(_of_training()) + tuple(_of_serving())


@functools.cache
def unpredicted() -> dict[str, int]:
    """Readings of published training runs that have no prediction, by reason."""
    reasons = Counter(reading.reason for _, reading in _readings() if reading.predicted is None)
    return dict(reasons.most_common())


def _readings() -> Iterator[tuple[str, Reading]]:
    for row in training_rows():
        for quantity, reading in ((MEMORY, memory_of(row)), (STEP_TIME, time_of(row))):
            if reading is not None:
                yield quantity, reading


def _of_training() -> Iterator[Pair]:
    for quantity, reading in _readings():
        if reading.predicted is not None:
            row, unit = reading.row, "bytes" if quantity == MEMORY else "seconds"
            yield _pair(row, quantity, unit, reading.predicted, reading.measured, reading.profile)


def _of_serving() -> Iterator[Pair]:
    for row in inference_rows():
        unit = "bytes" if row.reading == "memory" else "seconds"
        predicted = row.value * (1 + error_of(row))
        yield _pair(row, SERVED[row.reading], unit, predicted, row.value, row.engine)


def _pair(
    row: TrainingRow | InferenceRow, quantity: str, unit: str, predicted: float, measured: float, profile: str
) -> Pair:
    return Pair(
        quantity=quantity,
        unit=unit,
        predicted=predicted,
        measured=measured,
        device=row.gpu if row.plan.hardware is None else hardware(row.plan.hardware).name,
        kinds=kinds_of_spec(row.spec),
        parameters=size(row.spec).parameters.total,
        origin="published",
        label=row.model,
        source=row.source,
        when=day_of(row.as_of),
        profile=profile,
    )
