"""What single operators take on a device, by their sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from planner.calibration import MatrixRates, Precision, PrecisionRates, ScoreRates, Scores
from runners.models.scores import Scores as HowScores
from runners.models.scores import attend
from runners.training.calibration.clocks import Call, Stopwatch, host_seconds, is_queued

MOST_MATRICES = 4096
HEADS, MANY_HEADS = 4, 12
"""Of attention."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shapes:
    """What is measured on a kind of device; large enough there that the device has work to do."""

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    """Of square matrices."""
    most_flops: float
    """Larger multiplications take the rate of the next smaller size."""
    working_sets: tuple[int, ...]
    """Matrices that take turns are so many bytes together, and no more than ``MOST_MATRICES``."""
    most_results: int
    """Bytes of products that are kept at a time for their backward passes."""
    few_rows: int
    """Up to which the working set matters; of more rows the middle one is measured."""
    widths: tuple[int, ...]
    """Of the layers that are measured; a narrow one beside them."""
    many: tuple[tuple[int, int], ...]
    """Batch and length of the two passes of each of these widths."""
    contexts: tuple[int, ...]
    copies: tuple[int, ...]
    """Bytes."""
    lengths: tuple[int, ...]
    """Of attention."""
    channels: tuple[int, ...]
    """Of its heads."""
    optimizer: tuple[int, int]
    """How many square matrices of which size it steps."""


CPU = Shapes(
    rows=(1, 2, 4, 16, 64, 256, 1024, 4096),
    sizes=(32, 64, 128, 256, 512, 1024, 2048),
    most_flops=6e9,
    working_sets=(2**24, 2**25, 2**26),
    most_results=2**28,
    few_rows=16,
    widths=(96, 256),
    many=((4, 64), (1, 256)),
    contexts=(64, 256),
    copies=(2**16, 2**20, 2**24, 2**27),
    lengths=(32, 128, 512, 2048),
    channels=(8, 32, 128),
    optimizer=(16, 512),
)
GPU = Shapes(
    rows=(1, 4, 16, 64, 256, 1024, 4096, 16_384),
    sizes=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
    most_flops=1.2e12,
    working_sets=(2**28,),
    most_results=2**32,
    few_rows=0,
    widths=(512, 2048),
    many=((4, 512), (1, 2048)),
    contexts=(1024, 8192),
    copies=(2**20, 2**24, 2**28, 2**31),
    lengths=(512, 2048, 8192),
    channels=(64,),
    optimizer=(32, 2048),
)


def shapes_of(device: str) -> Shapes:
    """What is measured on a device."""
    return GPU if is_queued(device) else CPU


def under(precision: Precision, device: str) -> contextlib.AbstractContextManager[object]:
    """Autocast, where the precision asks for it; entered anew in each pass, since it keeps what it casts."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16_autocast" else contextlib.nullcontext()


def matrix_tables(watch: Stopwatch, precision: Precision) -> PrecisionRates:
    """Rates forward and backward; on a CPU the time of the smallest product of all, its launch, is taken off."""
    shapes = shapes_of(watch.device)
    has_queue = is_queued(watch.device)
    idle = (0.0, 0.0) if has_queue else _linear_seconds(watch, precision, 1, 8, 0)
    middle = shapes.working_sets[len(shapes.working_sets) // 2]
    forward, backward = (
        np.full((len(shapes.working_sets), len(shapes.rows), len(shapes.sizes)), np.nan) for _ in range(2)
    )
    for line, rows in enumerate(shapes.rows):
        for column, size in enumerate(shapes.sizes):
            flops = 2.0 * rows * size * size
            if flops > shapes.most_flops:
                for table in (forward, backward):
                    table[:, line, column] = table[:, line, column - 1]
                continue
            for index, working_set in enumerate(shapes.working_sets):
                if rows > shapes.few_rows and working_set != middle:
                    continue
                there, back = _linear_seconds(watch, precision, rows, size, working_set)
                which = index if rows <= shapes.few_rows else slice(None)
                forward[which, line, column] = flops / max(there - idle[0], there / 10)
                backward[which, line, column] = 2 * flops / max(back - idle[1], back / 10)
    tables = [
        MatrixRates(
            rows=shapes.rows, sizes=shapes.sizes, working_sets=shapes.working_sets, flops_per_second=table.tolist()
        )
        for table in (forward, backward)
    ]
    return PrecisionRates(
        forward=tables[0], backward=tables[1], scores={} if has_queue else _scores(watch, precision), phases={}
    )  # fmt: skip


def _linear_seconds(
    watch: Stopwatch, precision: Precision, rows: int, size: int, working_set: int
) -> tuple[float, float]:
    """Seconds of a product, and of its backward pass; as in a model, whose layers lie between two uses of a matrix,
    others of ``working_set`` bytes take turns with it."""
    device = watch.device

    def make() -> Iterator[Call]:
        count = max(2, min(MOST_MATRICES, working_set // (4 * size * size)))
        x = torch.randn(rows, size, device=device, requires_grad=True)
        weights = [torch.randn(size, size, device=device, requires_grad=True) for _ in range(count)]
        turns = itertools.cycle(weights)

        @torch.no_grad()
        def product() -> object:
            with under(precision, device):
                return F.linear(x, next(turns))

        yield product
        most = max(2, shapes_of(device).most_results // (4 * rows * size))
        with under(precision, device):
            made = [(F.linear(x, weight), weight) for weight in weights[:most]]
        results = itertools.cycle(made)
        gradient = torch.ones_like(made[0][0])

        def gradients() -> object:
            y, weight = next(results)
            return torch.autograd.grad(y, (x, weight), gradient, retain_graph=True)

        yield gradients

    there, back = watch.alone(("matrix", precision, rows, size, working_set), make)
    return there, back


def _scores(watch: Stopwatch, precision: Precision) -> dict[Scores, tuple[ScoreRates, ScoreRates]]:
    """Seconds a score of attention as models compute it: what further heads add, so that launches are left out."""
    shapes = shapes_of(watch.device)
    names: tuple[Scores, ...] = ("causal", "masked")
    found: dict[Scores, tuple[ScoreRates, ScoreRates]] = {}
    for name in names:
        tables = np.zeros((2, len(shapes.lengths), len(shapes.channels)))
        for line, length in enumerate(shapes.lengths):
            pairs = length * length if name == "masked" else length * (length + 1) / 2
            for column, channels in enumerate(shapes.channels):
                few, many = (
                    np.array(_attention_seconds(watch, precision, length, channels, name, heads))
                    for heads in (HEADS, MANY_HEADS)
                )
                added = np.maximum(many - few, many / 10) / (MANY_HEADS - HEADS)
                tables[:, line, column] = added / pairs
        forward, backward = (
            ScoreRates(lengths=shapes.lengths, channels=shapes.channels, seconds=table.tolist()) for table in tables
        )
        found[name] = forward, backward
    return found


def _attention_seconds(
    watch: Stopwatch, precision: Precision, length: int, channels: int, which: Scores, heads: int
) -> tuple[float, float]:
    """Seconds of causal attention, and of its backward pass."""
    device = watch.device

    def make() -> tuple[Call, Call]:
        dtype = torch.bfloat16 if precision == "bf16_autocast" else torch.float32
        parts = [
            torch.randn(1, length, heads, channels, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
            for _ in range(3)
        ]
        mask: Tensor | None = None
        if which == "masked":
            mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        query, key, value = parts
        mixed = functools.partial(attend, query, key, value, mask, HowScores(channels**-0.5), "auto")
        result = mixed()
        gradient = torch.ones_like(result)

        def backward() -> object:
            return torch.autograd.grad(result, parts, gradient, retain_graph=True)

        return torch.no_grad()(mixed), backward

    there, back = watch.alone(("scores", precision, length, channels, which, heads), make)
    return there, back


def launch(watch: Stopwatch) -> float:
    """Seconds of the host for one small operator."""
    one = torch.ones(1, device=watch.device)
    return watch.in_turns("launch", lambda: [functools.partial(one.add_, 1)], host_seconds)[0]


def copies(watch: Stopwatch) -> dict[str, float]:
    """Bytes a second of copies within the caches and beyond."""

    def make(size: int) -> list[Call]:
        source = torch.zeros(size, dtype=torch.uint8, device=watch.device)
        return [functools.partial(torch.empty_like(source).copy_, source)]

    return {
        str(size): 2 * size / watch.alone(("copy", size), functools.partial(make, size))[0]
        for size in shapes_of(watch.device).copies
    }


def attention(watch: Stopwatch) -> dict[str, float]:
    """FLOPs a second of fused causal attention of heads of 64 channels, half of the square counted."""

    def make(length: int) -> list[Call]:
        query, key, value = (torch.randn(1, HEADS, length, 64, device=watch.device) for _ in range(3))
        return [functools.partial(F.scaled_dot_product_attention, query, key, value, is_causal=True)]

    return {
        str(length): 4 * HEADS * 64 * length * (length + 1) / 2
        / watch.alone(("attention", length), functools.partial(make, length))[0]
        for length in shapes_of(watch.device).lengths
    }  # fmt: skip


def optimizer(watch: Stopwatch) -> float:
    """Seconds of the device for each parameter."""
    count, size = shapes_of(watch.device).optimizer
    return watch.alone("optimizer", lambda: [_optimizer_step(watch.device, count, size)], 0.05)[0] / (
        count * size * size
    )


def optimizer_launch(watch: Stopwatch) -> float:
    """Seconds of the host for each tensor, where a device does the work; on a CPU they are within the work."""
    if not is_queued(watch.device):
        return 0.0
    count = 128
    found = watch.in_turns("optimizer's launch", lambda: [_optimizer_step(watch.device, count, 8)], host_seconds)
    return found[0] / count


def _optimizer_step(device: str, count: int, size: int) -> Call:
    parameters = [torch.nn.Parameter(torch.randn(size, size, device=device)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True).step
