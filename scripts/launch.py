"""Start the application: environment, database, worker and dashboard; end both when one ends or the person says so.

    python3 -m scripts.launch

Runs under the system's Python and knows the standard library alone. What the worker and the dashboard do is theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
import urllib.error
import urllib.request

from scripts.environment import ROOT, Environment, SetupError, check_python

HOST = "127.0.0.1"
START_SECONDS = 90.0
END_SECONDS = 15.0
POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Service:
    """A program that runs until it is told to end."""

    name: str
    command: typing.Sequence[str]


def read_port(text: str) -> int:
    """The port that `PORT` names, or `SetupError`."""
    try:
        port = int(text)
    except ValueError:
        port = 0
    if not 1 <= port <= 65535:
        raise SetupError(f"PORT must be a number from 1 to 65535, and is {text!r}: for example `make app PORT=8502`.")
    return port


def check_port(port: int, host: str = HOST) -> None:
    """Raise `SetupError` when nothing can listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "is taken by another program: stop that, or take another port"
            elif error.errno == errno.EACCES:
                reason = "is for the system's own services: take another port"
            else:
                reason = f"cannot be used ({error.strerror}): take another port"
            other = port + 1 if 1024 < port < 65535 else 8501
            raise SetupError(f"Port {port} {reason}, for example `make app PORT={other}`.") from None


def services(python: pathlib.Path, port: int) -> typing.List[Service]:  # noqa: UP006 - read by an old Python first
    """The worker and the dashboard, as they are started on a person's own machine."""
    return [
        Service("worker", [str(python), "-m", "runners", "worker"]),
        Service(
            "dashboard",
            [
                *(str(python), "-m", "streamlit", "run", "app.py"),
                *("--server.address", HOST, "--server.port", str(port), "--server.headless", "true"),
                *("--server.fileWatcherType", "none", "--browser.gatherUsageStats", "false"),
                *("--logger.hideWelcomeMessage", "true"),
            ],
        ),
    ]


class Supervisor:
    """Keeps several services together: they start together, and none outlives another.

    Each service has a process group of its own. Ctrl-C at the terminal thus reaches the launcher alone, which ends the
    groups in order; so what a service started ends with it.
    """

    def __init__(self, directory: pathlib.Path = ROOT, end_seconds: float = END_SECONDS) -> None:
        self.directory = directory
        self.end_seconds = end_seconds
        self.stop = threading.Event()
        self._running: typing.Dict[str, subprocess.Popen[bytes]] = {}  # noqa: UP006

    def run(
        self,
        to_run: typing.Sequence[Service],
        health_url: str,
        ready: typing.Callable[[], None],
        start_seconds: float = START_SECONDS,
    ) -> int:
        """Run the services until `stop` is set (0) or one of them ends or does not answer (1).

        Args:
            to_run: what to start, in this order.
            health_url: answers with status 200 once the application can be used.
            ready: called once, when it does.
            start_seconds: how long that may take.
        """
        try:
            for service in to_run:
                self._running[service.name] = subprocess.Popen(
                    service.command,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                )
            return self._watch(health_url, ready, start_seconds)
        finally:
            self.end()

    def _watch(self, health_url: str, ready: typing.Callable[[], None], start_seconds: float) -> int:
        deadline = time.monotonic() + start_seconds
        answered = False
        while not self.stop.wait(POLL_SECONDS):
            for name, process in self._running.items():
                if process.poll() is not None:
                    others = " and ".join(other for other in self._running if other != name)
                    _complain(f"The {name} ended ({_status(process.returncode)}), so the {others} is stopped as well.")
                    return 1
            if not answered and _answers(health_url):
                answered = True
                ready()
            if not answered and time.monotonic() > deadline:
                _complain(f"Nothing answered at {health_url} within {start_seconds:.0f} seconds: stopping.")
                return 1
        return 0

    def end(self) -> None:
        """End every service and what it started: asked first, then killed."""
        for process in self._running.values():
            _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.end_seconds
        while any(_group_lives(process) for process in self._running.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in self._running.values():
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(group, number)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, which would else count as a member
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _answers(url: str) -> bool:
    # An http_proxy from the environment is no way to this machine itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _status(returncode: int) -> str:
    return f"exit status {returncode}" if returncode >= 0 else f"signal {signal.Signals(-returncode).name}"


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Prepare what is missing, then run the application; the exit status is 0 only after it was stopped on purpose."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    environment = Environment()
    try:
        check_python()
        port = read_port(os.environ.get("PORT") or "8501")
        check_port(port)
        environment.ensure(ROOT / "requirements.txt", _say)
        upgrade = subprocess.run([environment.python, "-m", "db", "upgrade"], cwd=ROOT, check=False)
        if upgrade.returncode:
            raise SetupError("The database could not be prepared; the line above says why.")
    except SetupError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("Stopped; the next `make app` goes on from here.")
        return 130
    supervisor = Supervisor()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: supervisor.stop.set())
    url = f"http://{HOST}:{port}"

    def ready() -> None:
        _say(f"Plumbline is ready: {url}   (Ctrl-C stops it)")

    status = supervisor.run(services(environment.python, port), f"{url}/_stcore/health", ready)
    if supervisor.stop.is_set():
        _say("Plumbline has stopped.")
    return status


if __name__ == "__main__":
    sys.exit(main())
