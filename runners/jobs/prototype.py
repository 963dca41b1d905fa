"""A prototype: the design scaled down by stated rules, trained on real text or a task, with what it then writes."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from planner.compute import flops
from planner.plans import PrototypePlan
from planner.prototype import ScaledSpec, scale_down
from planner.routing import check_routing
from planner.sizing import size
from planner.spec import ArchitectureSpec, LearnedPositions
from planner.tasks import TASKS
from runners.environment import default_device, describe
from runners.events import Artifact, Event, Log, Metric, Progress, Result
from runners.jobs.base import JobContext, JobFailure
from runners.jobs.generate import describe_model
from runners.jobs.verify import flops_rows, measured_rows, memory_rows, prediction
from runners.models import Decoder, Sampling, build
from runners.profile import current
from runners.telemetry import Telemetry
from runners.training.data import NoData, Text, load_text
from runners.training.loop import Diverged, Trainer, TrainingSettings
from runners.training.routing import RouterSettings
from runners.training.schedule import RULE, peak_rate
from runners.training.tasks import TaskData

PROMPTS = ("def ", "import ", "class ")
TEMPERATURE = 0.8
LEAST_FREE_BYTES = 200 * 2**20
HELD_OUT_BATCHES = 8
"""Batches of 64 held-out sequences of a task that the result's accuracy is taken over."""


@dataclass
class _Record:
    """What this attempt saw last, and how fast it was."""

    loss: float | None = None
    bits_per_byte: float | None = None
    speeds: list[float] = field(default_factory=list)
    router_load: dict[str, Any] | None = None
    """Step, and by the name of each mixture of experts the share of that step's tokens that went to each expert."""


def run(spec: ArchitectureSpec, plan: PrototypePlan, context: JobContext) -> Iterator[Event]:
    """Train the scaled-down design; a later attempt goes on from the last checkpoint with the same batches."""
    check_routing(spec, plan)
    scaled = scale_down(spec, plan.parameter_budget, vocab_size=plan.vocab_size, sequence_length=plan.sequence_length)
    free = shutil.disk_usage(context.directory).free
    if free < 3 * 12 * scaled.parameters + LEAST_FREE_BYTES:
        raise JobFailure(f"the disk is too full for checkpoints: {free / 1e9:.1f} GB are free")
    device = default_device()
    environment = describe(device)
    profile = current()
    data = _data(plan)
    settings = TrainingSettings(
        steps=plan.steps,
        batch_size=plan.batch_size,
        sequence_length=plan.sequence_length,
        peak_rate=plan.learning_rate or peak_rate(scaled.spec.hidden_size),
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        gradient_clip=plan.gradient_clip,
        seed=plan.seed,
        evaluate_every=plan.evaluate_every,
        checkpoint_every=plan.checkpoint_every,
        bf16=(profile.fastest_precision if plan.precision == "auto" else plan.precision) == "bf16_autocast",
        device=device,
        router=RouterSettings(plan.router_auxiliary_loss, plan.router_z_loss, plan.router_bias_update_rate),
    )
    rows = _predictions(scaled, plan, settings)
    describe_model(context.directory, scaled.spec, plan.task, plan.task_difficulty)
    model = build(scaled.spec, device=device, seed=plan.seed)
    trainer = Trainer(model, data, settings, context.directory, context.holds_directory)
    first = trainer.resume()
    settings = trainer.settings
    if first:
        yield Log(f"resumed at step {first}")
    precision = "bf16 autocast" if settings.bf16 else "fp32"
    yield Log(f"{scaled.parameters:,} parameters, {precision} on {environment['device']}; {data.description}")
    if plan.precision == "auto":
        yield Log(f"{precision}: {profile.why_fastest}")
    telemetry = Telemetry()
    if telemetry.note:
        yield Log(telemetry.note)
    record = _Record()
    yield from _train(trainer, plan, telemetry, first, record)
    yield Artifact("weights", "checkpoint/model.safetensors", "application/octet-stream")
    if isinstance(data, Text):
        yield Log("writing samples")
        measured = _measured_text(trainer, data, record, list(_samples(model, plan, device)))
    else:
        yield Log("answering held-out sequences")
        measured = _measured_task(trainer, data)
    values = _values(scaled, plan, settings, trainer, record, rows)
    values["precision_reason"] = profile.why_fastest if plan.precision == "auto" else "as given"
    yield Result("prototype", measured | values, environment)


def _data(plan: PrototypePlan) -> Text | TaskData:
    if plan.task is not None:
        return TaskData(plan.task, plan.task_difficulty, plan.sequence_length)
    try:
        return load_text(plan.data)
    except NoData as error:
        raise JobFailure(str(error)) from error


def _predictions(scaled: ScaledSpec, plan: PrototypePlan, settings: TrainingSettings) -> list[dict[str, Any]]:
    """What a step of this prototype costs, predicted and measured: FLOPs and peak memory."""
    spec, length, batch = scaled.spec, plan.sequence_length, plan.batch_size
    precision: Literal["fp32", "bf16_autocast"] = "bf16_autocast" if settings.bf16 else "fp32"
    return [
        *measured_rows("FLOPs", lambda: flops_rows(spec, length, batch)),
        *measured_rows("training memory", lambda: memory_rows(spec, length, batch, precision)),
    ]


def _train(trainer: Trainer, plan: PrototypePlan, telemetry: Telemetry, first: int, record: _Record) -> Iterator[Event]:
    tokens = plan.batch_size * plan.sequence_length
    started = time.perf_counter()
    try:
        for step in trainer.run():
            speed = tokens / step.seconds
            record.speeds.append(speed)
            yield Metric("loss", step.step, step.loss)
            yield Metric("gradient_norm", step.step, step.gradient_norm)
            yield Metric("learning_rate", step.step, step.learning_rate)
            yield Metric("tokens_per_second", step.step, speed)
            if step.step % 5 == 0:
                yield Metric("memory_bytes", step.step, telemetry.read().process_bytes)
            if step.bits_per_byte is not None:
                yield Metric("bits_per_byte", step.step, step.bits_per_byte)
                record.bits_per_byte = step.bits_per_byte
            if step.accuracy is not None:
                yield Metric("accuracy", step.step, step.accuracy)
            if step.router is not None:
                yield Metric("router/auxiliary_loss", step.step, step.router.auxiliary_loss)
                yield Metric("router/z_loss", step.step, step.router.z_loss)
                yield Metric("router/largest_load", step.step, step.router.largest_load)
                layers = {name: list(load) for name, load in step.router.load.items()}
                record.router_load = {"step": step.step, "layers": layers}
            record.loss = step.loss
            done = step.step + 1
            elapsed = time.perf_counter() - started
            left = elapsed / (done - first) * (plan.steps - done)
            yield Progress(done, plan.steps, "steps", f"· {done * tokens:,} tokens", left)
    except Diverged as error:
        raise JobFailure(f"learning_rate: {error}; choose a lower rate or a longer warm-up") from error


def _samples(model: Decoder, plan: PrototypePlan, device: str) -> Iterator[dict[str, Any]]:
    if plan.sample_tokens == 0:
        return
    model.eval()
    positions = model.spec.positions
    longest = positions.num_positions if isinstance(positions, LearnedPositions) else None
    for index, prompt in enumerate(PROMPTS):
        count = plan.sample_tokens if longest is None else min(plan.sample_tokens, longest - len(prompt))
        tokens = torch.tensor([list(prompt.encode())], device=device)
        made = model.generate(tokens, count, Sampling(temperature=TEMPERATURE, seed=plan.seed + index))
        written = bytes(made[0, tokens.shape[1] :].tolist()).decode("utf-8", "replace")
        yield {"prompt": prompt, "text": written, "seed": plan.seed + index, "note": f"temperature {TEMPERATURE}"}


def _measured_text(trainer: Trainer, text: Text, record: _Record, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """How well text is predicted, and what is written."""
    return {
        "bits_per_byte": record.bits_per_byte if record.bits_per_byte is not None else trainer.bits_per_byte(),
        "samples": samples,
        "data": {"description": text.description, "files": text.files, "sha256": text.digest},
    }


def _measured_task(trainer: Trainer, data: TaskData) -> dict[str, Any]:
    """How often held-out sequences are answered right. There are no bits per byte, and no text to show."""
    found = trainer.held_out(HELD_OUT_BATCHES)
    task = TASKS[data.name]
    return {
        "bits_per_byte": None,
        "accuracy": found.accuracy,
        "task": {
            "name": data.name,
            "what": task.what,
            "difficulty": data.difficulty,
            "difficulty_counts": task.difficulty,
            "source": task.source,
            "sequences": found.sequences,
            "answers": found.answers,
            "whole_sequences": found.whole_sequences,
            "guessing": 1 / task.answers(data.difficulty),
            "accuracy_by_depth": found.by_depth,
        },
        "samples": [],
        "data": {"description": data.description, "files": 0, "sha256": data.digest},
    }


def _values(
    scaled: ScaledSpec,
    plan: PrototypePlan,
    settings: TrainingSettings,
    trainer: Trainer,
    record: _Record,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    tokens = plan.steps * plan.batch_size * plan.sequence_length
    counted = sum(parameter.numel() for parameter in trainer.model.parameters())
    step_flops = flops(scaled.spec, plan.sequence_length, plan.batch_size, training=True).total
    return {
        "loss": record.loss,
        "tokens": tokens,
        "training_flops": step_flops * plan.steps,
        "tokens_per_second": statistics.median(record.speeds) if record.speeds else None,
        "parameters": counted,
        "router_load": record.router_load,
        "active_parameters": size(scaled.spec).parameters.active,
        "seed": plan.seed,
        "learning_rate": settings.peak_rate,
        "learning_rate_rule": RULE if plan.learning_rate is None else "as given",
        "precision": "bf16 autocast" if settings.bf16 else "fp32",
        "kernels": "triton" if settings.device == "cuda" else "eager",
        "rules": scaled.rules,
        "spec": scaled.spec.to_dict(),
        "rows": [
            prediction("Parameters", scaled.parameters, counted, "parameters", "counted over the trained module"),
            *rows,
        ],
    }
