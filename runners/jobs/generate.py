"""Stored prototypes go on with a prompt, side by side: every token is said with its probability as it comes."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from planner.generation import GeneratePlan, Writer, read_prompt
from planner.sizing import size
from planner.spec import ArchitectureSpec, parse_spec
from planner.vocabulary import vocabulary
from runners.environment import default_device, describe
from runners.events import Event, Log, Progress, Result, Token
from runners.jobs.base import JobContext, JobFailure
from runners.models import Decoder, GeneratedStep, Sampling, Speculation, build
from runners.training.checkpoint import load_weights

MODEL_FILE = "model.json"
ALTERNATIVES = 5
PROGRESS_EVERY = 32
"""Tokens between two words on how far it is."""


def describe_model(directory: pathlib.Path, spec: ArchitectureSpec, task: str | None, difficulty: int) -> None:
    """Leave beside a prototype's checkpoints what they are the weights of, and what its tokens mean."""
    said = {"name": spec.name, "spec": spec.to_dict(), "task": task, "difficulty": difficulty}
    (directory / MODEL_FILE).write_text(json.dumps(said), encoding="utf-8")


def read_model(path: str, directory: pathlib.Path) -> Writer:
    """What :func:`describe_model` left in a job's directory; ``JobFailure`` names the plan's field ``path``."""
    try:
        said = json.loads((directory / MODEL_FILE).read_text(encoding="utf-8"))
        spec = parse_spec({**said["spec"], "name": said["name"]})
        return Writer(said["name"], spec, vocabulary(said["task"], said["difficulty"]))
    except OSError as error:
        there = "does not say what model its weights are of" if directory.exists() else "is not there any more"
        raise JobFailure(
            f"{path}: the directory of prototype {directory.name} {there}; train it again, or choose another"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise JobFailure(
            f"{path}: {MODEL_FILE} of prototype {directory.name} cannot be read; train it again, or choose another"
        ) from error


def _load(path: str, directory: pathlib.Path, writer: Writer, device: str) -> Decoder:
    model = build(writer.spec, device=device)
    try:
        load_weights(directory, model)
    except (ValueError, OSError) as error:
        raise JobFailure(
            f"{path}: prototype {directory.name} has no weights that can be read ({error}); train it again, or choose "
            "another"
        ) from error
    return model.eval()


@dataclass
class _Text:
    """One text that is written, and how long it has taken by itself."""

    job: str
    draft: str | None
    writer: Writer
    speculation: Speculation | None
    steps: Iterator[tuple[GeneratedStep, bool | None]]
    piece: Callable[[int], str]
    count: int = 0
    seconds: float = 0.0
    first_seconds: float | None = None
    log_probability: float = 0.0
    pieces: list[str] = field(default_factory=list)

    def next_token(self, index: int) -> Token | None:
        """The next token, or ``None`` at the end."""
        started = time.perf_counter()
        made = next(self.steps, None)
        if made is None:
            return None
        step, is_proposed = made
        token, probability = int(step.tokens[0]), float(step.probabilities[0])
        self.seconds += time.perf_counter() - started
        if self.first_seconds is None:
            self.first_seconds = self.seconds
        # Of a token that was drawn, so at least the least positive number.
        self.log_probability += math.log(max(probability, math.ulp(0.0)))
        self.pieces.append(self.piece(token))
        self.count += 1
        labels = self.writer.vocabulary.labels
        likeliest = zip(step.alternatives[0].tolist(), step.alternative_probabilities[0].tolist(), strict=True)
        return Token(
            text=index,
            position=self.count - 1,
            token=token,
            piece=self.pieces[-1],
            label=labels[token],
            probability=probability,
            sampling_probability=float(step.sampling_probabilities[0]),
            alternatives=[[labels[other], share] for other, share in likeliest],
            is_proposed=is_proposed,
            log_probability=self.log_probability,
            tokens_per_second=self.count / self.seconds,
        )

    def values(self) -> dict[str, Any]:
        """What is stored of it."""
        speculation = self.speculation
        return {
            "prototype": self.job,
            "draft": self.draft,
            "name": self.writer.name,
            "parameters": size(self.writer.spec).parameters.total,
            "text": "".join(self.pieces),
            "tokens": self.count,
            "seconds": self.seconds,
            "first_token_seconds": self.first_seconds,
            "tokens_per_second": self.count / self.seconds,
            "log_probability": self.log_probability,
            "acceptance_rate": None if speculation is None else speculation.acceptance_rate,
            "tokens_per_pass": None if speculation is None else speculation.tokens_per_pass,
        }


def run(spec: ArchitectureSpec, plan: GeneratePlan, context: JobContext) -> Iterator[Event]:
    """Generate all texts, token by token in turn; the specification is not read: each prototype has its own."""
    total = len(plan.texts) * plan.max_new_tokens
    yield Progress(0, total, "tokens", "· loading the weights")
    jobs = context.directory.parent
    # Each once, though it may write two texts.
    paths = {**({} if plan.draft is None else {plan.draft: "draft"}), **dict.fromkeys(plan.prototypes, "prototypes")}
    writers = {job: read_model(path, jobs / job) for job, path in paths.items()}
    draft = None if plan.draft is None else writers[plan.draft]
    prompt = read_prompt(plan, [writers[job] for job in plan.prototypes], draft)
    device = default_device()
    environment = describe(device)
    models = {job: _load(path, jobs / job, writers[job], device) for job, path in paths.items()}
    tokens = torch.tensor(prompt, device=device)
    texts = [_text(plan, job, draft_job, writers[job], models, tokens) for job, draft_job in plan.texts]
    done, open_texts = 0, set(range(len(texts)))
    try:
        while open_texts:
            for index in sorted(open_texts):
                event = texts[index].next_token(index)
                if event is None:
                    open_texts.remove(index)
                    continue
                yield event
                done += 1
                if done % PROGRESS_EVERY == 0:
                    yield Progress(done, total, "tokens")
    except ArithmeticError as error:
        raise JobFailure(f"prototypes: {texts[index].writer.name}: {error}; its training has diverged") from error
    yield Progress(total, total, "tokens")
    for text in texts:
        assisted = "" if text.draft is None else f" with the proposals of {writers[text.draft].name}"
        yield Log(f"{text.writer.name}{assisted}: {text.count:,} tokens in {text.seconds:.3g} s")
    values = {"prompt": plan.prompt, "prompt_tokens": len(prompt), "texts": [text.values() for text in texts]}
    yield Result("generate", values, environment)


def _text(
    plan: GeneratePlan, job: str, draft: str | None, writer: Writer, models: dict[str, Decoder], prompt: torch.Tensor
) -> _Text:
    sampling = Sampling(plan.temperature, plan.top_k, plan.top_p, plan.min_p, plan.seed)
    alternatives = min(ALTERNATIVES, writer.spec.vocab_size)
    piece = writer.vocabulary.pieces()
    if draft is None:
        plain = models[job].stream(prompt[None], plan.max_new_tokens, sampling, alternatives=alternatives)
        return _Text(job, None, writer, None, ((step, None) for step in plain), piece)
    speculation = Speculation(
        models[job],
        models[draft],
        prompt[None],
        plan.max_new_tokens,
        sampling,
        draft_tokens=plan.draft_tokens,
        alternatives=alternatives,
    )
    return _Text(job, draft, writer, speculation, ((made.step, made.is_proposed) for made in speculation), piece)
