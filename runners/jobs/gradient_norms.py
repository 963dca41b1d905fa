"""Gradient norms by depth: the same model with its norms in different places, before and after a few steps.

All layers of the design are built in a narrow stream. The gradients are those of the training loss over one batch,
which is the same for all placements and seeds.
"""

from __future__ import annotations

import pathlib
import shutil
import statistics
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from planner.dispatch import estimate_job
from planner.errors import InvalidSpec
from planner.probes import GradientNormsPlan, narrowed_for_gradients, with_norm_placement
from planner.spec import ArchitectureSpec, LearnedPositions
from runners.environment import default_device, describe
from runners.events import Event, Log, Metric, Progress, Result
from runners.jobs.base import JobContext, JobFailure
from runners.jobs.fitting import refuse_what_does_not_fit
from runners.models import Decoder, build
from runners.training.data import NoData, Text, batch, load_text
from runners.training.loop import Diverged, Trainer, TrainingSettings
from runners.training.schedule import RULE, peak_rate
from runners.training.tasks import VALIDATION_SEED

MOST_WARMUP = 20


def run(spec: ArchitectureSpec, plan: GradientNormsPlan, context: JobContext) -> Iterator[Event]:
    """Measure each placement with each seed."""
    if isinstance(spec.positions, LearnedPositions) and plan.sequence_length > spec.positions.num_positions:
        raise JobFailure(
            f"sequence_length: the model reads {spec.positions.num_positions:,} positions, not "
            f"{plan.sequence_length:,}; choose a shorter one"
        )
    try:
        text = load_text(plan.data)
    except NoData as error:
        raise JobFailure(str(error)) from error
    scaled = narrowed_for_gradients(spec, plan)
    needed = estimate_job("gradient_norms", spec, plan).memory_bytes
    refuse_what_does_not_fit(
        needed, default_device(), "hidden_size", "choose a narrower one, a smaller batch or a shorter sequence"
    )
    variants, skipped = _variants(scaled.spec, plan)
    for placement, reason in skipped.items():
        yield Log(f"{placement}: {reason}", "warning")
    if not variants:
        raise JobFailure(f"placements: none is possible in this design; {'; '.join(skipped.values())}")
    device = default_device()
    tokens = batch(text.validation, VALIDATION_SEED, 0, plan.batch_size, plan.sequence_length).to(device)
    yield Log(f"{scaled.spec.num_layers:,} layers, {scaled.parameters:,} parameters on {device}; {text.description}")
    each = plan.steps + 2
    total, placements = len(variants) * plan.seeds * each, []
    for index, (placement, variant) in enumerate(variants.items()):
        initial: list[dict[str, list[float]]] = []
        trained: list[dict[str, list[float]]] = []
        bits: list[float] = []
        for seed in range(plan.seeds):
            done = (index * plan.seeds + seed) * each
            model = build(variant, device=device, seed=seed)
            initial.append(norms_by_depth(model, tokens))
            if not plan.steps:
                yield Progress(done + each, total, "steps", f"· {placement}, seed {seed}")
                continue
            trainer = _trainer(model, text, plan, seed, device, context.directory / f"{placement}-{seed}")
            try:
                for step in trainer.run():
                    yield Progress(done + 1 + step.step, total, "steps", f"· {placement}, seed {seed}")
                    if seed == 0:  # one curve a placement; the others are in the result
                        yield Metric(f"gradient_norm_{placement}", step.step, step.gradient_norm)
                    if step.bits_per_byte is not None:
                        bits.append(step.bits_per_byte)
                trained.append(norms_by_depth(model, tokens))
            except Diverged as error:
                yield Log(f"{placement}, seed {seed}: {error}", "warning")
            finally:
                shutil.rmtree(trainer.directory, ignore_errors=True)
        placements.append(
            {
                "placement": placement,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "initial": _summary(initial),
                "trained": _summary(trained) if trained else None,
                "diverged": plan.seeds - len(trained) if plan.steps else 0,
                "bits_per_byte": statistics.median(bits) if bits else None,
            }
        )
    values = {
        "placements": placements,
        "skipped": skipped,
        "designed": sorted({layer.norm_placement for _, layer in spec.iterate_layers()}),
        "num_layers": scaled.spec.num_layers,
        "steps": plan.steps,
        "seeds": plan.seeds,
        "batch_size": plan.batch_size,
        "sequence_length": plan.sequence_length,
        "learning_rate": plan.learning_rate or peak_rate(scaled.spec.hidden_size),
        "learning_rate_rule": RULE if plan.learning_rate is None else "as given",
        "data": {"description": text.description, "files": text.files, "sha256": text.digest},
        "rules": scaled.rules,
        "spec": scaled.spec.to_dict(),
    }
    yield Result("gradient_norms", values, describe(device))


def _variants(small: ArchitectureSpec, plan: GradientNormsPlan) -> tuple[dict[str, ArchitectureSpec], dict[str, str]]:
    """The model of each placement, and why it has none of some."""
    variants: dict[str, ArchitectureSpec] = {}
    skipped: dict[str, str] = {}
    for placement in dict.fromkeys(plan.placements):
        try:
            variants[placement] = with_norm_placement(small, placement)
        except InvalidSpec as refused:
            skipped[placement] = str(refused)
    return variants, skipped


def norms_by_depth(model: Decoder, tokens: Tensor) -> dict[str, list[float]]:
    """Norms of the gradients of the loss over ``tokens`` (batch, positions).

    ``stream``: with respect to the stream before the first layer and after each; ``parameters``: over all parameters
    of each layer.
    """
    streams: list[Tensor] = []
    layers: Any = model.layers

    def keep(stream: Tensor) -> None:
        stream.retain_grad()
        streams.append(stream)

    hooks = [layers[0].register_forward_pre_hook(lambda _module, inputs: keep(inputs[0]))]
    hooks += [layer.register_forward_hook(lambda _module, _inputs, output: keep(output)) for layer in layers]
    try:
        loss = model(tokens, labels=tokens).loss
        assert loss is not None
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    found = {
        "stream": [_norm([stream.grad]) for stream in streams],
        "parameters": [_norm([parameter.grad for parameter in layer.parameters()]) for layer in layers],
    }
    model.zero_grad(set_to_none=True)
    return found


def _norm(gradients: list[Tensor | None]) -> float:
    squares = [float(gradient.double().square().sum()) for gradient in gradients if gradient is not None]
    return sum(squares) ** 0.5


def _summary(runs: list[dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Median, least and greatest of the seeds at each depth, and the first median over the last."""
    summary: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        by_depth = list(zip(*(run[name] for run in runs), strict=True))
        middle = [statistics.median(values) for values in by_depth]
        summary[name] = {
            "median": middle,
            "low": [min(values) for values in by_depth],
            "high": [max(values) for values in by_depth],
            "first_over_last": middle[0] / middle[-1] if middle[-1] else None,
        }
    return summary


def _trainer(
    model: Decoder, text: Text, plan: GradientNormsPlan, seed: int, device: str, directory: pathlib.Path
) -> Trainer:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    settings = TrainingSettings(
        steps=plan.steps,
        batch_size=plan.batch_size,
        sequence_length=plan.sequence_length,
        peak_rate=plan.learning_rate or peak_rate(model.spec.hidden_size),
        warmup_steps=min(MOST_WARMUP, plan.steps // 4),
        weight_decay=0.1,
        gradient_clip=1.0,
        seed=seed,
        evaluate_every=plan.steps,
        checkpoint_every=plan.steps,
        bf16=False,
        device=device,
    )
    return Trainer(model, text, settings, directory)
