"""Every task's answers again, by solvers in plain Python that know its words and not its generator."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import pytest
import torch

from planner import PrototypePlan, UnsupportedPlan, load, parse_plan, parse_spec
from planner.tasks import TASKS, TaskName
from runners.events import Metric, Result
from runners.jobs import prototype
from runners.jobs.base import JobContext
from runners.models import build
from runners.training.loop import Trainer, TrainingSettings
from runners.training.tasks import TaskBatch, TaskData, facts, measure

Answers = dict[int, int]
"""What is to be answered, by position."""


def recall(tokens: Sequence[int], pairs: int) -> Answers:
    known = {tokens[2 * index]: tokens[2 * index + 1] for index in range(pairs)}
    assert len(known) == pairs
    asked = [position for position in range(2 * pairs, len(tokens)) if tokens[position]]
    assert sorted(tokens[position] for position in asked) == sorted(known)
    return {position: known[tokens[position]] for position in asked}


def selective_copying(tokens: Sequence[int], symbols: int) -> Answers:
    kept = [token for token in tokens if token > 1]
    assert len(kept) == symbols
    assert list(tokens[-symbols:]) == [1] * symbols
    return {len(tokens) - symbols + index: token for index, token in enumerate(kept)}


def induction_heads(tokens: Sequence[int], special: int) -> Answers:
    assert sorted(token for token in tokens[:-1] if token < special) == list(range(special))
    answer = tokens[list(tokens).index(tokens[-1]) + 1]
    assert answer >= special
    return {len(tokens) - 1: answer}


def in_context_ngram(tokens: Sequence[int], n: int) -> Answers:
    answers = {}
    for position in range(n - 2, len(tokens)):
        context = list(tokens[position - n + 2 : position + 1])
        before = [
            tokens[other + 1] for other in range(n - 2, position) if list(tokens[other - n + 2 : other + 1]) == context
        ]
        if before:
            counts = collections.Counter(before)
            most = max(counts.values())
            answers[position] = next(token for token in reversed(before) if counts[token] == most)
    return answers


def memorisation(tokens: Sequence[int], count: int) -> Answers:
    keys, values = facts(count)
    known = {tuple(key): value for key, value in zip(keys.tolist(), values.tolist(), strict=True)}
    assert len(known) == count
    return {position: known[tokens[position - 1], tokens[position]] for position in range(1, len(tokens), 2)}


def needle_at_depth(tokens: Sequence[int], length: int) -> Answers:
    first, second = (position for position, token in enumerate(tokens) if token == 0)
    assert second == len(tokens) - length
    needle = tokens[first + 1 : first + 1 + length]
    assert list(tokens[second + 1 :]) == list(needle[:-1])
    return {second + index: token for index, token in enumerate(needle)}


def instances(tokens: Sequence[int], size: int) -> list[int]:
    """Where the separators stand."""
    found = [position for position, token in enumerate(tokens) if token == 1]
    assert len(found) == len(tokens) // (2 * size + 1)
    return found


def sorting(tokens: Sequence[int], numbers: int) -> Answers:
    answers = {}
    for separator in instances(tokens, numbers):
        ordered = sorted(tokens[separator - numbers : separator])
        assert list(tokens[separator + 1 : separator + 1 + numbers]) == ordered
        answers |= {separator + index: number for index, number in enumerate(ordered)}
    return answers


def compression(tokens: Sequence[int], symbols: int) -> Answers:
    answers = {}
    for marker in instances(tokens, symbols):
        places = [token - 18 for token in tokens[marker + 1 : marker + 1 + symbols]]
        assert sorted(places) == list(range(symbols))
        answers |= {marker + 1 + index: tokens[marker - symbols + place] for index, place in enumerate(places)}
    return answers


SOLVERS: dict[TaskName, Callable[[Sequence[int], int], Answers]] = {
    "multi_query_associative_recall": recall,
    "selective_copying": selective_copying,
    "induction_heads": induction_heads,
    "in_context_ngram": in_context_ngram,
    "memorisation": memorisation,
    "needle_at_depth": needle_at_depth,
    "sorting": sorting,
    "compression": compression,
}
CASES: list[tuple[TaskName, int, int, int]] = [
    # difficulty, length, and the vocabulary: blank, markers, symbols
    ("multi_query_associative_recall", 1, 3, 1 + 64 + 64),
    ("multi_query_associative_recall", 8, 40, 1 + 64 + 64),
    ("multi_query_associative_recall", 50, 150, 1 + 100 + 100),
    ("selective_copying", 1, 2, 16),
    ("selective_copying", 16, 64, 16),
    ("induction_heads", 1, 3, 16),
    ("induction_heads", 1, 256, 16),
    ("induction_heads", 6, 13, 21),
    ("in_context_ngram", 2, 9, 8),
    ("in_context_ngram", 3, 90, 8),
    ("in_context_ngram", 4, 515, 8),
    ("memorisation", 1, 2, 1 + 64 + 64 + 16),
    ("memorisation", 4096, 60, 1 + 64 + 64 + 16),
    ("needle_at_depth", 1, 3, 33),
    ("needle_at_depth", 4, 64, 33),
    ("sorting", 2, 5, 66),
    ("sorting", 8, 60, 66),
    ("compression", 2, 5, 2 + 16 + 2),
    ("compression", 16, 70, 2 + 16 + 16),
]


def test_every_task_is_solved_here() -> None:
    assert set(SOLVERS) == set(TASKS) == set(get_args(TaskName)) == {name for name, *_ in CASES}


@pytest.mark.parametrize("name, difficulty, length, vocabulary", CASES)
def test_targets_are_what_an_independent_solver_finds(
    name: TaskName, difficulty: int, length: int, vocabulary: int
) -> None:
    batch = TaskData(name, difficulty, length).batch("training", 3, 5, 16)
    assert [part.shape for part in batch] == [(16, length)] * 3
    assert [part.dtype for part in batch] == [torch.int64, torch.int64, torch.bool]
    for row in range(16):
        expected = SOLVERS[name](batch.inputs[row].tolist(), difficulty)
        assert expected
        asked = batch.mask[row].nonzero()[:, 0].tolist()
        assert {position: int(batch.targets[row, position]) for position in asked} == expected
    assert set(batch.targets[~batch.mask].tolist()) <= {-100}
    used = torch.cat((batch.inputs.flatten(), batch.targets[batch.mask]))
    assert TASKS[name].vocab_size(difficulty) == vocabulary
    assert 0 <= int(used.min()) <= int(used.max()) < vocabulary


@pytest.mark.parametrize("name", TASKS)
def test_symbols_are_all_used_and_answers_as_many_as_is_said(name: TaskName) -> None:
    """The vocabulary has no token that never comes (but the blank), and guessing is right as often as it is said."""
    task = TASKS[name]
    difficulty = task.most if name == "memorisation" else task.default  # fewer facts may leave a token out
    data = TaskData(name, difficulty, max(64, task.shortest(difficulty)) + 1)
    batches = [data.batch("training", 0, step, 256) for step in range(8)]
    asked = torch.cat([batch.targets[batch.mask] for batch in batches])
    used = set(torch.cat([batch.inputs.flatten() for batch in batches]).tolist()) | set(asked.tolist())
    assert used | {0} == set(range(task.vocab_size(difficulty)))
    assert len(set(asked.tolist())) == task.answers(difficulty)


@pytest.mark.parametrize("name", TASKS)
def test_sequences_are_a_function_of_split_seed_and_step(name: TaskName) -> None:
    task = TASKS[name]
    data = TaskData(name, task.default, task.shortest(task.default) + 24)
    first = data.batch("training", 1, 7, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, data.batch("training", 1, 7, 8), strict=True))
    for other in (data.batch("training", 2, 7, 8), data.batch("training", 1, 8, 8), data.batch("validation", 1, 7, 8)):
        assert not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_sequence_is_trained_on(name: TaskName) -> None:
    """Not even under a training seed that is the one of validation."""
    task = TASKS[name]
    data = TaskData(name, task.default, task.shortest(task.default) + 24)
    held_out = {tuple(row) for index in range(4) for row in data.held_out(index).inputs.tolist()}
    assert len(held_out) == 4 * 64
    trained = {
        tuple(row)
        for seed in (0, 987_654_321)
        for step in range(8)
        for row in data.batch("training", seed, step, 64)[0].tolist()
    }
    assert not held_out & trained


def test_facts_are_those_of_every_seed_and_split() -> None:
    data = TaskData("memorisation", 8, 80)
    seen: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
    for batch in (data.batch("training", 0, 0, 64), data.batch("training", 9, 3, 64), data.held_out(0)):
        for tokens, answers in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            for position in range(1, 80, 2):
                seen[tokens[position - 1], tokens[position]].add(answers[position])
    assert len(seen) == 8
    assert {len(values) for values in seen.values()} == {1}


class Oracle(torch.nn.Module):
    """Logits that are right up to a place of the needle, and wrong behind it."""

    def __init__(self, right_up_to: int) -> None:
        super().__init__()
        self.right_up_to = right_up_to

    def forward(self, inputs: torch.Tensor) -> Any:
        logits = torch.zeros(*inputs.shape, 33)
        for row, tokens in enumerate(inputs.tolist()):
            for position, answer in needle_at_depth(tokens, 2).items():
                wrong = tokens.index(0) > self.right_up_to
                logits[row, position, (answer + 1) % 33 if wrong else answer] = 1
        return type("Output", (), {"logits": logits})


def test_accuracy_is_counted_by_depth() -> None:
    """Of the needle's 40 places the first 15 are answered: all of a quarter, half of the next."""
    data = TaskData("needle_at_depth", 2, 44)
    found = measure(Oracle(14), data, 16, 10, "cpu")  # type: ignore[arg-type]
    places = [row.index(0) for index in range(16) for row in data.held_out(index).inputs.tolist()]
    assert (min(places), max(places)) == (0, 39)
    assert found.answers == 2 * found.sequences == 2 * 16 * 64
    assert found.accuracy == found.whole_sequences == sum(place <= 14 for place in places) / len(places)
    assert found.by_depth is not None
    second = [place for place in places if 39 / 4 <= place < 39 / 2]
    assert found.by_depth == (1.0, sum(place <= 14 for place in second) / len(second), 0.0, 0.0)


@pytest.mark.parametrize(
    "fields, path, message",
    [
        ({"task": "chess"}, "task", "multi_query_associative_recall"),
        ({"difficulty": 4}, "difficulty", "no difficulty"),
        ({"task": "sorting", "data": "/a/file"}, "data", "its own sequences"),
        ({"task": "sorting", "difficulty": 1}, "difficulty", "from 2 to 1,024"),
        ({"task": "sorting", "difficulty": 0}, "difficulty", "greater than 0"),
        ({"task": "in_context_ngram", "difficulty": 5}, "difficulty", "from 2 to 4"),
        ({"task": "sorting", "difficulty": 8, "sequence_length": 16}, "sequence_length", "needs 17 positions, not 16"),
        ({"task": "selective_copying", "sequence_length": 31}, "sequence_length", "at least 32"),
    ],
)
def test_a_task_that_cannot_be_is_refused_at_its_field(fields: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(UnsupportedPlan, match=message) as refused:
        parse_plan(PrototypePlan, fields)
    assert refused.value.path == path


def test_a_plan_takes_the_tasks_vocabulary() -> None:
    plan = parse_plan(PrototypePlan, {"task": "sorting", "difficulty": 8, "sequence_length": 17})
    assert (plan.task_difficulty, plan.vocab_size) == (8, 66)
    assert parse_plan(PrototypePlan, {"task": "compression"}).task_difficulty == 16
    assert PrototypePlan().vocab_size == 256


def test_a_prototype_says_how_well_it_does_its_task(tmp_path: pathlib.Path) -> None:
    """The accuracy of the result again, from the weights that it leaves, with the answers of the solver above."""
    from safetensors.torch import load_file

    plan = PrototypePlan(
        parameter_budget=50_000, steps=4, batch_size=6, sequence_length=24, evaluate_every=2, task="memorisation",
        difficulty=4, learning_rate=1e-2, warmup_steps=1,
    )  # fmt: skip
    events = list(prototype.run(load("gpt2"), plan, JobContext(tmp_path)))
    (result,) = [event for event in events if isinstance(event, Result)]
    values = result.values
    assert values["spec"]["vocab_size"] == 145
    assert values["bits_per_byte"] is None
    assert values["samples"] == []
    task = values["task"]
    assert (task["name"], task["difficulty"], task["guessing"]) == ("memorisation", 4, 1 / 16)
    model = build(parse_spec(values["spec"]))
    model.load_state_dict(load_file(tmp_path / "checkpoint" / "model.safetensors"), strict=False)
    right = asked = 0
    for index in range(8):
        batch: TaskBatch = TaskData("memorisation", 4, 24).held_out(index)
        with torch.autocast("cpu", torch.bfloat16, enabled=values["precision"] == "bf16 autocast"):
            found = torch.cat([model(part).logits.argmax(-1) for part in batch.inputs.split(6)])
        for tokens, said in zip(batch.inputs.tolist(), found.tolist(), strict=True):
            answers = memorisation(tokens, 4)
            asked += len(answers)
            right += sum(said[position] == answer for position, answer in answers.items())
    assert task["answers"] == asked == 8 * 64 * 12
    assert values["accuracy"] == right / asked
    metrics = {event.step: event.value for event in events if isinstance(event, Metric) and event.name == "accuracy"}
    assert set(metrics) == {1, 3}
    assert not [event for event in events if isinstance(event, Metric) and event.name == "bits_per_byte"]


DELTA_RULE = {
    "kind": "gated_delta_net",
    "num_key_heads": 2,
    "num_value_heads": 2,
    "value_head_dim": 32,
    "conv_kernel": 1,
}
MIXERS: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32},
    "wide state": {**DELTA_RULE, "key_head_dim": 32, "chunk_size": 16},
    "small state": {**DELTA_RULE, "key_head_dim": 2, "chunk_size": 16},
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices this small are multiplied no faster by several threads, and on a busy machine much slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def accuracy_of(mixers: Sequence[str], task: TaskName, difficulty: int, steps: int, folder: pathlib.Path) -> float:
    """Of a small model on 16 positions: a convolution over neighbours, then the mixers, and one MLP at the end."""
    layers: list[dict[str, Any]] = [{"sequence_mixer": {"kind": "short_convolution"}}]
    layers += [{"sequence_mixer": MIXERS[name]} for name in mixers]
    layers[-1]["channel_mixer"] = {"kind": "mlp", "intermediate_size": 128}
    spec = {
        "vocab_size": TASKS[task].vocab_size(difficulty),
        "hidden_size": 64,
        "positions": {"kind": "none"},
        "layer_groups": [{"layers": layers}],
    }
    settings = TrainingSettings(
        steps=steps, batch_size=64, sequence_length=16, peak_rate=5e-3, warmup_steps=50, weight_decay=0.1,
        gradient_clip=1.0, seed=0, evaluate_every=steps, checkpoint_every=steps, bf16=False, device="cpu",
    )  # fmt: skip
    trainer = Trainer(build(parse_spec(spec)), TaskData(task, difficulty, 16), settings, folder)
    for _ in trainer.run():
        pass
    return trainer.held_out(8).accuracy


HYBRID = ("small state", "attention")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_thread")
def test_attention_recalls_what_a_small_state_cannot_hold_and_a_hybrid_does(tmp_path: pathlib.Path) -> None:
    """Recall of four pairs, as in arXiv:2312.04927: one model but for its mixers, behind a convolution over neighbours.

    A head whose state has two channels for keys cannot hold four apart; with as many channels as attention it can.
    """
    task: TaskName = "multi_query_associative_recall"
    found = {
        names: accuracy_of(names, task, 4, 400, tmp_path / "-".join(names))
        for names in (("attention",), ("wide state",), ("small state",), HYBRID)
    }
    assert found["attention",] > 0.9
    assert found["wide state",] > 0.7
    assert found["small state",] < 0.5
    assert found[HYBRID] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_thread")
def test_a_state_copies_in_order_where_attention_without_positions_does_not_and_a_hybrid_does(
    tmp_path: pathlib.Path,
) -> None:
    """Selective copying of four symbols (arXiv:2312.00752, section 4.1.1): what came first is to be written first.

    A state knows how much has passed; attention without positions only which symbols there are.
    """
    found = {
        names: accuracy_of(names, "selective_copying", 4, 300, tmp_path / "-".join(names))
        for names in (("attention",), ("small state",), HYBRID)
    }
    assert found["attention",] < 0.65
    assert found["small state",] > 0.75
    assert found[HYBRID] > 0.85
