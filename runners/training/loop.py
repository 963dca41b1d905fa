"""The training loop of a prototype: AdamW, clipped gradients, a metric a step. Knows no job and no database."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runners.models import Decoder
from runners.models.decoder import next_tokens
from runners.training import checkpoint
from runners.training.data import Text, batch
from runners.training.routing import UNBALANCED, RouterSettings, RouterStep, balance, recorded, router_loss, summary
from runners.training.schedule import learning_rate
from runners.training.tasks import VALIDATION_SEED, HeldOut, TaskBatch, TaskData, answer_loss, measure

VALIDATION_BATCHES = 8
WHILE_TRAINING = 2
"""Batches of a task's held-out sequences that are answered at each evaluation."""


class Diverged(ArithmeticError):
    """The loss is not a number any more."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What the loop is told."""

    steps: int
    batch_size: int
    sequence_length: int
    peak_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    seed: int
    evaluate_every: int
    checkpoint_every: int
    bf16: bool
    device: str
    router: RouterSettings = UNBALANCED


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gave. ``bits_per_byte`` only where the validation text was read, ``accuracy`` where held-out
    sequences of a task were answered, ``router`` at such a step, or at each one where routers are balanced."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    bits_per_byte: float | None
    accuracy: float | None = None
    router: RouterStep | None = None


class Trainer:
    """A model in training; ``run`` goes on from the directory's checkpoint if there is one."""

    def __init__(
        self,
        model: Decoder,
        data: Text | TaskData,
        settings: TrainingSettings,
        directory: pathlib.Path,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self.model, self.data, self.settings, self.directory = model, data, settings, directory
        self.may_write = may_write
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        rest = [p for p in model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=settings.peak_rate,
            betas=(0.9, 0.95),
            fused=True,  # the kind whose memory the planner predicts: the others make temporaries
        )
        self.first_step = 0

    def resume(self) -> int:
        """Load the checkpoint; the step that comes next. A run goes on in the precision that it began in."""
        state = checkpoint.load(self.directory, self.model, self.optimizer)
        if state is not None:
            self.first_step = int(state["next_step"])
            self.settings = replace(self.settings, bf16=bool(state["bf16"]))
        return self.first_step

    def run(self) -> Iterator[Step]:
        """Train; yields a record a step, and checkpoints after the record was taken."""
        settings = self.settings
        for step in range(self.first_step, settings.steps):
            started = time.perf_counter()
            rate = learning_rate(step, settings.steps, settings.warmup_steps, settings.peak_rate)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            last = step == settings.steps - 1
            evaluates = last or (step + 1) % settings.evaluate_every == 0
            with self._precision(), recorded(self.model, settings.router, evaluates) as routing:
                loss = self._loss(step)
            added = router_loss(routing, settings.router)
            self.optimizer.zero_grad(set_to_none=True)
            (loss if added is None else loss + added).backward()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
            self.optimizer.step()
            if settings.router.bias_update_rate:
                balance(self.model, routing, settings.router.bias_update_rate)
            value, router = loss.item(), summary(routing)
            if not math.isfinite(value):
                raise Diverged(f"the loss is {value} at step {step}")
            seconds = time.perf_counter() - started
            bits = accuracy = None
            if evaluates:
                if isinstance(self.data, TaskData):
                    accuracy = self.held_out(WHILE_TRAINING).accuracy
                else:
                    bits = self.bits_per_byte()
            yield Step(step, value, norm.item(), rate, seconds, bits, accuracy, router)
            if last or (step + 1) % settings.checkpoint_every == 0:
                state = {"next_step": step + 1, "bf16": settings.bf16}
                checkpoint.save(self.directory, self.model, self.optimizer, state, self.may_write)

    def _loss(self, step: int) -> Tensor:
        """The training loss of one step's batch."""
        settings = self.settings
        if isinstance(self.data, TaskData):
            made = self.data.batch("training", settings.seed, step, settings.batch_size)
            return answer_loss(self.model, TaskBatch(*(part.to(settings.device) for part in made)))
        tokens = self._batch(self.data.training, settings.seed, step)
        return self.model.loss(tokens, next_tokens(tokens))

    def held_out(self, batches: int) -> HeldOut:
        """How a task's held-out sequences are answered; the same sequences at every call and for every design."""
        assert isinstance(self.data, TaskData)
        with self._precision():
            return measure(self.model, self.data, batches, self.settings.batch_size, self.settings.device)

    @torch.no_grad()
    def bits_per_byte(self) -> float:
        """Mean loss on validation text in bits; the same sequences at every call and for every design."""
        assert isinstance(self.data, Text)
        total = 0.0
        for index in range(VALIDATION_BATCHES):
            tokens = self._batch(self.data.validation, VALIDATION_SEED, index)
            with self._precision():
                total += self.model.loss(tokens, next_tokens(tokens)).item()
        return total / VALIDATION_BATCHES / math.log(2)

    def _batch(self, text: Tensor, seed: int, step: int) -> Tensor:
        settings = self.settings
        return batch(text, seed, step, settings.batch_size, settings.sequence_length).to(settings.device)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if not self.settings.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.settings.device.split(":")[0], torch.bfloat16)
