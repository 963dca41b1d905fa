"""Reach: how far back the gradient of one position's stream leads, layer by layer, beside what the planner composes.

All layers of the design are built in a narrow stream with random weights. After each depth the stream at one position
is led back to the embeddings: where its gradient is not zero, the position depends on the input there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planner.components import Component
from planner.components.attention import Attention
from planner.components.latent_attention import LatentAttention
from planner.probes import ReachPlan, sequence_mixers
from planner.reach import (
    PROBE_LENGTH,
    Reach,
    dependent_pairs,
    held_bytes,
    key_value_suppliers,
    narrowed_for_reach,
    reach_by_depth,
)
from planner.spec import ArchitectureSpec, LearnedPositions
from runners.environment import describe
from runners.events import Event, Log, Progress, Result
from runners.jobs.base import JobContext, JobFailure
from runners.jobs.fitting import refuse_what_does_not_fit
from runners.jobs.verify import prediction
from runners.models import Decoder, build

DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
ELEMENTS_AT_ONCE = 2**22
"""Elements of score matrices, of one head, that the counting of dependent pairs holds."""

MOST_CELLS = 64


def run(spec: ArchitectureSpec, plan: ReachPlan, context: JobContext) -> Iterator[Event]:
    """Measure each depth and each distinct mixer."""
    if isinstance(spec.positions, LearnedPositions) and plan.sequence_length > spec.positions.num_positions:
        raise JobFailure(
            f"sequence_length: the model reads {spec.positions.num_positions:,} positions, not "
            f"{plan.sequence_length:,}; choose a shorter one"
        )
    scaled = narrowed_for_reach(spec, plan.hidden_size, plan.sequence_length, plan.keep_windows)
    small = scaled.spec
    needed = held_bytes(small, plan.sequence_length, plan.element_bytes)
    refuse_what_does_not_fit(needed, "cpu", "sequence_length", "choose a shorter one, or a narrower hidden_size")
    depths = plan.probed_depths(small.num_layers)
    predicted = reach_by_depth(small, plan.sequence_length, depths, plan.position)
    whole = reach_by_depth(spec, PROBE_LENGTH, depths)
    mixers = sequence_mixers(small)
    total = len(depths) + len(mixers)
    yield Log(f"{small.num_layers:,} layers, {scaled.parameters:,} parameters, {plan.precision}")
    model = build(small, dtype=DTYPES[plan.precision], kernels="reference", seed=plan.seed)
    profiles = []
    for done, (found, expected, designed) in enumerate(
        zip(gradient_profiles(model, plan, depths), predicted, whole, strict=True)
    ):
        profile = compared(expected, found)
        profiles.append(profile | {"designed": designed.farthest if designed.farthest < PROBE_LENGTH else None})
        yield Progress(done + 1, total, "measurements", f"· {expected.depth:,} layers")
    last = profiles[-1]
    how = f"farthest position with a gradient after {last['depth']:,} layers"
    rows = [prediction("Reach", last["predicted"], last["measured"], "positions", how)]
    masks = []
    for done, (mixer, indices) in enumerate(mixers):
        mask = mixer_mask(model, mixer, indices, plan)
        masks.append(mask)
        rows.append(
            prediction(
                "Scored pairs" if mask["scored"] else "Dependent pairs", mask["predicted_pairs"],
                mask["measured_pairs"], "count", f"{mask['label']}: outputs that move with an input, by gradient",
            )
        )  # fmt: skip
        yield Progress(len(depths) + done + 1, total, "measurements", f"· {mask['label']}")
    wrong = [profile["depth"] for profile in profiles if not profile["equal"]]
    if wrong:
        yield Log(f"predicted and measured positions differ after {', '.join(map(str, wrong))} layers", "warning")
    values = {
        "position": predicted[0].position,
        "sequence_length": plan.sequence_length,
        "precision": plan.precision,
        "num_layers": small.num_layers,
        "depths": profiles,
        "differing": wrong,
        "masks": masks,
        "designed_length": PROBE_LENGTH,
        "rows": rows,
        "rules": scaled.rules,
        "spec": small.to_dict(),
    }
    yield Result("reach", values, describe("cpu"))


def gradient_profiles(model: Decoder, plan: ReachPlan, depths: list[int]) -> Iterator[Tensor]:
    """After each depth the gradient's norm at every position of the input, (sequence_length,)."""
    generator = torch.Generator().manual_seed(plan.seed)
    tokens = torch.randint(0, model.spec.vocab_size, (1, plan.sequence_length), generator=generator)
    x = model.embed(tokens).detach().requires_grad_()
    # A direction of no special kind: norms have directions in which nothing gets through.
    direction = torch.randn(x.shape[-1], generator=generator, dtype=x.dtype)
    place = plan.sequence_length - 1 if plan.position is None else plan.position
    shared: dict[Any, Any] | None = {} if model.shares_key_values else None
    stream: Tensor = x
    for depth, layer in enumerate(model.layers, 1):
        stream = layer(stream, None, 0, shared)
        if depth in depths:
            (gradient,) = torch.autograd.grad((stream[0, place] * direction).sum(), x, retain_graph=True)
            yield gradient[0].norm(dim=-1)


def compared(expected: Reach, found: Tensor) -> dict[str, Any]:
    """One depth: predicted and measured reach, whether both name the same positions, and the gradient's profile."""
    seen = (found > 0).numpy()
    measured = expected.position - int(np.argmax(seen)) + 1 if seen.any() else 0
    logs = [round(float(np.log10(value)), 2) if value > 0 else None for value in found.tolist()]
    return {
        "depth": expected.depth,
        "predicted": expected.farthest,
        "farthest_position": expected.position - expected.farthest + 1,
        "measured": measured,
        "predicted_count": expected.count,
        "measured_count": int(seen.sum()),
        "missing": int((expected.seen & ~seen).sum()),
        "beyond": int((seen & ~expected.seen).sum()),
        "equal": bool((expected.seen == seen).all()),
        "log10_norms": logs,
    }


def mixer_mask(model: Decoder, mixer: Component, indices: list[int], plan: ReachPlan) -> dict[str, Any]:
    """Pairs of positions that depend on each other in one mixer alone: counted by gradient, beside the planner's."""
    length = plan.sequence_length
    counted = dependence(model, indices[0], length, plan.seed)
    pairs = int(counted.sum())
    scored = isinstance(mixer, (Attention, LatentAttention))
    predicted = dependent_pairs(mixer, length)
    return {
        "label": label_of(mixer),
        "component": mixer.component,
        "layers": indices,
        "scored": scored,
        "predicted_pairs": predicted,
        "measured_pairs": pairs,
        "predicted_density": predicted / length**2,
        "measured_density": pairs / length**2,
        "cells": cells(counted),
    }


def label_of(mixer: Component) -> str:
    """A mixer by its kind and, of attention, its mask; numbers of heads say nothing about positions."""
    pattern = getattr(mixer, "pattern", None)
    return ", ".join(filter(None, (mixer.component.replace("_", " "), pattern.words() if pattern else mixer.variety())))


def cells(counted: Tensor) -> dict[str, Any]:
    """A mask as a picture of at most :data:`MOST_CELLS` rows: the percentage of the pairs in each cell."""
    length = counted.shape[0]
    side = -(-length // MOST_CELLS)
    edges = range(0, length, side)
    rows = [
        [round(100 * float(counted[row : row + side, column : column + side].double().mean())) for column in edges]
        for row in edges
    ]
    return {"positions_a_cell": side, "percent": rows}


def dependence(model: Decoder, index: int, length: int, seed: int) -> Tensor:
    """(length, length) of bool: whether the output of a layer's sequence mixer at each row moves with each input."""
    layers: Any = model.layers
    suppliers = key_value_suppliers([layer.sequence_mixer for _, layer in model.spec.iterate_layers()])
    supplier = suppliers[index]
    generator = torch.Generator().manual_seed(seed + 1)
    dtype = model.embed_tokens.weight.dtype
    one = torch.randn(1, length, model.spec.hidden_size, generator=generator, dtype=dtype)
    direction = torch.randn(model.spec.hidden_size, generator=generator, dtype=dtype)
    at_once = max(1, min(64, ELEMENTS_AT_ONCE // length**2))
    found = torch.zeros(length, length, dtype=torch.bool)
    for first in range(0, length, at_once):
        rows = torch.arange(first, min(length, first + at_once))
        x = one.repeat(len(rows), 1, 1).requires_grad_()
        if supplier is None:
            output = layers[index].sequence_mixer(x)
        else:
            shared: dict[Any, Any] = {}
            layers[supplier].sequence_mixer(x, shared=shared)
            output = layers[index].sequence_mixer(x, shared=shared)
        picked = output[torch.arange(len(rows)), rows] @ direction
        (gradient,) = torch.autograd.grad(picked.sum(), x)
        found[rows] = gradient.abs().amax(-1) > 0
    return found
