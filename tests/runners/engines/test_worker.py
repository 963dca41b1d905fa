"""Workers with real processes: jobs done, failed, cancelled, taken over after kill -9, and never taken twice."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from db.engine import Store
from db.records import Job, JobState
from runners.engines.client import worker_status
from runners.engines.supervise import Timing, job_directory
from runners.engines.worker import Worker
from tests.runners.engines.toy_job import ENTRY

ROOT = pathlib.Path(__file__).resolve().parents[3]
QUICK = Timing(lease_seconds=2.0, heartbeat_seconds=0.2, grace_seconds=1.0)
WORKER_PROGRAM = """
from db.engine import open_store
from runners.engines.supervise import Timing
from runners.engines.worker import Worker
from tests.runners.engines.toy_job import ENTRY
Worker(open_store(), Timing(2.0, 0.2, 1.0), {"toy": ENTRY}).run()
"""

pytestmark = pytest.mark.xdist_group("workers")


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)


def work(store: Store, until: Callable[[], bool]) -> None:
    """A worker in a thread until the condition holds."""
    worker = Worker(store, QUICK, {"toy": ENTRY}, say=lambda line: None)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(until)
    finally:
        worker.stop.set()
        thread.join()


def start_worker_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER_PROGRAM], cwd=ROOT, stderr=subprocess.DEVNULL)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def ended(store: Store, job: Job) -> Callable[[], bool]:
    return lambda: store.jobs.get(job.id).state.ended


def test_a_job_leaves_its_metrics_log_artifact_and_result(store: Store, enqueue: Callable[..., Job]) -> None:
    job = enqueue(steps=4)
    work(store, ended(store, job))
    assert store.jobs.get(job.id).state is JobState.SUCCEEDED
    assert [(point.step, point.value) for point in store.jobs.metrics(job.id)] == [(0, 0), (1, 1), (2, 4), (3, 9)]
    (result,) = store.results.list(job_id=job.id)
    assert result.values == {"steps": 4, "resumed_at": 0, "name": "toy"}
    assert [artifact.path for artifact in store.jobs.artifacts(job.id)] == ["checkpoint.txt"]
    assert "starts at 0" in store.jobs.logs(job.id)[0].message


@pytest.mark.parametrize(
    "fail, message",
    [
        ("refusal", "learning_rate: too high"),
        ("error", "RuntimeError: boom"),
        ("kill", "ended by SIGKILL"),
        ("kill with a fork", "ended by SIGKILL"),  # the fork holds the pipe open that says when the job has ended
        ("unstorable", "cannot be stored"),
    ],
)
def test_a_failed_job_says_why_in_one_line(store: Store, enqueue: Callable[..., Job], fail: str, message: str) -> None:
    job = enqueue(steps=1, fail=fail)
    work(store, ended(store, job))
    failed = store.jobs.get(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert message in failed.error
    assert "\n" not in failed.error
    assert store.results.list(job_id=job.id) == ()


def test_a_wrong_plan_fails_with_the_field(store: Store, enqueue: Callable[..., Job]) -> None:
    job = enqueue(stepz=4)
    work(store, ended(store, job))
    assert "stepz" in (store.jobs.get(job.id).error or "")


@pytest.mark.slow
@pytest.mark.parametrize("ignore_sigterm", [False, True])
@pytest.mark.parametrize("own_session", [False, True])
def test_cancelling_ends_the_whole_process_tree(
    store: Store, enqueue: Callable[..., Job], ignore_sigterm: bool, own_session: bool
) -> None:
    job = enqueue(
        steps=1000,
        seconds_per_step=0.1,
        grandchild=True,
        grandchild_in_own_session=own_session,
        ignore_sigterm=ignore_sigterm,
    )
    grandchild = job_directory(job.id) / "grandchild.txt"

    def cancelled() -> bool:
        if grandchild.exists() and not store.jobs.get(job.id).cancel_requested:
            store.jobs.request_cancel(job.id)
        return store.jobs.get(job.id).state.ended

    work(store, cancelled)
    assert store.jobs.get(job.id).state is JobState.CANCELLED
    assert not alive(int(grandchild.read_text()))


def test_a_queued_job_is_cancelled_at_once(store: Store, enqueue: Callable[..., Job]) -> None:
    job = enqueue()
    assert store.jobs.request_cancel(job.id).state is JobState.CANCELLED


@pytest.mark.slow
@pytest.mark.parametrize("own_session", [False, True])
def test_after_kill_9_of_the_worker_the_job_goes_on_from_its_checkpoint(
    store: Store, enqueue: Callable[..., Job], own_session: bool
) -> None:
    """No metric lost, none doubled, and nothing of the first attempt left running."""
    job = enqueue(steps=30, seconds_per_step=0.1, grandchild=True, grandchild_in_own_session=own_session)
    first = start_worker_process()
    try:
        wait_until(lambda: len(store.jobs.metrics(job.id)) >= 5)
        child = int(store.jobs.logs(job.id)[0].message.split()[1])
        grandchild = int((job_directory(job.id) / "grandchild.txt").read_text())
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    wait_until(lambda: not alive(child) and not alive(grandchild))
    assert store.jobs.get(job.id).state is JobState.RUNNING

    second = start_worker_process()
    try:
        wait_until(ended(store, job))
    finally:
        second.terminate()
        second.wait()
    finished = store.jobs.get(job.id)
    assert (finished.state, finished.attempt, finished.takeovers) == (JobState.SUCCEEDED, 2, 1)
    steps = [point.step for point in store.jobs.metrics(job.id)]
    assert steps == list(range(30))
    assert store.results.list(job_id=job.id)[0].values["resumed_at"] > 0


def test_stopping_the_worker_puts_its_job_back(store: Store, enqueue: Callable[..., Job]) -> None:
    job = enqueue(steps=1000, seconds_per_step=0.1)
    work(store, lambda: len(store.jobs.metrics(job.id)) > 1)
    assert store.jobs.get(job.id).state is JobState.QUEUED
    assert not worker_status(store).alive


def test_no_job_is_taken_twice(store: Store, enqueue: Callable[..., Job]) -> None:
    """Four claimers at once, each job claimed exactly once."""
    jobs = {enqueue().id for _ in range(60)}
    taken: list[str] = []

    def claim_all(name: str) -> None:
        while (job := store.jobs.claim(name)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=claim_all, args=(f"w{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(jobs)


def test_a_job_that_keeps_killing_its_workers_is_given_up(store: Store, enqueue: Callable[..., Job]) -> None:
    job = enqueue()
    for attempt in range(4):
        assert store.jobs.claim(f"w{attempt}", lease_seconds=-1.0) is not None
    assert store.jobs.claim("last") is None
    assert "given up" in (store.jobs.get(job.id).error or "")


def test_the_web_process_imports_no_torch() -> None:
    program = (
        "import sys, db.engine, planner, runners.engines.client, runners.events, runners.engines.worker\n"
        "assert not {'torch', 'triton', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
