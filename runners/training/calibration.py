"""Measures a machine for :mod:`planner.calibration`: matrices by size, what components take beside them, and the rest.

A component is timed in models of five layers and of one that are otherwise the same: the difference, over four, is a
layer. In a very narrow one what is left is its launches; in two wider ones, at two lengths of as many tokens, what its
matrices and launches leave is told apart into bytes and FLOPs between tokens by least squares without negative terms.
Repetitions of the two models take turns, so that a machine that slows down slows both.

A GPU works through a queue that the host fills. There the two are timed apart: the host by how long it takes to queue a
pass, the device by its own clock while it has the whole pass before it. On a CPU both are the one time that passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F

from planner.calibration import (
    PHASES,
    Calibration,
    KindRates,
    MatrixRates,
    OuterRates,
    Phase,
    PhaseRates,
    Precision,
    PrecisionRates,
    cached_bytes,
    kept_bytes,
    kinds_within,
    matrix_seconds,
)
from planner.components import Component
from planner.matrices import between_tokens
from planner.presets import preset, preset_ids
from planner.prototype import narrowed
from planner.spec import ArchitectureSpec, Layer, LayerGroup, NoPositions
from runners.environment import default_device, processor_name
from runners.models import Decoder, build
from runners.models.decoder import next_tokens

SECONDS_EACH = 0.02
CYCLES_PER_SECOND = 2e9
"""At least those of a GPU's clock: it is given to wait in cycles."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shapes:
    """What is measured on a kind of device; large enough there that the device has work to do."""

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    """Of square matrices."""
    most_flops: float
    """Larger multiplications take the rate of the next smaller size."""
    cold_bytes: int
    """Matrices that take turns are so many bytes together, and no more than ``MOST_MATRICES``."""
    widths: tuple[int, ...]
    many: tuple[tuple[int, int], ...]
    """Batch and length of the two passes of each of these widths."""
    contexts: tuple[int, ...]
    copies: tuple[int, ...]
    """Bytes."""
    lengths: tuple[int, ...]
    """Of attention."""
    optimizer: tuple[int, int]
    """How many square matrices of which size it steps."""


CPU = Shapes(
    rows=(1, 4, 16, 64, 256, 1024, 4096),
    sizes=(32, 64, 128, 256, 512, 1024, 2048),
    most_flops=6e9,
    cold_bytes=2**25,
    widths=(96, 256),
    many=((4, 64), (1, 256)),
    contexts=(64, 256),
    copies=(2**16, 2**20, 2**24, 2**27),
    lengths=(128, 512, 2048),
    optimizer=(16, 512),
)
GPU = Shapes(
    rows=(1, 4, 16, 64, 256, 1024, 4096, 16_384),
    sizes=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
    most_flops=1.2e12,
    cold_bytes=2**28,
    widths=(512, 2048),
    many=((4, 512), (1, 2048)),
    contexts=(1024, 8192),
    copies=(2**20, 2**24, 2**28, 2**31),
    lengths=(512, 2048, 8192),
    optimizer=(32, 2048),
)
MOST_MATRICES = 512
NARROW, FEW = 32, (1, 16)
"""Channels, and batch and length, of what is measured for its launches."""
VOCABULARY, LARGE_VOCABULARY = 256, 8192
LAYERS = 5
TYPICAL = ("llama-2-7b", "mixtral-8x7b", "deepseek-v2", "mamba-2.8b", "mamba2-2.7b")
"""Known models whose components stand for their kinds; of other kinds the first model that has one."""
REPETITIONS = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What was measured last, of how much."""

    done: int
    total: int
    message: str


def measure(precisions: Sequence[Precision], kinds: Sequence[str] | None = None) -> Iterator[Step | Calibration]:
    """Steps as they are done, and the calibration at the end; ``kinds`` absent: of every component there is."""
    device = default_device()
    shapes = _shapes(device)
    examples = {kind: example for kind, example in _examples() if kinds is None or kind in kinds}
    total = len(precisions) * (len(PHASES) * (len(examples) + 1) + 1)
    done = 0
    found: dict[Precision, PrecisionRates] = {}
    for precision in precisions:
        yield Step(done, total, f"{precision}: matrices")
        partial = _matrix_tables(device, precision)
        done += 1
        phases: dict[Phase, PhaseRates] = {}
        for phase in PHASES:
            yield Step(done, total, f"{precision}, {phase}: outside the layers")
            outer = _outer(device, precision, phase, partial)
            done += 1
            rates = {}
            for kind, (spec, layer) in examples.items():
                yield Step(done, total, f"{precision}, {phase}: {kind}")
                rates[kind] = _kind(device, precision, phase, spec, layer, partial)
                done += 1
            phases[phase] = PhaseRates(kinds=rates, outer=outer)
        found[precision] = partial.model_copy(update={"phases": phases})
    yield Calibration(
        device_name=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        threads=torch.get_num_threads(),
        versions={"torch": torch.__version__},
        measured_at=datetime.datetime.now(datetime.UTC),
        is_queued=_is_queued(device),
        launch_seconds=_launch(device),
        copy_bytes_per_second=_copies(device),
        attention_flops_per_second=_attention(device),
        optimizer_seconds_per_parameter=_optimizer(device, *shapes.optimizer),
        optimizer_launch_seconds=_optimizer_launch(device),
        precisions=found,
    )


# --- single operators ---


Clock = Callable[[Callable[[], object], str, float], float]
"""How long a call takes on a device, by one of the three below."""


def _shapes(device: str) -> Shapes:
    return GPU if _is_queued(device) else CPU


def _is_queued(device: str) -> bool:
    return device == "cuda"


def _seconds(call: Callable[[], object], device: str, for_seconds: float = SECONDS_EACH) -> float:
    """Median of the device's time of one call over a short while, of at least three."""
    host = _host_seconds(call, device)
    times: list[float] = []
    deadline = time.perf_counter() + for_seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        times.append(_device_seconds(call, device, host))
    return statistics.median(times)


def _elapsed(call: Callable[[], object], device: str, host: float = 0.0) -> float:
    """What passes until the result is there."""
    started = time.perf_counter()
    call()
    if _is_queued(device):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _host_seconds(call: Callable[[], object], device: str, host: float = 0.0) -> float:
    """What the host takes to queue the work; on a CPU, to do it."""
    if _is_queued(device):
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _device_seconds(call: Callable[[], object], device: str, host: float) -> float:
    """What the device takes for a call that is queued whole before it starts; on a CPU, what passes.

    The device is given something to wait with, longer than the ``host`` seconds in which the call is queued.
    """
    if not _is_queued(device):
        return _elapsed(call, device)
    torch.cuda.synchronize()
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(1.5 * host * CYCLES_PER_SECOND) + 20_000)
    started.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return float(started.elapsed_time(ended)) / 1e3


def _under(precision: Precision, device: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16) if precision == "bf16_autocast" else contextlib.nullcontext()


def _matrix_tables(device: str, precision: Precision) -> PrecisionRates:
    """Rates forward and backward; on a CPU the time of the smallest product of all, its launch, is taken off."""
    shapes = _shapes(device)
    forward, backward = (np.full((len(shapes.rows), len(shapes.sizes)), np.nan) for _ in range(2))
    idle = (0.0, 0.0) if _is_queued(device) else _linear_seconds(device, precision, 1, 8)
    for line, rows in enumerate(shapes.rows):
        for column, size in enumerate(shapes.sizes):
            flops = 2.0 * rows * size * size
            if flops > shapes.most_flops:
                forward[line, column], backward[line, column] = forward[line, column - 1], backward[line, column - 1]
                continue
            there, back = _linear_seconds(device, precision, rows, size)
            forward[line, column] = flops / max(there - idle[0], there / 10)
            backward[line, column] = 2 * flops / max(back - idle[1], back / 10)
    tables = [
        MatrixRates(
            rows=shapes.rows, sizes=shapes.sizes, flops_per_second=tuple(tuple(line) for line in table.tolist())
        )
        for table in (forward, backward)
    ]
    return PrecisionRates(forward=tables[0], backward=tables[1], expert_seconds=idle, phases={})


def _linear_seconds(device: str, precision: Precision, rows: int, size: int) -> tuple[float, float]:
    """Seconds of a product, and of its backward pass.

    Matrices take turns, so many that none is still in a near cache when its turn comes again: as in a model, whose
    layers lie between two uses of one.
    """
    count = max(2, min(MOST_MATRICES, _shapes(device).cold_bytes // (4 * size * size)))
    pairs = [
        (
            torch.randn(rows, size, device=device, requires_grad=True),
            torch.randn(size, size, device=device, requires_grad=True),
        )
        for _ in range(count)
    ]
    turns = itertools.cycle(pairs)

    @torch.no_grad()
    def product() -> object:
        x, weight = next(turns)
        with _under(precision, device):  # each time, since it keeps what it casts until it ends
            return F.linear(x, weight)

    there = _seconds(product, device)
    with _under(precision, device):
        made = [(F.linear(x, weight), x, weight) for x, weight in pairs]
    results = itertools.cycle(made)
    gradient = torch.ones_like(made[0][0])

    def gradients() -> object:
        y, x, weight = next(results)
        return torch.autograd.grad(y, (x, weight), gradient, retain_graph=True)

    return there, _seconds(gradients, device)


def _launch(device: str) -> float:
    one = torch.ones(1, device=device)
    return statistics.median(_host_seconds(lambda: one.add_(1), device) for _ in range(101))


def _copies(device: str) -> dict[str, float]:
    """Bytes a second of copies within the caches and beyond."""
    found = {}
    for size in _shapes(device).copies:
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        found[str(size)] = 2 * size / _seconds(functools.partial(target.copy_, source), device)
    return found


@torch.no_grad()
def _attention(device: str) -> dict[str, float]:
    """FLOPs a second of fused causal attention of 4 heads of 64 channels, half of the square counted."""
    found = {}
    for length in _shapes(device).lengths:
        query, key, value = (torch.randn(1, 4, length, 64, device=device) for _ in range(3))
        flops = 4 * 4 * 64 * length * (length + 1) / 2
        attend = functools.partial(F.scaled_dot_product_attention, query, key, value, is_causal=True)
        found[str(length)] = flops / _seconds(attend, device)
    return found


def _optimizer(device: str, count: int, size: int) -> float:
    """Seconds of the device for each parameter."""
    return _seconds(_optimizer_step(device, count, size), device, 0.1) / (count * size * size)


def _optimizer_launch(device: str) -> float:
    """Seconds of the host for each tensor, where a device does the work; on a CPU they are within the work."""
    if not _is_queued(device):
        return 0.0
    count = 128
    step = _optimizer_step(device, count, 8)
    step()
    return statistics.median(_host_seconds(step, device) for _ in range(REPETITIONS)) / count


def _optimizer_step(device: str, count: int, size: int) -> Callable[[], object]:
    parameters = [torch.nn.Parameter(torch.randn(size, size, device=device)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True).step


# --- models ---


def _examples() -> Iterator[tuple[str, tuple[ArchitectureSpec, Layer]]]:
    """A layer of each kind of component that a known model has, with the model narrowed to the wide width."""
    seen: set[str] = set()
    for name in dict.fromkeys((*TYPICAL, *preset_ids())):
        whole = preset(name).spec
        for layer in dict.fromkeys(layer for group in whole.layer_groups for layer in group.layers):
            for slot in ("sequence_mixer", "channel_mixer"):
                mixer = getattr(layer, slot)
                if mixer is None or getattr(mixer, "shares_key_values", False):
                    continue
                parts = list(kinds_within(mixer))
                if len(parts) == 1 and parts[0][0] not in seen:
                    seen.add(parts[0][0])
                    yield parts[0][0], (whole, layer.model_copy(update={_other(slot): None, "residual": "sequential"}))


def _other(slot: str) -> str:
    return "channel_mixer" if slot == "sequence_mixer" else "sequence_mixer"


def _model(spec: ArchitectureSpec, layer: Layer, width: int, layers: int) -> tuple[ArchitectureSpec, Layer]:
    """``layers`` layers of one mixer in a stream of ``width`` channels."""
    one = spec.model_copy(update={"layer_groups": (LayerGroup(repeats=1, layers=(layer,)),)})
    small = narrowed(one, width, 512, 1.0).spec
    narrow = small.layer_groups[0].layers[0]
    made = small.model_copy(update={"layer_groups": (LayerGroup(repeats=layers, layers=(narrow,)),)})
    return made, narrow


def _kind(
    device: str, precision: Precision, phase: Phase, spec: ArchitectureSpec, layer: Layer, rates: PrecisionRates
) -> KindRates:
    """What a layer of one mixer takes beside its matrices."""
    _, thin = _model(spec, layer, NARROW, 1)
    slot = "sequence_mixer" if layer.sequence_mixer is not None else "channel_mixer"
    is_sequence = slot == "sequence_mixer"
    shapes = _shapes(device)
    passes = [(1, length) for length in shapes.contexts] if phase == "decode" else list(shapes.many)
    host, least = _layer_seconds(device, precision, phase, spec, layer, NARROW, *FEW)
    least = max(0.0, least - _matrices(getattr(thin, slot), NARROW, FEW, rates, phase))
    terms, rest = [], []
    for width in shapes.widths:
        wide, thick = _model(spec, layer, width, 1)
        mixer: Component = getattr(thick, slot)
        for batch, length in passes:
            _, seconds = _layer_seconds(device, precision, phase, spec, layer, width, batch, length)
            seconds -= least + _matrices(mixer, width, (batch, length), rates, phase)
            if phase == "decode":
                terms.append((cached_bytes(mixer, width, length, batch), 0.0))
            else:
                kept = kept_bytes(wide, thick, length, batch, precision)["sequence" if is_sequence else "channel"]
                flops = float(between_tokens(mixer, width, length, batch)) if is_sequence else 0.0
                terms.append((kept, flops))
            rest.append(max(seconds, 0.0))
    per_byte, per_flop = _two_terms(terms, rest)
    if _is_queued(device):
        return KindRates(
            launch_seconds=max(0.0, host), least_seconds=least, seconds_per_byte=per_byte, seconds_per_flop=per_flop
        )
    return KindRates(launch_seconds=least, seconds_per_byte=per_byte, seconds_per_flop=per_flop)


def _matrices(mixer: Component, width: int, shape: tuple[int, int], rates: PrecisionRates, phase: Phase) -> float:
    tokens = shape[0] * (1 if phase == "decode" else shape[1])
    return matrix_seconds(mixer, width, tokens, rates, phase)


def _two_terms(terms: list[tuple[float, float]], seconds: list[float]) -> tuple[float, float]:
    """Seconds for each byte and each FLOP, none below zero, that add up to what is left."""
    # Each shape counts alike, whether it takes long or not.
    weights = 1 / np.maximum(np.array(seconds), max(seconds) / 100 or 1.0)
    table = np.array(terms) * weights[:, None]
    scale = np.maximum(table.max(axis=0), 1e-30)
    found, _ = scipy.optimize.nnls(table / scale, np.array(seconds) * weights)
    return float(found[0] / scale[0]), float(found[1] / scale[1])


def _layer_seconds(
    device: str, precision: Precision, phase: Phase, spec: ArchitectureSpec, layer: Layer, width: int, batch: int,
    length: int,
) -> tuple[float, float]:  # fmt: skip
    """Seconds of the host and of the device for a layer: the difference between a model of several and one of one."""
    calls = []
    for layers in (1, LAYERS):
        small, _ = _model(spec, layer, width, layers)
        calls.append(_pass(build(small, device=device), phase, batch, length, device, precision))
    found = []
    for clock in (_host_seconds, _device_seconds) if _is_queued(device) else (_device_seconds,):
        one, several = _alternately(calls, device, clock)
        found.append((several - one) / (LAYERS - 1))
    return found[0], found[-1]


def _alternately(calls: list[Callable[[], object]], device: str, clock: Clock) -> list[float]:
    """Medians of calls that take turns."""
    for call in calls:
        call()
        call()  # what is allocated for the first time takes the host long
    hosts = [_host_seconds(call, device) for call in calls]
    times = [[clock(call, device, host) for call, host in zip(calls, hosts, strict=True)] for _ in range(REPETITIONS)]
    return [statistics.median(each) for each in zip(*times, strict=True)]


def _pass(
    model: Decoder, phase: Phase, batch: int, length: int, device: str, precision: Precision
) -> Callable[[], object]:
    """One pass as a benchmark runs it."""
    tokens = torch.randint(0, model.spec.vocab_size, (batch, length), device=device)
    if phase == "training":

        def training() -> object:
            model.zero_grad(set_to_none=True)
            with _under(precision, device):
                loss = model.loss(tokens, next_tokens(tokens))
            loss.backward()
            return loss

        return training
    if phase == "prefill":

        @torch.no_grad()
        def prefill() -> object:
            with _under(precision, device):
                return model(tokens, cache=model.new_cache(batch, length)).logits

        return prefill
    with torch.no_grad(), _under(precision, device):
        cache = model.new_cache(batch, length + 1)
        model(tokens, cache=cache)

    @torch.no_grad()
    def decode() -> object:
        cache.length = length
        with _under(precision, device):
            return model(tokens[:, :1], cache=cache).logits

    return decode


def pass_seconds(spec: ArchitectureSpec, phase: Phase, batch: int, length: int, precision: Precision) -> float:
    """Median seconds of a pass of a design as it is, the optimizer's step included where it trains."""
    device = default_device()
    model = build(spec, device=device)
    call = _pass(model, phase, batch, length, device, precision)
    if phase == "training":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        forward_and_backward = call

        def call() -> object:
            forward_and_backward()
            optimizer.step()
            return None

    return _alternately([call], device, _elapsed)[0]


def _outer(device: str, precision: Precision, phase: Phase, rates: PrecisionRates) -> OuterRates:
    """What a model takes beside its layers: of the difference between vocabularies, and of what is left of a model."""
    name = "llama-2-7b"
    whole = preset(name).spec
    both = whole.layer_groups[0].layers[0]
    layer, attending = (both.model_copy(update={mixer: None}) for mixer in ("sequence_mixer", "channel_mixer"))
    batch, length = _shapes(device).many[0]
    small, _ = _model(whole, layer, NARROW, 1)
    calls = []
    for vocabulary in (VOCABULARY, LARGE_VOCABULARY):
        sized = small.model_copy(update={"vocab_size": vocabulary, "positions": NoPositions()})
        calls.append(_pass(build(sized, device=device), phase, batch, length, device, precision))
    tokens = batch * (1 if phase == "decode" else length)
    few, many = _alternately(calls, device, _device_seconds)
    left, with_places = (_beside_layers(device, precision, phase, whole, each) for each in (layer, attending))
    heads = [_head(tokens, NARROW, vocabulary, rates, phase) for vocabulary in (VOCABULARY, LARGE_VOCABULARY)]
    per_logit = max(0.0, (many - few) - (heads[1] - heads[0])) / (tokens * (LARGE_VOCABULARY - VOCABULARY))
    places = max(0.0, with_places - left)
    if not _is_queued(device):
        few_tokens = FEW[0] * (1 if phase == "decode" else FEW[1])
        left -= _head(few_tokens, NARROW, VOCABULARY, rates, phase)
    return OuterRates(launch_seconds=max(0.0, left), places_seconds=places, seconds_per_logit=per_logit)


def _beside_layers(device: str, precision: Precision, phase: Phase, spec: ArchitectureSpec, layer: Layer) -> float:
    """Seconds of the host for what a narrow model does outside its layers."""
    thin = [
        _pass(build(_model(spec, layer, NARROW, count)[0], device=device), phase, *FEW, device, precision)
        for count in (1, LAYERS)
    ]
    one, several = _alternately(thin, device, _host_seconds)
    return one - (several - one) / (LAYERS - 1)


def _head(tokens: int, width: int, vocabulary: int, rates: PrecisionRates, phase: Phase) -> float:
    flops = 2.0 * tokens * width * vocabulary
    seconds = flops / rates.forward.at(tokens, width, vocabulary)
    return seconds + (2 * flops / rates.backward.at(tokens, width, vocabulary) if phase == "training" else 0.0)
