"""Stored prototypes that go on with a prompt: what streams is what the models say; what cannot go on is refused."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planner import GeneratePlan, UnsupportedPlan, parse_spec
from planner.tasks import TASKS
from planner.vocabulary import vocabulary
from runners.events import Event, Log, Progress, Result, Token, from_json, to_json
from runners.jobs import generate
from runners.jobs.base import JobContext, JobFailure
from runners.models import Decoder, build
from runners.training.tasks import TaskData

ATTENTION = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
STATE = {"kind": "mamba2", "num_heads": 2, "head_dim": 4, "state_size": 4, "n_groups": 1, "conv_kernel": 2}
FIRST, SECOND, ABSENT = "a" * 16, "b" * 16, "c" * 16


def stored(
    jobs: pathlib.Path, job: str, mixer: dict[str, Any], task: Any = None, difficulty: int = 0, **fields: Any
) -> Decoder:
    """A prototype as its job leaves it: weights, a state, and what they are of."""
    words = vocabulary(task, difficulty)
    layer_groups = [{"repeats": 1, "layers": [{"sequence_mixer": mixer}]}]
    data = {"name": f"model {job[0]}", "vocab_size": len(words.labels), "hidden_size": 8, "layer_groups": layer_groups}
    model = build(parse_spec({**data, **fields}), seed=ord(job[0]))
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
    folder = jobs / job
    (folder / "checkpoint").mkdir(parents=True)
    generate.describe_model(folder, model.spec, task, difficulty)
    save_file(dict(model.named_parameters()), folder / "checkpoint" / "model.safetensors")
    (folder / "checkpoint" / "state.json").write_text("{}")
    return model


def said(jobs: pathlib.Path, **plan: Any) -> list[Event]:
    directory = jobs / ("e" * 16)
    directory.mkdir(exist_ok=True)
    made = generate.run(parse_spec(GENERIC), GeneratePlan(**plan), JobContext(directory))
    events = [from_json(to_json(event)) for event in made]
    assert isinstance(events[0], Progress)
    return events


GENERIC: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 8,
    "layer_groups": [{"repeats": 1, "layers": [{"sequence_mixer": ATTENTION}]}],
}


def test_texts_stand_side_by_side_with_the_probabilities_of_their_models(tmp_path: pathlib.Path) -> None:
    models = [stored(tmp_path, FIRST, ATTENTION), stored(tmp_path, SECOND, STATE)]
    events = said(tmp_path, prototypes=(FIRST, SECOND), prompt="def é", max_new_tokens=9, temperature=0)
    tokens = [event for event in events if isinstance(event, Token)]
    assert [(token.text, token.position) for token in tokens] == [(t, p) for p in range(9) for t in (0, 1)]
    (result,) = [event for event in events if isinstance(event, Result)]
    prompt = list("def é".encode())
    for index, model in enumerate(models):
        own = [token for token in tokens if token.text == index]
        text = torch.tensor([prompt + [token.token for token in own]])
        with torch.no_grad():
            shares = model(text).logits[0, len(prompt) - 1 : -1].double().softmax(-1)
        assert [token.token for token in own] == shares.argmax(-1).tolist()
        for token, row in zip(own, shares, strict=True):
            assert token.probability == pytest.approx(float(row.max()), rel=1e-4)
            assert token.alternatives[0] == [token.label, token.probability]
            assert len(token.alternatives) == 5
            assert token.is_proposed is None
        values = result.values["texts"][index]
        assert values["tokens"] == 9
        expected = float(shares.max(-1).values.log().sum())
        assert values["log_probability"] == pytest.approx(expected, rel=1e-4)
        assert own[-1].log_probability == values["log_probability"]
        assert own[-1].tokens_per_second == values["tokens_per_second"] == 9 / values["seconds"]
        assert values["text"] == bytes(token.token for token in own).decode("utf-8", "replace") or "�" in values["text"]
        assert values["acceptance_rate"] is None


def test_a_draft_writes_one_more_text_which_is_that_of_its_target(tmp_path: pathlib.Path) -> None:
    stored(tmp_path, FIRST, ATTENTION)
    stored(tmp_path, SECOND, STATE)
    events = said(tmp_path, prototypes=(FIRST,), draft=SECOND, prompt="x", max_new_tokens=12, temperature=0)
    plain, assisted = ([e for e in events if isinstance(e, Token) and e.text == text] for text in (0, 1))
    assert [token.token for token in plain] == [token.token for token in assisted]
    assert all(isinstance(token.is_proposed, bool) for token in assisted)
    (result,) = [event for event in events if isinstance(event, Result)]
    assert result.values["texts"][1]["draft"] == SECOND
    assert 1 <= result.values["texts"][1]["tokens_per_pass"] <= 5
    (line,) = [event.message for event in events if isinstance(event, Log) and "proposals" in event.message]
    assert "model a with the proposals of model b: 12 tokens" in line


def test_a_task_is_prompted_with_its_symbols(tmp_path: pathlib.Path) -> None:
    stored(tmp_path, FIRST, ATTENTION, "sorting", 4)
    events = said(tmp_path, prototypes=(FIRST,), prompt="17 3 5 ?", max_new_tokens=3, temperature=0)
    labels = TASKS["sorting"].symbols(4)
    assert all(t.label == labels[t.token] and t.piece == f" {t.label}" for t in events if isinstance(t, Token))
    with pytest.raises(UnsupportedPlan, match=r"prompt: There is no symbol '64'\. The 66 symbols are _ \? 0 1 2"):
        said(tmp_path, prototypes=(FIRST,), prompt="64 ?")


def test_what_cannot_go_on_is_refused_by_its_field(tmp_path: pathlib.Path) -> None:
    learned = {"positions": {"kind": "learned", "num_positions": 12}}
    stored(tmp_path, FIRST, ATTENTION, **learned)
    stored(tmp_path, SECOND, ATTENTION, "sorting", 4)
    with pytest.raises(UnsupportedPlan) as refused:
        said(tmp_path, prototypes=(FIRST, SECOND), prompt="abc", max_new_tokens=10)
    assert [problem.path for problem in refused.value.problems] == ["prototypes", "max_new_tokens"]
    assert refused.value.problems[1].remedy == "Choose at most 9, or a shorter prompt."
    with pytest.raises(UnsupportedPlan, match="prompt: It has 12 tokens, and model a knows 12 positions"):
        said(tmp_path, prototypes=(FIRST,), prompt="a" * 12, max_new_tokens=1)
    with pytest.raises(UnsupportedPlan) as refused:
        said(tmp_path, prototypes=(FIRST,), draft=SECOND, prompt="abc", max_new_tokens=3)
    assert refused.value.path == "draft"
    with pytest.raises(JobFailure, match=f"prototypes: the directory of prototype {ABSENT} is not there any more"):
        said(tmp_path, prototypes=(ABSENT,), prompt="a")
    shutil.rmtree(tmp_path / FIRST / "checkpoint")
    with pytest.raises(JobFailure, match=f"prototypes: prototype {FIRST} has no weights that can be read"):
        said(tmp_path, prototypes=(FIRST,), prompt="a", max_new_tokens=1)
    (tmp_path / FIRST / "model.json").write_text("{")
    with pytest.raises(JobFailure, match=r"draft: model\.json of prototype a+ cannot be read"):
        said(tmp_path, prototypes=(SECOND,), draft=FIRST, prompt="a")


def test_a_model_that_has_diverged_is_named(tmp_path: pathlib.Path) -> None:
    model = stored(tmp_path, FIRST, ATTENTION)
    with torch.no_grad():
        model.embed_tokens.weight.fill_(math.nan)
    save_file(dict(model.named_parameters()), tmp_path / FIRST / "checkpoint" / "model.safetensors")
    with pytest.raises(JobFailure, match="model a: the model's logits are not numbers"):
        said(tmp_path, prototypes=(FIRST,), prompt="a")


def test_a_prototype_leaves_what_its_weights_are_of(tmp_path: pathlib.Path) -> None:
    spec = parse_spec({**GENERIC, "name": "small"})
    generate.describe_model(tmp_path, spec, "sorting", 4)
    written = json.loads((tmp_path / "model.json").read_text())
    assert parse_spec(written["spec"]).content_hash() == spec.content_hash()
    found = generate.read_model("prototypes", tmp_path)
    assert (found.name, found.spec, found.vocabulary) == ("small", spec, vocabulary("sorting", 4))


@pytest.mark.parametrize("name", TASKS)
def test_every_token_of_a_task_has_a_name_of_its_own(name: Any) -> None:
    """And the sequences that the task makes read as its source describes them."""
    task = TASKS[name]
    for difficulty in {task.least, task.default}:
        labels = task.symbols(difficulty)
        assert len(labels) == task.vocab_size(difficulty) == len(set(labels))
        assert not any(not label or set(label) & set(" \t\n") for label in labels)
    difficulty = task.default
    words = vocabulary(name, difficulty)
    batch = TaskData(name, difficulty, task.shortest(difficulty) + 5).held_out(0)
    read = [[words.labels[token] for token in row] for row in batch.inputs.tolist()]
    answers = [
        {words.labels[token] for token in row.tolist() if token >= 0}
        for row in batch.targets.where(batch.mask, torch.tensor(-1))
    ]
    assert words.encode(" ".join(read[0])) == batch.inputs[0].tolist()
    for sequence, asked in zip(read, answers, strict=True):
        match name:
            case "multi_query_associative_recall":
                assert {word[0] for word in sequence[0 : 2 * difficulty : 2]} == {"k"}
                assert {word[0] for word in sequence[1 : 2 * difficulty : 2]} == {word[0] for word in asked} == {"v"}
            case "selective_copying":
                assert sequence[-difficulty:] == ["?"] * difficulty
                assert {word[0] for word in asked} == {"s"}
            case "induction_heads":
                assert sequence[-1] == "special1"
                assert sequence.count("special1") == 2
            case "memorisation":
                assert [word[0] for word in sequence[:4]] == ["x", "y", "x", "y"]
                assert {word[0] for word in asked} == {"v"}
            case "needle_at_depth":
                assert sequence.count("?") == 2
            case "sorting":
                assert sequence[difficulty] == "?"
                assert sequence[difficulty + 1 : 2 * difficulty + 1] == sorted(sequence[:difficulty], key=int)
            case "compression":
                assert sequence[difficulty] == "?"
                assert {word[0] for word in sequence[difficulty + 1 : 2 * difficulty + 1]} == {"@"}
                assert {word[0] for word in asked} == {"s"}
