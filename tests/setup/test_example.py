"""The worked example: every variant is trained, timed and verified, and what is there is not run again."""

from __future__ import annotations

import pathlib

import pytest

from db.engine import open_store
from scripts import example


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_second_run_finds_everything_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    variants = example.variants()
    monkeypatch.setattr(example, "variants", lambda: variants[:1])
    settings = ["--steps", "2", "--seeds", "1", "--budget", "60000"]
    assert example.main(settings) == 0
    first = capsys.readouterr().out
    assert [line.split(": ")[0] for line in first.splitlines()[:-1]] == [f"{number} of 3" for number in range(1, 4)]
    assert "/compare?revisions=1" in first
    with open_store() as store:
        assert sorted(result.kind for result in store.results.list()) == ["benchmark", "prototype", "verify"]
    assert example.main(settings) == 0
    assert capsys.readouterr().out == first.splitlines()[-1] + "\n"


def test_the_variants_differ_in_one_part_each() -> None:
    by_name = {spec.name: spec for spec in example.variants()}
    assert len(by_name) == 4
    assert len({(spec.hidden_size, spec.num_layers, spec.vocab_size) for spec in by_name.values()}) == 1
