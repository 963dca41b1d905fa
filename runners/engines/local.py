"""One job here and now, recorded as a queued one is: same rows, same process, same fencing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping

from db.engine import Store
from db.records import Job
from planner.plans import Plan
from planner.spec import ArchitectureSpec
from runners import events
from runners.engines.supervise import Supervisor, Timing


def revision_for(store: Store, spec: ArchitectureSpec) -> int:
    """The id of a revision that says just this, saved as a new design if there is none."""
    known = store.designs.find_revision(spec.content_hash())
    if known is not None and known.name == spec.name:
        return known.id
    return store.designs.create(spec.name, spec.model_dump(mode="json")).latest.id


def run_local(
    store: Store,
    kind: str,
    spec: ArchitectureSpec,
    plan: Plan,
    name: str | None = None,
    watch: Callable[[events.Event], None] | None = None,
    stop: threading.Event | None = None,
    entry: Mapping[str, str] | None = None,
) -> Job:
    """Run a job to its end, and give its row; ``watch`` sees each event as it is written."""
    worker_id = f"{socket.gethostname()}-{os.getpid()}-local"
    timing = Timing()
    job = store.jobs.begin(
        kind, revision_for(store, spec), plan.model_dump(mode="json"), worker_id, timing.lease_seconds, name
    )
    ended = Supervisor(store, job, timing, stop or threading.Event(), entry, watch).run()
    return ended or store.jobs.get(job.id)
