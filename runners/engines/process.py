"""One job as a child process in a process group of its own: started, read, stopped, gone with whoever started it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from runners.events import Event, Log, from_json
from runners.jobs.child import STOPPED, descendants_elsewhere, end

TERMINATE_GRACE_SECONDS = 10.0


class JobProcess:
    """A running child, and the events that it has said."""

    def __init__(self, request: Mapping[str, Any], directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        read_end, write_end = os.pipe()
        with open(directory / "output.txt", "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runners.jobs.child", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                cwd=pathlib.Path(__file__).resolve().parents[2],
            )
        os.close(write_end)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dict(request)).encode() + b"\n")
            self._process.stdin.flush()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._ended = False
        self._left_behind_killed = False
        self.last_error: str | None = None
        self._reader = threading.Thread(target=self._read, args=(read_end,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's process id, and its process group's."""
        return self._process.pid

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = from_json(line)
                except ValueError as error:
                    event = Log(str(error), "warning")
                self._events.put(event)
        self._events.put(None)

    def read(self, seconds: float, most: int = 200) -> list[Event]:
        """Events that come within ``seconds``, at most ``most``; returns early once the child has said its last."""
        found: list[Event] = []
        deadline = time.monotonic() + seconds
        while not self._ended and len(found) < most:
            wait = deadline - time.monotonic()
            try:
                event = self._events.get(timeout=max(0.0, wait)) if wait > 0 else self._events.get_nowait()
            except queue.Empty:
                break
            if event is None:
                self._ended = True
            else:
                if isinstance(event, Log) and event.level == "error":
                    self.last_error = event.message
                found.append(event)
        if not found and not self._ended and self._process.poll() is not None:
            self._let_go()
        return found

    def _let_go(self) -> None:
        """The child is gone and silent, but what it forked holds its pipe open: end that, else stop waiting for it."""
        if self._left_behind_killed:
            self._ended = True
        elif self._group_lives():
            self._signal(signal.SIGKILL)
        self._left_behind_killed = True

    @property
    def ended(self) -> bool:
        """Whether the child has said its last event."""
        return self._ended

    def stop(self, grace_seconds: float = TERMINATE_GRACE_SECONDS) -> None:
        """End the process group and what left it for a session of its own: asked first, then killed.

        Returns when none of these processes is left.
        """
        strays = descendants_elsewhere(self._process.pid)
        self._signal(signal.SIGTERM)
        for stray in strays:
            with contextlib.suppress(psutil.Error):
                stray.terminate()
        deadline = time.monotonic() + grace_seconds
        while (self._group_lives() or any(map(_lives, strays))) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        end(strays)
        self._process.wait()
        while self._group_lives() or any(map(_lives, strays)):
            time.sleep(0.02)
        self.close()

    def wait(self) -> int:
        """The child's exit status; what it left running in its group is ended."""
        status = self._process.wait()
        if self._group_lives():
            self._signal(signal.SIGKILL)
        self.close()
        return status

    def close(self) -> None:
        """Close the pipe that the child watches."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def why_failed(self, status: int) -> str:
        """One line on why the child ended badly."""
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (the system kills the largest process when memory runs out)" if name == "SIGKILL" else ""
            return f"the job's process was ended by {name}{hint}"
        if status == STOPPED:
            return "the job's process was told to stop"
        return self.last_error or f"the job's process ended with status {status}; its output.txt may say why"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _group_lives(self) -> bool:
        self._process.poll()  # reaps the leader, which else counts as a member
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return _has_living_member(self._process.pid)


def _has_living_member(group: int) -> bool:
    """Whether a process of the group is more than a zombie that its parent has not reaped yet."""
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.info["pid"]) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def _lives(process: psutil.Process) -> bool:
    """Whether a process still runs; its number may have been given to another since, which psutil notices."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
