"""A store on SQLite and a queued toy job."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from db.engine import Store, open_store
from db.records import Job
from planner.spec import parse_spec

SPEC = parse_spec(
    {
        "name": "toy",
        "vocab_size": 16,
        "hidden_size": 8,
        "layer_groups": [{"layers": [{"channel_mixer": {"kind": "mlp", "intermediate_size": 8}}]}],
    }
)


@pytest.fixture
def data_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(data_dir: pathlib.Path) -> Iterator[Store]:
    with open_store() as opened:
        yield opened


@pytest.fixture
def enqueue(store: Store) -> Callable[..., Job]:
    revision = store.designs.create("toy", SPEC.model_dump(mode="json")).latest

    def add(**plan: object) -> Job:
        return store.jobs.enqueue("toy", revision.id, plan)

    return add
