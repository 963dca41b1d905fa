"""Schedule, data, checkpoints and the interval of the median, against values from elsewhere."""

from __future__ import annotations

import pathlib
import random

import pytest
import torch

from planner import load
from runners.jobs.base import JobContext
from runners.models import build
from runners.training.checkpoint import Superseded, load_weights
from runners.training.data import NoData, Text, batch, load_text
from runners.training.loop import Diverged, Step, Trainer, TrainingSettings
from runners.training.schedule import learning_rate, peak_rate
from runners.training.timing import median_interval


def test_warm_up_is_linear_and_the_decay_a_cosine_to_a_tenth() -> None:
    rates = [learning_rate(step, 11, 4, 1.0) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[7] == pytest.approx(0.1 + 0.9 * 0.5)  # halfway down the cosine
    assert rates[10] == pytest.approx(0.1)


def test_the_peak_goes_with_one_over_the_width() -> None:
    assert peak_rate(512) == pytest.approx(peak_rate(1024) * 2)


@pytest.fixture(scope="module")
def text() -> Text:
    return load_text("python-stdlib")


def test_training_and_validation_share_no_file(text: Text) -> None:
    """A line of the validation text that is long enough to be a file's own is not in the training text."""
    held_out = bytes(text.validation.tolist())
    trained = bytes(text.training.tolist())
    long_lines = [line for line in held_out.split(b"\n") if len(line) > 90][:200]
    assert long_lines
    assert sum(line in trained for line in long_lines) < len(long_lines) / 10
    assert load_text("python-stdlib").digest == text.digest


def test_a_batch_is_a_function_of_seed_and_step(text: Text) -> None:
    first = batch(text.training, 1, 7, 4, 32)
    assert torch.equal(first, batch(text.training, 1, 7, 4, 32))
    assert not torch.equal(first, batch(text.training, 2, 7, 4, 32))
    assert not torch.equal(first, batch(text.training, 1, 8, 4, 32))


def test_text_that_cannot_be_used_is_refused_by_field(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NoData, match="data:"):
        load_text(str(tmp_path / "nothing"))
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(NoData, match="data:"):
        load_text(str(tmp_path / "short.txt"))
    with pytest.raises(NoData, match="sequence_length:"):
        batch(torch.zeros(10, dtype=torch.uint8), 0, 0, 1, 32)


def trainer(directory: pathlib.Path, text: Text, steps: int, rate: float = 1e-3) -> Trainer:
    settings = TrainingSettings(
        steps=steps,
        batch_size=2,
        sequence_length=24,
        peak_rate=rate,
        warmup_steps=2,
        weight_decay=0.1,
        gradient_clip=1.0,
        seed=0,
        evaluate_every=4,
        checkpoint_every=3,
        bf16=False,
        device="cpu",
    )
    from planner.prototype import scale_down

    spec = scale_down(load("jamba-v0.1"), 150_000, sequence_length=24).spec
    return Trainer(build(spec), text, settings, directory)


def seen(steps: list[Step]) -> list[tuple[int, float, float, float | None]]:
    return [(s.step, s.loss, s.gradient_norm, s.bits_per_byte) for s in steps]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: pathlib.Path, text: Text) -> None:
    """Interrupted after a step beyond its checkpoint, at the same losses, norms and validation to the last bit."""
    whole = seen(list(trainer(tmp_path / "whole", text, 8).run()))
    interrupted = trainer(tmp_path / "parts", text, 8)
    run = interrupted.run()
    before = [next(run) for _ in range(5)]
    run.close()
    again = trainer(tmp_path / "parts", text, 8)
    assert again.resume() == 3
    after = list(again.run())
    assert seen(before[:3]) + seen(after) == whole


def test_the_weights_of_a_checkpoint_are_read_alone_and_into_no_other_model(tmp_path: pathlib.Path, text: Text) -> None:
    trained = trainer(tmp_path, text, 3)
    list(trained.run())
    fresh = build(trained.model.spec, seed=7)
    load_weights(tmp_path, fresh)
    expected = dict(trained.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in fresh.named_parameters())
    other = trained.model.spec.model_copy(update={"vocab_size": 300})
    with pytest.raises(ValueError, match=r"embed_tokens\.weight differs"):
        load_weights(tmp_path, build(other))
    with pytest.raises(ValueError, match="no checkpoint"):
        load_weights(tmp_path / "elsewhere", fresh)


def test_an_attempt_that_was_thought_dead_leaves_its_successors_checkpoint_alone(
    tmp_path: pathlib.Path, text: Text
) -> None:
    first, second = JobContext(tmp_path, attempt=1), JobContext(tmp_path, attempt=2)
    first.take_directory()
    slow = trainer(tmp_path, text, 8)
    slow.may_write = first.holds_directory
    run = slow.run()
    for _ in range(2):
        next(run)
    second.take_directory()
    quick = trainer(tmp_path, text, 8)
    quick.may_write = second.holds_directory
    assert len(list(quick.run())) == 8
    written = (tmp_path / "checkpoint" / "model.safetensors").read_bytes()
    with pytest.raises(Superseded):
        list(run)
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == written
    assert trainer(tmp_path, text, 8).resume() == 8


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: pathlib.Path, text: Text) -> None:
    run = trainer(tmp_path, text, 8)
    with torch.no_grad():
        run.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(Diverged):
        next(run.run())


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """Of a skewed distribution with a known median; 95% in a thousand trials, within three deviations."""
    random.seed(0)
    true = 0.6931471805599453  # of an exponential with rate 1: ln 2
    held = 0
    for _ in range(1000):
        low, high = median_interval([random.expovariate(1.0) for _ in range(40)])
        held += low <= true <= high
    assert held >= 1000 * (0.95 - 3 * 0.0069)
