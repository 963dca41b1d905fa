"""Attention's cost: time and peak memory of one layer, forward and backward, at doubling contexts, computed in several
ways, and the contexts at which one way becomes cheaper than another.

All ways run in turns within each repetition, and are compared as ratios of one turn: a machine that becomes slower
slows all of them. A crossover is looked for between two measured contexts at which the ratio's interval stands on
different sides of 1: the bracket is halved by further measurements, then the ratio is interpolated in logarithms.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planner.activations import ACTIVATION_TYPES, saved_bytes
from planner.components import Attention
from planner.mask_blocks import block_map
from planner.probes import AttentionCostPlan, attention_layer, held_scores_bytes, narrowed_layer
from planner.spec import ArchitectureSpec
from runners.environment import default_device, describe
from runners.events import Event, Log, Metric, Progress, Result
from runners.jobs.base import JobContext
from runners.jobs.fitting import free_bytes, refuse_what_does_not_fit
from runners.jobs.verify import prediction
from runners.models import Kernels, build
from runners.models.block_sparse import BLOCK_SIZE
from runners.training.peak import peak_bytes
from runners.training.timing import median_interval

WAYS: dict[str, Kernels] = {"eager": "reference", "sdpa": "eager", "block_sparse": "block_sparse"}
"""Names of the ways, as results have them, and the kernels that they build the layer with."""
FUSED, RECOMPUTED = "sdpa", "recomputed"
"""Scores that are changed before the softmax are computed plainly and once more in the backward pass: no kernel of
PyTorch takes them."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GROWTH = 4.0
"""Time and memory at twice the context, at the most: both are of the square of scores."""
MEMORY_SHARE = 0.6
"""Share of the free memory that a call may take."""
LOADED_SHARE = 0.5
"""Load before the job, a core, from which on times are said to have been taken beside other work."""
HALVINGS = 3
LEAST_STEP = 32
"""Contexts that are nearer to each other are not told apart."""
WARMUPS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One way at one context; the seconds of each repetition, in turn with those of the other ways."""

    seconds: list[float]
    peak: int

    @property
    def median(self) -> float:
        """Median of the repetitions."""
        return statistics.median(self.seconds)


Point = dict[str, Measured]
"""By way, what one context gave."""


def run(spec: ArchitectureSpec, plan: AttentionCostPlan, context: JobContext) -> Iterator[Event]:
    """Measure every way at every context, then look for the crossovers."""
    index, _ = attention_layer(spec, plan)
    scaled = narrowed_layer(spec, index, plan)
    device = default_device()
    needed = held_scores_bytes(scaled.spec, plan, plan.first_context)
    refuse_what_does_not_fit(needed, device, "first_context", "choose a shorter one")
    dtype = DTYPES[plan.precision]
    mixer = scaled.spec.layer_groups[0].layers[0].sequence_mixer
    assert isinstance(mixer, Attention)
    environment = describe(device)
    loaded = (environment["load_before"] or 0) > LOADED_SHARE * environment["cores"]
    if loaded:
        yield Log(
            f"other work runs on this machine (load {environment['load_before']}): ratios hold, times less", "warning"
        )
    layers: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    for way, kernels in WAYS.items():
        decoder: Any = build(scaled.spec, device=device, dtype=dtype, kernels=kernels)
        layer = decoder.layers[0].sequence_mixer
        if way == FUSED and not layer.is_simple:
            way = RECOMPUTED
        reason = None if way != "block_sparse" else why_not_by_blocks(layer)
        if reason is None:
            layers[way] = layer
        else:
            left_out[way] = reason
            yield Log(f"{way}: {reason}")
    yield Log(
        f"layer {index}: {mixer.pattern.words()}; {mixer.describe()}, {plan.precision} on {describe(device)['device']}"
    )
    meter = Meter(layers, scaled.spec.hidden_size, plan, device, dtype)
    points: dict[int, Point] = {}
    contexts = plan.contexts
    for done, length in enumerate(contexts):
        for way, reason in meter.too_much(length, points).items():
            if way not in left_out:
                left_out[way] = reason
                yield Log(f"{way}: {reason}", "warning")
        ways = [way for way in layers if way not in left_out]
        if not ways:
            break
        points[length] = meter.measure(length, ways)
        yield from _said(length, points[length])
        yield Progress(done + 1, len(contexts) + 1, "contexts", f"· {length:,} positions")
    crossovers = []
    for first, second in pairs_of(list(layers)):
        found = meter.crossover(first, second, points)
        found["words"] = crossover_text(found)
        crossovers.append(found)
        yield Log(found["words"])
    yield Progress(len(contexts) + 1, len(contexts) + 1, "contexts")
    hidden = scaled.spec.hidden_size
    fused = FUSED if FUSED in layers else RECOMPUTED
    values = {
        "layer": index,
        "mixer": mixer.pattern.words(),
        "describe": mixer.describe(),
        "precision": plan.precision,
        "batch_size": plan.batch_size,
        "hidden_size": hidden,
        "contexts": [_context(length, points[length], mixer) for length in sorted(points)],
        "ways": list(layers),
        "loaded": loaded,
        "left_out": left_out,
        "crossovers": crossovers,
        "rows": [
            _kept_row(fused, layers[fused], mixer, hidden, length, plan, device, dtype)
            for length in contexts[:2]
            if length in points
        ],
        "rules": scaled.rules,
        "spec": scaled.spec.to_dict(),
    }
    yield Result("attention_cost", values, environment)


def why_not_by_blocks(layer: Any) -> str | None:
    """Why a layer is not computed block by block, though it was asked for; ``None`` where it is."""
    if layer.component.pattern.is_causal:
        return "left out: the mask hides nothing but what comes later"
    if not layer.is_simple:
        return "left out: sinks, bounds or biases of the scores need the plain way"
    return None


def pairs_of(ways: Sequence[str]) -> list[tuple[str, str]]:
    """Each way with each later one."""
    return [(first, second) for place, first in enumerate(ways) for second in ways[place + 1 :]]


class Meter:
    """Runs the layers, and knows what was measured."""

    def __init__(
        self, layers: dict[str, nn.Module], hidden_size: int, plan: AttentionCostPlan, device: str, dtype: torch.dtype
    ) -> None:
        self.layers, self.hidden_size, self.plan, self.device, self.dtype = layers, hidden_size, plan, device, dtype

    def call(self, way: str, length: int) -> Callable[[], None]:
        """One forward and backward pass over ``length`` positions."""
        layer = self.layers[way]
        generator = torch.Generator().manual_seed(length)
        shape = (self.plan.batch_size, length, self.hidden_size)
        given = torch.randn(shape, generator=generator).to(self.device, self.dtype).requires_grad_()
        gradient = torch.randn(shape, generator=generator).to(self.device, self.dtype)

        def once() -> None:
            layer(given).backward(gradient)
            given.grad = None
            layer.zero_grad(set_to_none=True)

        return once

    def measure(self, length: int, ways: Sequence[str]) -> Point:
        """Peak memory of each way, then the repetitions in turns, each time beginning with another way."""
        calls = {way: self.call(way, length) for way in ways}
        peaks = {}
        for way, call in calls.items():
            for _ in range(WARMUPS - 1):
                call()
            peaks[way] = peak_bytes(call, self.device)  # the last warm-up: the profiler takes time
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(self.plan.repetitions):
            for place in range(len(ways)):
                way = ways[(turn + place) % len(ways)]
                seconds[way].append(self._timed(calls[way]))
        return {way: Measured(seconds[way], peaks[way]) for way in ways}

    def _timed(self, call: Callable[[], None]) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    def too_much(self, length: int, points: dict[int, Point]) -> dict[str, str]:
        """The ways that would take too long or too much memory at a context, as far as the last one tells."""
        if not points:
            return {}
        last = max(points)
        growth = max(1.0, (length / last) ** math.log2(GROWTH))
        free = free_bytes(self.device)
        found = {}
        for way, measured in points[last].items():
            seconds, memory = measured.median * growth, measured.peak * growth
            if seconds > self.plan.seconds_limit:
                found[way] = (
                    f"left out from {length:,} positions on: a pass would take up to {seconds:.1f} s, and the limit is "
                    f"{self.plan.seconds_limit:g} s"
                )
            elif memory > MEMORY_SHARE * free:
                found[way] = (
                    f"left out from {length:,} positions on: a pass would take up to {memory / 2**30:.1f} GiB, and "
                    f"{free / 2**30:.1f} GiB are free"
                )
        return found

    def crossover(self, first: str, second: str, points: dict[int, Point]) -> dict[str, Any]:
        """Where ``second`` becomes faster than ``first``, or the other way; ``points`` receives what is measured.

        A context counts for a side only where the ratio's whole interval stands on it.
        """
        shared = [length for length in sorted(points) if {first, second} <= points[length].keys()]
        found: dict[str, Any] = {"first": first, "second": second, "context": None, "low": None, "high": None}
        found |= {"faster": None, "since": None, "how": None}
        ratios = {length: ratio(points[length], first, second) for length in shared}
        sides = {length: side_of(ratios[length]) for length in shared}
        last = sides[shared[-1]] if shared else 0
        if not last:
            return found
        found["faster"] = second if last > 0 else first
        others = [length for length in shared if sides[length] == -last]
        if not others:
            return found | {"since": min(length for length in shared if sides[length] == last)}
        low = others[-1]
        high = min(length for length in shared if length > low and sides[length] == last)
        bracket = low, high
        for _ in range(HALVINGS):
            middle = LEAST_STEP * round(math.sqrt(low * high) / LEAST_STEP)
            if not low < middle < high:
                break
            if not {first, second} <= points.get(middle, {}).keys():
                points[middle] = points.get(middle, {}) | self.measure(middle, [first, second])
            ratios[middle] = ratio(points[middle], first, second)
            side = side_of(ratios[middle])
            if side == 0:  # too near to be told apart: further halvings would be no surer
                break
            low, high = (low, middle) if side == last else (middle, high)
        how = f"halving {bracket[0]:,} to {bracket[1]:,} up to {HALVINGS} times, then interpolating in logarithms"
        medians = {length: found[0] for length, found in sorted(ratios.items()) if low <= length <= high}
        at = where_one(medians)
        return found | {"context": at, "low": low, "high": high, "how": how}


def ratio(point: Point, first: str, second: str) -> tuple[float, float, float]:
    """Median of the first way's time over the second's, turn by turn, and its 95% interval."""
    ratios = [a / b for a, b in zip(point[first].seconds, point[second].seconds, strict=True)]
    low, high = median_interval(ratios)
    return statistics.median(ratios), low, high


def side_of(found: tuple[float, float, float]) -> int:
    """1 where a ratio's whole interval lies above 1, -1 where below, 0 where 1 is in it."""
    _, low, high = found
    return 1 if low > 1 else -1 if high < 1 else 0


def where_one(medians: dict[int, float]) -> float:
    """The context at which a ratio is 1 between the last two neighbours on different sides of it.

    Between them its logarithm is a line in that of the context.
    """
    low, high = [pair for pair in itertools.pairwise(medians) if (medians[pair[0]] < 1) != (medians[pair[1]] < 1)][-1]
    below, above = math.log(medians[low]), math.log(medians[high])
    return float(low * (high / low) ** (below / (below - above)))


def crossover_text(found: dict[str, Any]) -> str:
    """A crossover in words."""
    first, second = found["first"], found["second"]
    if found["context"] is not None:
        return (
            f"{found['faster']} is the faster of {first} and {second} from about {found['context']:,.0f} "
            f"positions on ({found['low']:,} to {found['high']:,})"
        )
    if found["faster"] is not None:
        return f"{found['faster']} is the faster of {first} and {second} from {found['since']:,} positions on at least"
    return f"{first} and {second} cannot be told apart at the longest context that both reached"


def _said(length: int, point: Point) -> Iterator[Event]:
    for way, measured in point.items():
        yield Metric(f"{way}_seconds", length, measured.median)
        yield Metric(f"{way}_peak_bytes", length, measured.peak)
    figures = ", ".join(f"{way} {m.median * 1e3:.1f} ms, {m.peak / 2**20:.1f} MiB" for way, m in point.items())
    yield Log(f"{length:,} positions: {figures}")


def _context(length: int, point: Point, mixer: Attention) -> dict[str, Any]:
    pairs = next(op for op in mixer.operations(1, length, 1) if op.name == "scores")
    return {
        "context": length,
        "density": pairs.needed_flops / pairs.flops,
        "block_density": block_map(mixer.pattern, length, BLOCK_SIZE).density,
        "ways": {
            way: {
                "median_seconds": measured.median,
                "low_seconds": median_interval(measured.seconds)[0],
                "high_seconds": median_interval(measured.seconds)[1],
                "repetitions": len(measured.seconds),
                "peak_bytes": measured.peak,
            }
            for way, measured in point.items()
        },
    }


def _kept_row(
    way: str,
    layer: nn.Module,
    mixer: Attention,
    hidden_size: int,
    length: int,
    plan: AttentionCostPlan,
    device: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What a forward pass keeps for the backward pass: the planner's list beside autograd's own."""
    own = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    given = torch.randn(plan.batch_size, length, hidden_size, device=device, dtype=dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(given)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    types = ACTIVATION_TYPES[plan.precision]
    listed = mixer.saved_activations(hidden_size, length, plan.batch_size)
    predicted = sum(saved_bytes(saved, types) for saved in listed)
    how = f"{way} at {length:,} positions: tensors that autograd keeps, weights apart; predicted: the planner's list"
    return prediction("Kept for the backward pass", predicted, measured, "bytes", how)
