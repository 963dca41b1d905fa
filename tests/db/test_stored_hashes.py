"""Hashes of stored designs: old rows are hashed anew, and a specification that gains a field changes none."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import sqlalchemy as sa

from db import engine
from db.engine import Store, open_store
from planner import parse_spec

pytestmark = pytest.mark.xdist_group("store")

ATTENTION = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
LAYER = {"sequence_mixer": ATTENTION, "channel_mixer": {"kind": "mlp", "intermediate_size": 96}}
SPEC = {"name": "old", "vocab_size": 100, "hidden_size": 32, "layer_groups": [{"repeats": 2, "layers": [LAYER]}]}


def written_out() -> dict[str, Any]:
    """The design as an earlier Plumbline stored it: every field that there was, without one that came later."""
    data = parse_spec(SPEC).model_dump(mode="json")
    del data["embedding_size"]
    del data["layer_groups"][0]["layers"][0]["sequence_mixer"]["value_head_dim"]
    return data


def full_hash(data: dict[str, Any]) -> str:
    """How rows were hashed: all that was written out, but for the name."""
    content = {name: value for name, value in data.items() if name != "name"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.fixture
def old_store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database at the first migration, with a design and with a row that nothing reads any more."""
    from alembic import command

    whole = command.upgrade
    with monkeypatch.context() as earlier:
        earlier.setattr(command, "upgrade", lambda config, _: whole(config, "0001"))
        earlier.setattr(engine, "HEAD", "0001")
        with open_store(store_url) as store, store.database.connection() as connection:
            moment = "2026-11-24 12:00:00"
            connection.execute(
                sa.text(
                    "INSERT INTO design (id, name, archived, version, created_at, updated_at) "
                    f"VALUES (1, 'old', false, 1, '{moment}', '{moment}')"
                )
            )
            for number, spec in ((1, written_out()), (2, {"name": "strange", "depth": 7})):
                connection.execute(
                    sa.text(
                        "INSERT INTO revision (id, design_id, number, name, spec, content_hash, note, created_at) "
                        f"VALUES (:number, 1, :number, :name, :spec, :hash, '', '{moment}')"
                    ),
                    {"number": number, "name": spec["name"], "spec": json.dumps(spec), "hash": full_hash(spec)},
                )
    return store_url


def test_an_old_row_is_found_by_the_hash_of_today_and_stays_guarded(old_store: str) -> None:
    design = parse_spec(SPEC)
    assert full_hash(written_out()) != design.content_hash()
    with open_store(old_store) as store:
        found = store.designs.find_revision(design.content_hash())
        assert found is not None
        assert (found.id, found.spec) == (1, written_out())
        assert parse_spec(found.spec) == design
        strange = store.designs.revision(2)
        assert strange.content_hash == full_hash(dict(strange.spec))
        with pytest.raises(Exception, match=r"(?i)does not change"), store.database.connection() as connection:
            connection.execute(sa.text("UPDATE revision SET content_hash = 'x'"))
    with open_store(old_store) as again:  # a second opening has nothing to do
        assert again.designs.find_revision(design.content_hash()) is not None


def test_the_same_design_is_the_same_whether_its_defaults_are_written_out(store: Store) -> None:
    first = store.designs.create("old", written_out()).latest
    assert first.content_hash == parse_spec(SPEC).content_hash()
    assert store.designs.save_revision(first.design_id, SPEC).id == first.id
    assert store.designs.save_revision(first.design_id, {**SPEC, "hidden_size": 64}).number == 2


def test_the_hash_is_of_what_differs_from_the_defaults_alone() -> None:
    """Written by hand: a field that comes later, at its default, is not in it."""
    by_hand = (
        '{"hidden_size":32,"layer_groups":[{"layers":[{"channel_mixer":{"intermediate_size":96,"kind":"mlp"},'
        '"sequence_mixer":{"head_dim":16,"kind":"attention","num_attention_heads":4,"num_key_value_heads":2}}],'
        '"repeats":2}],"vocab_size":100}'
    )
    assert parse_spec(SPEC).content_hash() == hashlib.sha256(by_hand.encode()).hexdigest()
