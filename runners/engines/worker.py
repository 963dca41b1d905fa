"""The worker: takes jobs from the queue, one at a time, and runs each in a process of its own.

Imports no torch: a job's process does, and takes it away with it when it ends.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from db.engine import Store, open_store
from db.errors import StoreUnavailable
from db.records import Job
from runners.engines.supervise import Supervisor, Timing

IDLE_SECONDS = 0.5
BEAT_SECONDS = 4.0


class Worker:
    """One worker process."""

    def __init__(
        self,
        store: Store,
        timing: Timing | None = None,
        entries: Mapping[str, Mapping[str, str]] | None = None,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        """``entries`` are kinds of jobs beyond the registered ones, as ``{"plan": …, "module": …}``."""
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = threading.Event()
        self._store = store
        self._timing = timing or Timing()
        self._entries = entries or {}
        self._say = say

    def run(self) -> None:
        """Take and run jobs until ``stop`` is set."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            while not self.stop.is_set():
                try:
                    job = self._store.jobs.claim(self.id, self._timing.lease_seconds)
                    if job is None:
                        self.stop.wait(IDLE_SECONDS)
                        continue
                    self._run(job)
                except StoreUnavailable as error:
                    # A job that ran has been stopped; its lease runs out, and it goes on when the database is back.
                    self._say(f"{error}; trying again")
                    self.stop.wait(5.0)
        finally:
            self.stop.set()
            beating.join(timeout=BEAT_SECONDS)
            self._store.workers.leave(self.id)

    def _run(self, job: Job) -> None:
        self._say(f"{job.name}: started (attempt {job.attempt})")
        entry = self._entries.get(job.kind)
        ended = Supervisor(self._store, job, self._timing, self.stop, entry).run()
        if ended is None:
            self._say(f"{job.name}: taken over by another worker")
        else:
            self._say(f"{job.name}: {ended.state}{f' ({ended.error})' if ended.error else ''}")

    def _beat(self) -> None:
        description = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        while not self.stop.is_set():
            try:
                self._store.workers.beat(self.id, socket.gethostname(), os.getpid(), description)
            except StoreUnavailable as error:
                self._say(str(error))
            self.stop.wait(BEAT_SECONDS)


def main() -> int:
    """Run a worker until it is told to stop; a running job then goes back into the queue."""
    with open_store() as store:
        worker = Worker(store)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: worker.stop.set())
        print(f"worker {worker.id} takes jobs from {store.shown_url}", file=sys.stderr, flush=True)
        started = time.monotonic()
        worker.run()
        print(f"worker stopped after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return 0
