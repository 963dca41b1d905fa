"""Router load: how many of the held-out tokens each expert takes, layer by layer, before and after training.

The scaled-down design is trained for a few steps, without any means of balancing, or takes the weights that a
prototype of it was left with.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from planner.dispatch import estimate_job
from planner.probes import RouterLoadPlan, expert_layers
from planner.prototype import scale_down
from planner.spec import ArchitectureSpec, LearnedPositions
from runners.environment import default_device, describe
from runners.events import Event, Log, Metric, Progress, Result
from runners.jobs.base import JobContext, JobFailure
from runners.jobs.fitting import refuse_what_does_not_fit
from runners.models import Decoder, build
from runners.models.moe import recorded_routing
from runners.training.checkpoint import load_weights
from runners.training.data import NoData, Text, batch, load_text
from runners.training.loop import Diverged, Trainer, TrainingSettings
from runners.training.schedule import RULE, peak_rate
from runners.training.tasks import VALIDATION_SEED

MOST_WARMUP = 20


def run(spec: ArchitectureSpec, plan: RouterLoadPlan, context: JobContext) -> Iterator[Event]:
    """Count at the initialization and after training."""
    expert_layers(spec)
    if isinstance(spec.positions, LearnedPositions) and plan.sequence_length > spec.positions.num_positions:
        raise JobFailure(
            f"sequence_length: the model reads {spec.positions.num_positions:,} positions, not "
            f"{plan.sequence_length:,}; choose a shorter one"
        )
    try:
        text = load_text(plan.data)
    except NoData as error:
        raise JobFailure(str(error)) from error
    scaled = scale_down(spec, plan.parameter_budget, sequence_length=plan.sequence_length)
    device = default_device()
    needed = estimate_job("router_load", spec, plan).memory_bytes
    refuse_what_does_not_fit(
        needed, device, "parameter_budget", "choose a smaller budget, a smaller batch or a shorter sequence"
    )
    model = build(scaled.spec, device=device, seed=plan.seed)
    yield Log(f"{scaled.parameters:,} parameters on {device}; {text.description}")
    loads = [("initial", loads_by_layer(model, text, plan, device))]
    bits = None
    if plan.prototype is not None:
        folder = context.directory.parent / plan.prototype
        try:
            load_weights(folder, model)
        except ValueError as error:
            raise JobFailure(
                f"prototype: {error}; choose a prototype of this design that ran on this machine, and give its "
                "parameter_budget and sequence_length"
            ) from error
        yield Log(f"weights of {plan.prototype}")
    elif plan.steps:
        trainer = _trainer(model, text, plan, device, context)
        first = trainer.resume() if context.resume else 0
        try:
            for step in trainer.run():
                yield Progress(step.step + 1, plan.steps, "steps")
                yield Metric("loss", step.step, step.loss)
                bits = step.bits_per_byte if step.bits_per_byte is not None else bits
        except Diverged as error:
            raise JobFailure(f"learning_rate: {error}; choose a lower rate") from error
        if first:
            yield Log(f"resumed at step {first}")
    if plan.prototype is not None or plan.steps:
        loads.append(("trained", loads_by_layer(model, text, plan, device)))
    tokens = plan.batches * plan.batch_size * plan.sequence_length
    mixers = expert_layers(scaled.spec)
    stages: list[dict[str, Any]] = [
        {
            "stage": stage,
            "layers": [
                {"layer": index, **load_figures(counts, tokens, mixers[index].num_experts_per_tok)}
                for index, counts in by_layer.items()
            ],
        }
        for stage, by_layer in loads
    ]
    values = {
        "stages": stages,
        "tokens": tokens,
        "steps": plan.steps if plan.prototype is None else None,
        "prototype": plan.prototype,
        "bits_per_byte": bits,
        "seed": plan.seed,
        "learning_rate_rule": RULE if plan.learning_rate is None else "as given",
        "data": {"description": text.description, "files": text.files, "sha256": text.digest},
        "rules": scaled.rules,
        "spec": scaled.spec.to_dict(),
    }
    yield Result("router_load", values, describe(device))


@torch.no_grad()
def loads_by_layer(model: Decoder, text: Text, plan: RouterLoadPlan, device: str) -> dict[int, list[int]]:
    """By layer, how many times each expert is chosen over the plan's batches of held-out text."""
    counts: dict[int, Tensor] = {}
    for number in range(plan.batches):
        tokens = batch(text.validation, VALIDATION_SEED, number, plan.batch_size, plan.sequence_length)
        with recorded_routing(model) as routing:
            model(tokens.to(device))
        for index, mixer in expert_layers(model.spec).items():
            chosen = routing[f"layers.{index}.channel_mixer"].chosen
            counted = torch.bincount(chosen.flatten(), minlength=mixer.num_experts).cpu()
            counts[index] = counts[index] + counted if index in counts else counted
    return {index: found.tolist() for index, found in sorted(counts.items())}


def load_figures(counts: list[int], tokens: int, experts_per_token: int) -> dict[str, Any]:
    """How uneven a layer's load is.

    ``max_over_mean``; ``variation``, the deviation over the mean, and ``chance_variation``, what it would be if each
    token chose its experts by lot (a count is then binomial); ``entropy``, as a share of that of an even load;
    ``idle``, experts that no token chose.
    """
    experts, total = len(counts), sum(counts)
    mean, share = total / experts, experts_per_token / experts
    shares = [count / total for count in counts if count]
    entropy = -sum(value * math.log(value) for value in shares)
    return {
        "counts": counts,
        "relative": [round(count / mean, 3) for count in counts],
        "mean": mean,
        "max_over_mean": max(counts) / mean,
        "variation": statistics.pstdev(counts) / mean,
        "chance_variation": math.sqrt((1 - share) / (tokens * share)),
        "entropy": entropy / math.log(experts) if experts > 1 else 1.0,
        "idle": counts.count(0),
    }


def _trainer(model: Decoder, text: Text, plan: RouterLoadPlan, device: str, context: JobContext) -> Trainer:
    settings = TrainingSettings(
        steps=plan.steps,
        batch_size=plan.batch_size,
        sequence_length=plan.sequence_length,
        peak_rate=plan.learning_rate or peak_rate(model.spec.hidden_size),
        warmup_steps=min(MOST_WARMUP, plan.steps // 4),
        weight_decay=0.1,
        gradient_clip=1.0,
        seed=plan.seed,
        evaluate_every=plan.steps,
        checkpoint_every=max(1, plan.steps // 4),
        bf16=False,
        device=device,
    )
    return Trainer(model, text, settings, context.directory, context.holds_directory)
