"""The worked example: every variant is trained, timed and verified, and what is there is not run again."""

from __future__ import annotations

import pathlib

import pytest

from db.engine import open_store
from db.records import JobState
from planner import PrototypePlan
from runners.engines.local import revision_for
from scripts import example


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_second_run_finds_everything_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    variants = example.variants()
    monkeypatch.setattr(example, "variants", lambda: variants[:1])
    # The jobs of other kinds are on designs that are not there now.
    monkeypatch.setattr(example, "others", lambda specs, trained, budget: [])
    settings = ["--steps", "2", "--seeds", "1", "--budget", "60000"]
    assert example.main(settings) == 0
    first = capsys.readouterr().out
    assert [line.split(": ")[0] for line in first.splitlines()[:-1]] == [f"{number} of 3" for number in range(1, 4)]
    assert "/compare?revisions=1" in first
    with open_store() as store:
        assert sorted(result.kind for result in store.results.list()) == ["benchmark", "prototype", "verify"]
    assert example.main(settings) == 0
    assert capsys.readouterr().out == first.splitlines()[-1] + "\n"


def test_a_plan_that_an_older_version_wrote_is_known_again(tmp_path: pathlib.Path) -> None:
    """Fields that have come since stand at their defaults in it."""
    plan = PrototypePlan(steps=5)
    written = {name: value for name, value in plan.model_dump(mode="json").items() if name in ("steps", "seed")}
    with open_store(f"sqlite:///{tmp_path}/store.sqlite") as store:
        spec = example.variants()[0]
        job = store.jobs.begin("prototype", revision_for(store, spec), written, "test")
        assert example.done(store, spec, "prototype", plan) is None
        store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
        assert example.done(store, spec, "prototype", plan) == job.id
        assert example.done(store, spec, "prototype", PrototypePlan(steps=6)) is None


def test_the_variants_differ_in_one_part_each() -> None:
    by_name = {spec.name: spec for spec in example.variants()}
    assert len(by_name) == 4
    assert len({(spec.hidden_size, spec.num_layers, spec.vocab_size) for spec in by_name.values()}) == 1
