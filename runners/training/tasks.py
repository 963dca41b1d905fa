"""Sequences of the tasks in :mod:`planner.tasks`, each a pure function of split, seed and step.

A function here makes ``inputs`` and ``answers`` (batch, positions) of token ids from a random generator. An answer
stands at the position where the model's logits have to give it, and is :data:`~runners.models.decoder.IGNORED_LABEL`
where nothing is asked. Token 0 is the blank where a task has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner import tasks as planned
from planner.tasks import TASKS, TaskName
from runners.models import Decoder
from runners.models.decoder import IGNORED_LABEL

Split = Literal["training", "validation"]
_SPLITS: dict[Split, int] = {"training": 0, "validation": 1}
"""The first word of every random generator's seed: no training sequence is drawn from a validation generator."""
VALIDATION_SEED = 987_654_321
VALIDATION_BATCH = 64
"""Held-out sequences come in batches of so many, whatever the training batch is: all designs see the same."""
FACTS_SEED = 20_240_326
LIKELIER = 0.8
"""Probability of the likelier of the two tokens that follow a context in the n-gram task."""

_Ids = NDArray[np.int64]
_Made = tuple[_Ids, _Ids]


class TaskBatch(NamedTuple):
    """Sequences of a task."""

    inputs: Tensor
    """(batch, positions) of int64."""
    targets: Tensor
    """(batch, positions): what the logits at each position should give; ``IGNORED_LABEL`` where nothing is asked."""
    mask: Tensor
    """(batch, positions) of bool: where something is asked."""


def _nothing_asked(batch: int, length: int) -> _Ids:
    return np.full((batch, length), IGNORED_LABEL, dtype=np.int64)


def _distinct(random: np.random.Generator, batch: int, among: int, count: int) -> _Ids:
    """``count`` different numbers below ``among`` a row, in random order."""
    return random.random((batch, among)).argsort(1)[:, :count]


def _recall(random: np.random.Generator, batch: int, length: int, pairs: int) -> _Made:
    """Blank 0, keys from 1, values after the keys; queries at even odds anywhere behind the pairs."""
    keys = planned.recall_keys(pairs)
    key = 1 + _distinct(random, batch, keys, pairs)
    value = 1 + keys + random.integers(0, keys, (batch, pairs))
    inputs, answers = np.zeros((batch, length), dtype=np.int64), _nothing_asked(batch, length)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = key, value
    place = 2 * pairs + _distinct(random, batch, length - 2 * pairs, pairs)
    np.put_along_axis(inputs, place, key, 1)
    np.put_along_axis(answers, place, value, 1)
    return inputs, answers


def _selective_copying(random: np.random.Generator, batch: int, length: int, symbols: int) -> _Made:
    """Blank 0, marker 1, symbols from 2."""
    symbol = 2 + random.integers(0, planned.COPIED_SYMBOLS, (batch, symbols))
    inputs, answers = np.zeros((batch, length), dtype=np.int64), _nothing_asked(batch, length)
    place = np.sort(_distinct(random, batch, length - symbols, symbols), 1)
    np.put_along_axis(inputs, place, symbol, 1)
    inputs[:, -symbols:], answers[:, -symbols:] = 1, symbol
    return inputs, answers


def _induction_heads(random: np.random.Generator, batch: int, length: int, special: int) -> _Made:
    """Special tokens from 0, the others after them; no two special ones side by side."""
    inputs = special + random.integers(0, planned.INDUCTION_SYMBOLS, (batch, length))
    order = _distinct(random, batch, special, special)
    place = np.sort(_distinct(random, batch, length - 1 - special, special), 1) + np.arange(special)
    np.put_along_axis(inputs, place, order, 1)
    asked = random.integers(0, special, (batch, 1))
    inputs[:, -1:] = np.take_along_axis(order, asked, 1)
    answers = _nothing_asked(batch, length)
    answers[:, -1:] = np.take_along_axis(inputs, np.take_along_axis(place, asked, 1) + 1, 1)
    return inputs, answers


def _ngram(random: np.random.Generator, batch: int, length: int, n: int) -> _Made:
    """After each n − 1 tokens one of two tokens may come; of equally frequent followers the latest is the answer."""
    symbols = planned.NGRAM_SYMBOLS
    contexts = symbols ** (n - 1)
    likely = random.integers(0, symbols, (batch, contexts))
    follower = np.stack((likely, (likely + random.integers(1, symbols, (batch, contexts))) % symbols), -1)
    rarer = (random.random((batch, length)) >= LIKELIER).astype(np.int64)
    inputs, answers = random.integers(0, symbols, (batch, length)), _nothing_asked(batch, length)
    rows = np.arange(batch)
    count = np.zeros((batch, contexts, symbols), dtype=np.int64)
    latest = np.zeros((batch, contexts, symbols), dtype=np.int64)
    weights = symbols ** np.arange(n - 1)
    for position in range(n - 2, length):
        context = inputs[:, position - n + 2 : position + 1] @ weights
        seen = count[rows, context]
        best = (seen * (length + 1) + latest[rows, context]).argmax(1)
        answers[:, position] = np.where(seen.any(1), best, IGNORED_LABEL)
        if position + 1 < length:
            token = follower[rows, context, rarer[:, position + 1]]
            inputs[:, position + 1] = token
            count[rows, context, token] += 1
            latest[rows, context, token] = position
    return inputs, answers


def facts(count: int) -> _Made:
    """The keys (facts, 2) and values (facts,) of the memorisation task: the same for every seed."""
    random = np.random.default_rng([FACTS_SEED, count])
    pair = random.permutation(planned.FACT_SYMBOLS**2)[:count]
    key = 1 + np.stack((pair // planned.FACT_SYMBOLS, planned.FACT_SYMBOLS + pair % planned.FACT_SYMBOLS), 1)
    value = 1 + 2 * planned.FACT_SYMBOLS + random.integers(0, planned.FACT_VALUES, count)
    return key, value


def _memorisation(random: np.random.Generator, batch: int, length: int, count: int) -> _Made:
    """Blank 0, then the tokens of a key's first half, of its second half, and the values."""
    key, value = facts(count)
    chosen = random.integers(0, count, (batch, length // 2))
    inputs, answers = np.zeros((batch, length), dtype=np.int64), _nothing_asked(batch, length)
    end = length // 2 * 2
    inputs[:, :end] = key[chosen].reshape(batch, end)
    answers[:, 1:end:2] = value[chosen]
    return inputs, answers


def _needle(random: np.random.Generator, batch: int, length: int, tokens: int) -> _Made:
    """Marker 0, text from 1; the needle is recited with its own tokens as further input."""
    inputs, answers = 1 + random.integers(0, planned.HAYSTACK_SYMBOLS, (batch, length)), _nothing_asked(batch, length)
    place = random.integers(0, length - 2 * tokens, (batch, 1))
    np.put_along_axis(inputs, place, 0, 1)
    needle = np.take_along_axis(inputs, place + 1 + np.arange(tokens), 1)
    inputs[:, length - tokens] = 0
    inputs[:, length - tokens + 1 :] = needle[:, :-1]
    answers[:, -tokens:] = needle
    return inputs, answers


def _repeated(
    one: Callable[[np.random.Generator, int, int], _Made],
    random: np.random.Generator,
    batch: int,
    length: int,
    size: int,
) -> _Made:
    """As many instances of ``2 · size + 1`` tokens as fit, one after the other, and blanks behind them."""
    inputs, answers = np.zeros((batch, length), dtype=np.int64), _nothing_asked(batch, length)
    whole = 2 * size + 1
    for start in range(0, length - whole + 1, whole):
        inputs[:, start : start + whole], answers[:, start : start + whole] = one(random, batch, size)
    return inputs, answers


def _sorted_once(random: np.random.Generator, batch: int, numbers: int) -> _Made:
    """Separator 1, numbers from 2 in their order; each is written with those before it as input."""
    number = 2 + random.integers(0, planned.SORTED_NUMBERS, (batch, numbers))
    ordered = np.sort(number, 1)
    answers = _nothing_asked(batch, 2 * numbers + 1)
    answers[:, numbers:-1] = ordered
    return np.concatenate((number, np.ones((batch, 1), dtype=np.int64), ordered), 1), answers


def _compressed_once(random: np.random.Generator, batch: int, symbols: int) -> _Made:
    """Marker 1, symbols from 2, then a token for each place."""
    symbol = 2 + random.integers(0, planned.COMPRESSED_SYMBOLS, (batch, symbols))
    place = _distinct(random, batch, symbols, symbols)
    answers = _nothing_asked(batch, 2 * symbols + 1)
    answers[:, symbols + 1 :] = np.take_along_axis(symbol, place, 1)
    asked = 2 + planned.COMPRESSED_SYMBOLS + place
    return np.concatenate((symbol, np.ones((batch, 1), dtype=np.int64), asked), 1), answers


def _sorting(random: np.random.Generator, batch: int, length: int, numbers: int) -> _Made:
    return _repeated(_sorted_once, random, batch, length, numbers)


def _compression(random: np.random.Generator, batch: int, length: int, symbols: int) -> _Made:
    return _repeated(_compressed_once, random, batch, length, symbols)


_MAKERS: dict[TaskName, Callable[[np.random.Generator, int, int, int], _Made]] = {
    "multi_query_associative_recall": _recall,
    "selective_copying": _selective_copying,
    "induction_heads": _induction_heads,
    "in_context_ngram": _ngram,
    "memorisation": _memorisation,
    "needle_at_depth": _needle,
    "sorting": _sorting,
    "compression": _compression,
}


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task at one difficulty and length, to train and validate on. ``PrototypePlan`` has checked that they fit."""

    name: TaskName
    difficulty: int
    sequence_length: int

    def batch(self, split: Split, seed: int, step: int, batch_size: int) -> TaskBatch:
        """Sequences drawn by split, seed and step alone: a resumed run sees the same."""
        random = np.random.default_rng([_SPLITS[split], seed, step])
        inputs, answers = _MAKERS[self.name](random, batch_size, self.sequence_length, self.difficulty)
        targets = torch.from_numpy(answers)
        return TaskBatch(torch.from_numpy(inputs), targets, targets != IGNORED_LABEL)

    def held_out(self, index: int) -> TaskBatch:
        """Batch ``index`` of the sequences to validate on: the same for every design and every plan's seed."""
        return self.batch("validation", VALIDATION_SEED, index, VALIDATION_BATCH)

    @property
    def description(self) -> str:
        """The task for people."""
        task = TASKS[self.name]
        return f"{self.name.replace('_', ' ')} ({task.source}), difficulty {self.difficulty:,} {task.difficulty}"

    @property
    def digest(self) -> str:
        """SHA-256 over the first held-out batch: other sequences have another."""
        first = self.held_out(0)
        return hashlib.sha256(first.inputs.numpy().tobytes() + first.targets.numpy().tobytes()).hexdigest()

    def depth(self, inputs: Tensor) -> Tensor | None:
        """Where the needle stands, (batch,) from 0 (first) to 1 (last place that it can have); else ``None``."""
        if self.name != "needle_at_depth":
            return None
        places = self.sequence_length - 2 * self.difficulty
        return (inputs == 0).long().argmax(1) / max(1, places - 1)


def answer_loss(model: Decoder, batch: TaskBatch) -> Tensor:
    """Mean cross-entropy over the answers, in nats."""
    return model.loss(batch.inputs, batch.targets)


DEPTHS = 4
"""Parts of the depth that a needle's accuracy is given for."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How often the likeliest token was the answer, on sequences that were not trained on."""

    sequences: int
    answers: int
    accuracy: float
    """Share of the answers."""
    whole_sequences: float
    """Share of the sequences with every answer right."""
    by_depth: tuple[float | None, ...] | None
    """Accuracy by quarter of the needle's depth, ``None`` of a quarter without needles; for other tasks ``None``."""


@torch.no_grad()
def measure(model: Decoder, data: TaskData, batches: int, batch_size: int, device: str) -> HeldOut:
    """Accuracy on the first ``batches`` of held-out sequences, read ``batch_size`` at a time."""
    right, asked, depth = [], [], []
    for index in range(batches):
        batch = data.held_out(index)
        found = torch.cat([model(part.to(device)).logits.argmax(-1).cpu() for part in batch.inputs.split(batch_size)])
        right.append(((found == batch.targets) & batch.mask).sum(1))
        asked.append(batch.mask.sum(1))
        depth.append(data.depth(batch.inputs))
    correct, answers = torch.cat(right), torch.cat(asked)
    by_depth = None
    depths = [part for part in depth if part is not None]
    if depths:
        quarter = (torch.cat(depths) * DEPTHS).long().clamp(max=DEPTHS - 1)
        inside = [quarter == index for index in range(DEPTHS)]
        by_depth = tuple(
            int(correct[rows].sum()) / int(answers[rows].sum()) if bool(rows.any()) else None for rows in inside
        )
    return HeldOut(
        sequences=len(answers),
        answers=int(answers.sum()),
        accuracy=int(correct.sum()) / int(answers.sum()),
        whole_sequences=float((correct == answers).double().mean()),
        by_depth=by_depth,
    )
