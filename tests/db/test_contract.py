"""What the store promises, over both databases."""

from __future__ import annotations

import datetime
import math
import threading

import pytest
import sqlalchemy as sa

from db.engine import Store, open_store
from db.errors import Conflict, InvalidRecord, NotFound, SchemaMismatch, StaleAttempt, StoreUnavailable
from db.records import (
    Artifact,
    Evidence,
    GeneratedToken,
    JobState,
    LogLine,
    MetricPoint,
    NewResult,
    Option,
    Progress,
    Revision,
)
from planner import load

pytestmark = pytest.mark.xdist_group("store")
SPEC = load("gpt2")
NOW = datetime.datetime(2026, 11, 24, 12, 0, tzinfo=datetime.UTC)


@pytest.fixture
def revision(store: Store) -> Revision:
    return store.designs.create("GPT-2", SPEC.model_dump(mode="json")).latest


# --- designs ---


def test_a_design_keeps_numbered_revisions_with_the_planners_hash(store: Store, revision: Revision) -> None:
    changed = {**SPEC.model_dump(mode="json"), "vocab_size": 1000}
    second = store.designs.save_revision(revision.design_id, changed, "smaller vocabulary")
    assert revision.content_hash == SPEC.content_hash()
    assert (revision.number, second.number, second.note) == (1, 2, "smaller vocabulary")
    assert [found.id for found in store.designs.revisions(revision.design_id)] == [revision.id, second.id]
    assert store.designs.get(revision.design_id).latest == second
    assert store.designs.revision(revision.id).spec == revision.spec


def test_saving_what_is_saved_already_makes_no_revision(store: Store, revision: Revision) -> None:
    assert store.designs.save_revision(revision.design_id, dict(revision.spec)).id == revision.id


def test_a_revision_cannot_be_changed_or_removed_behind_the_stores_back(store: Store, revision: Revision) -> None:
    for statement in ("UPDATE revision SET note = 'x'", "DELETE FROM revision"):
        with pytest.raises(Exception, match=r"(?i)immutable|revision"), store.database.connection() as connection:
            connection.execute(sa.text(statement))
    assert store.designs.revision(revision.id) == revision


def test_designs_are_renamed_duplicated_archived_and_restored(store: Store, revision: Revision) -> None:
    design = revision.design_id
    assert store.designs.rename(design, "Baseline").name == "Baseline"
    copy = store.designs.duplicate(design)
    assert copy.id != design
    assert copy.latest.content_hash == revision.content_hash
    store.designs.archive(design)
    assert [found.id for found in store.designs.list()] == [copy.id]
    assert {found.id for found in store.designs.list(include_archived=True)} == {design, copy.id}
    assert not store.designs.restore(design).archived


def test_two_people_saving_at_once_are_told(store: Store, revision: Revision) -> None:
    store.designs.save_revision(revision.design_id, {"vocab_size": 1}, expected_number=1)
    with pytest.raises(Conflict):
        store.designs.save_revision(revision.design_id, {"vocab_size": 2}, expected_number=1)


@pytest.mark.parametrize("name", ["", "   "])
def test_a_name_says_something(store: Store, revision: Revision, name: str) -> None:
    with pytest.raises(InvalidRecord):
        store.designs.rename(revision.design_id, name)


def test_what_is_not_there_is_said(store: Store) -> None:
    for find in (store.designs.get, store.designs.revision, store.results.get, store.decisions.get):
        with pytest.raises(NotFound):
            find(12345)
    with pytest.raises(NotFound):
        store.jobs.get("nothing")


# --- jobs ---


@pytest.mark.parametrize("number", [2**31, 99_999_999_999_999_999_999, -(2**70)])
def test_a_number_that_no_id_can_be_is_not_there(store: Store, number: int) -> None:
    for find in (store.designs.get, store.designs.revision, store.results.get, store.decisions.get):
        with pytest.raises(NotFound, match=str(number)):
            find(number)
    with pytest.raises(NotFound):
        store.jobs.get("a\x00b")


def test_jobs_are_taken_in_order_and_once(store: Store, revision: Revision) -> None:
    first, second = (store.jobs.enqueue("verify", revision.id, {"seed": seed}) for seed in (1, 2))
    taken = [store.jobs.claim("w"), store.jobs.claim("w"), store.jobs.claim("w")]
    assert [job and job.id for job in taken] == [first.id, second.id, None]


def test_claimers_at_once_take_each_job_once(store: Store, revision: Revision) -> None:
    jobs = {store.jobs.enqueue("verify", revision.id, {}).id for _ in range(40)}
    taken: list[str] = []

    def claim(name: str) -> None:
        while (job := store.jobs.claim(name)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=claim, args=(f"w{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(jobs)


def test_a_lost_job_is_taken_over_and_its_old_attempt_refused(store: Store, revision: Revision) -> None:
    store.jobs.enqueue("verify", revision.id, {})
    old = store.jobs.claim("dead", lease_seconds=-1)
    assert old is not None
    new = store.jobs.claim("alive")
    assert new is not None
    assert (new.id, new.attempt, new.takeovers) == (old.id, 2, 1)
    assert store.jobs.heartbeat(old.id, old.attempt).lost
    for write in (
        lambda: store.jobs.append(old.id, old.attempt, [MetricPoint("loss", 1, 9.0)]),
        lambda: store.jobs.finish(old.id, old.attempt, JobState.SUCCEEDED),
        lambda: store.jobs.release(old.id, old.attempt),
    ):
        with pytest.raises(StaleAttempt):
            write()
    assert store.jobs.metrics(old.id) == ()
    assert not store.jobs.heartbeat(new.id, new.attempt).lost


def test_what_is_said_twice_is_there_once(store: Store, revision: Revision) -> None:
    store.jobs.enqueue("prototype", revision.id, {})
    job = store.jobs.claim("w")
    assert job is not None
    said = [
        MetricPoint("loss", 0, 5.5),
        MetricPoint("loss", 1, math.nan),
        LogLine(1, "hello \x00 nul", "info", NOW),
        Artifact("weights", "a/b", "application/octet-stream"),
        Progress(1, 2, "steps", "half", 3.0),
        NewResult("prototype", {"loss": 5.5}, {"device": "test"}),
    ]
    for _ in range(2):
        assert store.jobs.append(job.id, job.attempt, said) == len(said)
    store.jobs.append(job.id, job.attempt, [NewResult("prototype", {"loss": 1.0}, {}), MetricPoint("loss", 0, 5.25)])
    points = store.jobs.metrics(job.id, ["loss"])
    assert [(p.step, p.value) for p in points][:1] == [(0, 5.25)]
    assert len(points) == 2
    assert math.isnan(points[1].value)
    assert [line.sequence for line in store.jobs.logs(job.id)] == [1]
    assert store.jobs.next_log_sequence(job.id) == 2
    (result,) = store.results.list(job_id=job.id)
    assert result.values == {"loss": 5.5}  # the first stands
    found = store.jobs.get(job.id).progress
    assert found is not None
    assert found.fraction == 0.5


def test_tokens_are_kept_by_text_and_position(store: Store, revision: Revision) -> None:
    """Said again after a takeover they replace what was there; another job's are another's."""
    store.jobs.enqueue("generate", revision.id, {})
    job = store.jobs.claim("w")
    assert job is not None
    said = [GeneratedToken(text, position, {"piece": "\x00é"}) for position in (1, 0) for text in (1, 0)]
    store.jobs.append(job.id, job.attempt, said)
    store.jobs.append(job.id, job.attempt, [GeneratedToken(0, 1, {"piece": "b"})])
    found = [(token.text, token.position, token.values["piece"]) for token in store.jobs.tokens(job.id)]
    assert found == [(0, 0, "\x00é"), (0, 1, "b"), (1, 0, "\x00é"), (1, 1, "\x00é")]
    assert store.jobs.tokens(store.jobs.enqueue("generate", revision.id, {}).id) == ()


def test_metrics_and_logs_are_read_by_cursor(store: Store, revision: Revision) -> None:
    store.jobs.enqueue("prototype", revision.id, {})
    job = store.jobs.claim("w")
    assert job is not None
    store.jobs.append(job.id, job.attempt, [MetricPoint("loss", step, float(step)) for step in range(300)])
    store.jobs.append(job.id, job.attempt, [LogLine(index, f"line {index}", "info", NOW) for index in (1, 2, 3)])
    assert [point.step for point in store.jobs.metrics(job.id, after_step=297)] == [298, 299]
    assert [line.sequence for line in store.jobs.logs(job.id, after_sequence=1, limit=1)] == [2]


def test_a_running_job_is_cancelled_by_its_worker_a_queued_one_at_once(store: Store, revision: Revision) -> None:
    running, queued = (store.jobs.enqueue("verify", revision.id, {}) for _ in range(2))
    job = store.jobs.claim("w")
    assert job is not None
    assert store.jobs.request_cancel(queued.id).state is JobState.CANCELLED
    assert store.jobs.request_cancel(running.id).state is JobState.RUNNING
    assert store.jobs.heartbeat(running.id, job.attempt).cancel_requested
    with pytest.raises(InvalidRecord):
        store.jobs.archive(running.id)


def test_the_command_lines_job_is_nobody_elses(store: Store, revision: Revision) -> None:
    job = store.jobs.begin("verify", revision.id, {}, "me")
    assert job.state is JobState.RUNNING
    assert store.jobs.claim("other") is None


# --- results and decisions ---


def finished_result(store: Store, revision: Revision) -> int:
    job = store.jobs.begin("verify", revision.id, {}, "me")
    store.jobs.append(job.id, job.attempt, [NewResult("verify", {"parameters": 124_439_808}, {"torch": "2"})])
    store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    return store.results.list(job_id=job.id)[0].id


def test_results_are_found_by_content_renamed_and_archived(store: Store, revision: Revision) -> None:
    result = finished_result(store, revision)
    copy = store.designs.duplicate(revision.design_id)
    assert [found.id for found in store.results.list(content_hash=copy.latest.content_hash)] == [result]
    assert store.results.rename(result, "checked").name == "checked"
    store.results.archive(result)
    assert store.results.list() == ()
    assert not store.results.restore(result).archived


def test_a_decision_cites_numbers_with_the_value_they_had(store: Store, revision: Revision) -> None:
    evidence = (
        Evidence("revision", revision.id, "parameters", 671_026_404_352, "parameters", "exact integers survive"),
        Evidence("result", finished_result(store, revision), "bits per byte", 2.25, "bits"),
    )
    options = (Option("MHA", ("simple",), ("large cache",)), Option("GQA"))
    made = store.decisions.create("Use GQA", context="why", drivers=("memory",), options=options, evidence=evidence)
    found = store.decisions.get(made.id)
    assert found.evidence == evidence
    assert isinstance(found.evidence[0].value, int)
    assert found.options == options
    assert [decision.id for decision in store.decisions.list(revision_id=revision.id)] == [made.id]
    with pytest.raises((InvalidRecord, NotFound)):
        store.decisions.create("cites nothing", evidence=(Evidence("result", 999, "x", 1, ""),))


def test_a_decision_saved_by_somebody_else_is_not_overwritten(store: Store) -> None:
    made = store.decisions.create("First")
    store.decisions.update(made.id, expected_version=made.version, title="Theirs")
    with pytest.raises(Conflict):
        store.decisions.update(made.id, expected_version=made.version, title="Mine")
    assert store.decisions.get(made.id).title == "Theirs"


def test_decisions_are_numbered_and_superseded(store: Store) -> None:
    first, second = store.decisions.create("one"), store.decisions.create("two")
    assert (first.number, second.number) == (1, 2)
    assert store.decisions.supersede(first.id, second.id).superseded_by == second.id


# --- workers and the database itself ---


def test_workers_are_alive_while_they_beat(store: Store) -> None:
    store.workers.beat("w1", "host", 12, "two cores")
    store.workers.beat("w1", "host", 12, "two cores")
    assert [worker.id for worker in store.workers.alive()] == ["w1"]
    assert store.workers.alive(within_seconds=-1) == ()
    store.workers.leave("w1")
    assert store.workers.alive() == ()


def test_a_store_is_opened_again_and_a_newer_one_refused(store_url: str) -> None:
    with open_store(store_url) as first:
        first.designs.create("kept", {"vocab_size": 1})
    with open_store(store_url) as second:
        assert [design.name for design in second.designs.list()] == ["kept"]
        with second.database.connection() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch):
        open_store(store_url)


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite:///:memory:"])
def test_a_url_that_cannot_be_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        open_store(url)
    assert "\n" not in str(refused.value)


def test_a_password_is_never_said() -> None:
    with pytest.raises(StoreUnavailable) as refused:
        open_store("postgresql://someone:secret@127.0.0.1:1/none")
    assert "secret" not in str(refused.value)
