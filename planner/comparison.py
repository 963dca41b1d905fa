"""Several designs side by side: predicted numbers, measured numbers with their spread, and what was held equal.

A measured difference is called one only beside the spread of at least three seeds on either side: Welch's interval
(Welch 1947, Biometrika 34) of the difference of the means, at 95%, must leave out zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from planner.cache import cache_bytes
from planner.compute import flops
from planner.errors import UnsupportedPlan
from planner.plans import ServingPlan, TrainingPlan
from planner.sizing import size
from planner.spec import ArchitectureSpec

MIN_SEEDS = 3
Unit = Literal["count", "flops", "bytes", "tokens", "seconds", "per_second", "bits", "ratio"]


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One quantity of every design, and its distance from the baseline's."""

    quantity: str
    group: str
    """What it is listed under: ``size``, ``compute``, ``memory`` or ``component``."""
    unit: Unit
    status: str
    values: tuple[float | None, ...]
    """``None`` where the quantity is not modelled for a design; the reason is in ``notes``."""
    absolute: tuple[float | None, ...]
    relative: tuple[float | None, ...]
    """Change against the baseline as a fraction; ``None`` where the baseline is zero or missing."""
    notes: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether any design departs from another."""
        return len(set(self.values)) > 1


def row_of(
    quantity: str,
    group: str,
    unit: Unit,
    status: str,
    values: Sequence[float | None],
    baseline: int,
    notes: Sequence[str] = (),
) -> ComparisonRow:
    """A row with the changes against the design at index ``baseline``."""
    reference = values[baseline]
    absolute: list[float | None] = []
    relative: list[float | None] = []
    for value in values:
        change = value - reference if value is not None and reference is not None else None
        absolute.append(change)
        relative.append(change / reference if change is not None and reference else None)
    return ComparisonRow(quantity, group, unit, status, tuple(values), tuple(absolute), tuple(relative), tuple(notes))


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """The one setting under which all designs are read."""

    context_length: int = 32_768
    batch_size: int = 1
    sequence_length: int = 4096
    weight_format: str = "bf16"
    cache_dtype: str = "bf16"


def compare_specs(
    specs: Sequence[ArchitectureSpec], settings: ComparisonSettings, baseline: int = 0
) -> list[ComparisonRow]:
    """The predicted numbers of each design, with the changes against the baseline."""
    from planner.serving import estimate_inference
    from planner.training import estimate_training

    sizes = [size(spec).parameters for spec in specs]
    length, batch = settings.sequence_length, settings.batch_size
    forward = [flops(spec, length) for spec in specs]
    rows = [
        row_of("Parameters", "size", "count", "exact", [s.total for s in sizes], baseline),
        row_of("Active a token", "size", "count", "exact", [s.active for s in sizes], baseline),
        row_of("Layers", "size", "count", "exact", [spec.num_layers for spec in specs], baseline),
        row_of(
            f"FLOPs a token, forward at {length:,}",
            "compute",
            "flops",
            "exact",
            [f.total / length for f in forward],
            baseline,
        ),
        row_of(
            f"FLOPs a token, training at {length:,}",
            "compute",
            "flops",
            "exact",
            [3 * f.total / length for f in forward],
            baseline,
        ),
    ]
    for context in sorted({settings.context_length, 4 * settings.context_length}):
        held = [cache_bytes(spec, context, batch, settings.cache_dtype) for spec in specs]
        rows.append(row_of(f"Cache at {context:,}", "memory", "bytes", "exact", held, baseline))
    serving = ServingPlan(
        weight_format=settings.weight_format,
        cache_dtype=settings.cache_dtype,
        context_length=settings.context_length,
        batch_size=batch,
    )
    inference, notes = _where_modelled(specs, lambda spec: estimate_inference(spec, serving).memory.total_bytes)
    rows.append(row_of("Inference memory", "memory", "bytes", "modelled", inference, baseline, notes))
    training = TrainingPlan(sequence_length=length, precision="bf16_mixed")
    needed, notes = _where_modelled(specs, lambda spec: estimate_training(spec, training).memory.total_bytes)
    rows.append(row_of("Training memory, one device", "memory", "bytes", "modelled", needed, baseline, notes))
    components = sorted({name for s in sizes for name in s.by_component})
    for name in components:
        counts = [s.by_component.get(name, 0) for s in sizes]
        rows.append(row_of(name.replace("_", " "), "component", "count", "exact", counts, baseline))
    return rows


def _where_modelled(specs: Sequence[ArchitectureSpec], estimate: Any) -> tuple[list[float | None], list[str]]:
    values: list[float | None] = []
    notes: list[str] = []
    for spec in specs:
        try:
            values.append(estimate(spec))
        except UnsupportedPlan as error:
            values.append(None)
            notes.append(f"{spec.name}: {error}")
    return values, notes


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one quantity of one design."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; ``None`` of fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Difference:
    """A design's mean against the baseline's, and whether the seeds' spread allows to speak of a difference."""

    mean: float
    low: float | None
    high: float | None
    verdict: Literal["higher", "lower", "within the spread", "too few seeds"]

    @property
    def text(self) -> str:
        """The verdict for people."""
        if self.verdict == "too few seeds":
            return f"no verdict: fewer than {MIN_SEEDS} seeds"
        return self.verdict


def difference(baseline: Spread, other: Spread, confidence: float = 0.95) -> Difference:
    """Welch's comparison of two sets of repeated measurements; no verdict below three on either side."""
    mean = other.mean - baseline.mean
    counts = (len(baseline.values), len(other.values))
    if min(counts) < MIN_SEEDS:
        return Difference(mean, None, None, "too few seeds")
    shares = [statistics.variance(s.values) / len(s.values) for s in (baseline, other)]
    error = math.sqrt(sum(shares))
    if error == 0:
        low = high = mean
    else:
        from scipy import stats

        freedom = sum(shares) ** 2 / sum(
            share**2 / (count - 1) for share, count in zip(shares, counts, strict=True) if share
        )
        half_width = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
        low, high = mean - half_width, mean + half_width
    verdict: Literal["higher", "lower", "within the spread"] = "within the spread"
    if low > 0:
        verdict = "higher"
    elif high < 0:
        verdict = "lower"
    return Difference(mean, low, high, verdict)


@dataclass(frozen=True, slots=True)
class HeldEqual:
    """Whether something was the same for all designs under comparison."""

    what: str
    equal: bool
    detail: str


def held_equal(quantities: Mapping[str, Sequence[float | str | None]], tolerance: float = 0.02) -> list[HeldEqual]:
    """Which of the given quantities are equal over all designs: numbers within ``tolerance`` of the largest."""
    verdicts = []
    for what, values in quantities.items():
        known = [value for value in values if value is not None]
        if len(known) < len(values) or not known:
            verdicts.append(HeldEqual(what, False, "not known for every design"))
            continue
        if any(isinstance(value, str) for value in known):
            distinct = sorted({str(value) for value in known})
            verdicts.append(HeldEqual(what, len(distinct) == 1, "; ".join(distinct)))
            continue
        numbers = [float(value) for value in known]
        top, bottom = max(numbers), min(numbers)
        apart = (top - bottom) / abs(top) if top else 0.0
        detail = "the same" if apart == 0 else f"{apart:.1%} apart"
        verdicts.append(HeldEqual(what, apart <= tolerance, detail))
    return verdicts
