"""The process that runs one job, started by a worker: ``python -m runners.jobs.child EVENT_FD``.

The request is the first line on standard input; events leave as JSON lines on the descriptor ``EVENT_FD``. Standard
input then stays open as long as the worker lives. At its end, even after kill -9 of the worker, this process kills its
own process group, so that nothing that the job started outlives the worker. (PR_SET_PDEATHSIG would not do: it fires
when the thread that started the child ends.)

Metrics are also kept in the job's directory before they leave: the worker writes them in batches, and what it had not
written when it was killed is said again by the next attempt, whose checkpoint may lie behind those steps.

Exit status: 0 done, 1 failed (the last line says why), 75 stopped on request.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

import psutil

from planner.errors import PlannerError
from planner.plans import parse_plan
from planner.spec import parse_spec
from runners.events import Event, Log, Metric, from_json, to_json
from runners.jobs.base import JobContext, JobFailure
from runners.jobs.registry import JobKind, job_kind

STOPPED = 75
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers in ``malloc.h``."""
JOURNAL = "metrics.jsonl"


class Stopped(BaseException):
    """SIGTERM came: jobs may checkpoint in ``finally``, and cannot swallow it with ``except Exception``."""


def descendants_elsewhere(pid: int) -> list[psutil.Process]:
    """Descendants of a process that left its process group, as what starts a session of its own does (torchrun)."""
    group, found = os.getpgid(pid), []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) != group:
                    found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kill each, if it is still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _end_with_worker() -> None:
    while os.read(0, 4096):
        pass
    end(descendants_elsewhere(os.getpid()))
    os.killpg(0, signal.SIGKILL)


def _stop(_number: int, _frame: object) -> None:
    raise Stopped


def _keep_freed_memory() -> None:
    """Let the GNU C library keep what tensors leave, however large: the next pass finds it again, where pages that went
    back to the system and return have to be emptied anew."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _kept_metrics(journal: pathlib.Path) -> Iterator[Metric]:
    """What earlier attempts kept; a line that was cut off by a kill is left out."""
    if not journal.exists():
        return
    with journal.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                event = from_json(line)
                if isinstance(event, Metric):
                    yield event


def main(event_descriptor: int) -> int:
    with open(0, "rb", buffering=0, closefd=False) as lines:  # unbuffered: the watch below reads what follows
        request = json.loads(lines.readline())
    _keep_freed_memory()
    # Both are in place before the job's imports, which take seconds.
    threading.Thread(target=_end_with_worker, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    journal = pathlib.Path(request["directory"]) / JOURNAL
    kept = tuple(_kept_metrics(journal)) if request["attempt"] > 1 else ()
    with (
        os.fdopen(event_descriptor, "w", encoding="utf-8") as events,
        journal.open("a" if kept else "w", encoding="utf-8") as metrics,
    ):

        def say(event: Event) -> None:
            line = to_json(event) + "\n"
            if isinstance(event, Metric):
                metrics.write(line)
                metrics.flush()
            events.write(line)
            events.flush()

        def fail(error: BaseException, message: str) -> int:
            trace = "".join(traceback.format_exception(error))
            say(Log(trace, "debug"))
            say(Log(message, "error"))
            return 1

        try:
            kind = JobKind(**request["entry"]) if "entry" in request else job_kind(request["kind"])
            plan = parse_plan(kind.load_plan(), request["plan"])
            context = JobContext(pathlib.Path(request["directory"]), request["attempt"])
            context.take_directory()
            for metric in kept:
                events.write(to_json(metric) + "\n")
            for event in kind.load_run()(parse_spec(request["spec"]), plan, context):
                say(event)
        except Stopped:
            return STOPPED
        except (JobFailure, PlannerError) as error:
            return fail(error, str(error))
        except MemoryError as error:
            return fail(error, "out of memory: choose a smaller batch, a shorter sequence or a smaller budget")
        except Exception as error:  # the job's boundary: whatever went wrong is told in its log
            return fail(error, f"{type(error).__name__}: {error}".splitlines()[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
