"""The launcher: worker and dashboard live together and end together. Stand-in programs take their places."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from scripts import launch
from scripts.environment import ROOT, Environment, SetupError
from scripts.launch import Service, Supervisor, check_port, read_port

# Answers every request with 200, as Streamlit's health address does.
DASHBOARD = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
# Starts a program of its own, and writes both process ids where the test reads them.
WORKER = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
# Does not end when it is asked to.
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits for its parent to take notice does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("text", ["", "eight", "0", "-1", "65536", "80.5"])
def test_a_port_that_is_no_port_is_refused_by_name(text: str) -> None:
    with pytest.raises(SetupError, match="PORT must be a number"):
        read_port(text)


def test_a_taken_port_is_one_line_that_names_another(taken_port: int) -> None:
    with pytest.raises(SetupError) as caught:
        check_port(taken_port)
    assert f"Port {taken_port} is taken" in str(caught.value)
    assert "make app PORT=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_free_port_is_free(port: int) -> None:
    check_port(port)


def test_the_services_listen_on_this_machine_alone() -> None:
    worker, dashboard = launch.services(pathlib.Path("python"), 8501)
    assert list(worker.command) == ["python", "-m", "runners", "worker"]
    command = list(dashboard.command)
    assert command[command.index("--server.address") + 1] == "127.0.0.1"
    assert command[command.index("--browser.gatherUsageStats") + 1] == "false"


def test_ready_is_said_once_it_answers_and_both_end_with_what_they_started(tmp_path: pathlib.Path, port: int) -> None:
    pids_file = tmp_path / "pids"
    supervisor = Supervisor(tmp_path)
    answered: list[int] = []

    def stop_once_answered() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            answered.append(port)
        wait_until(pids_file.exists)
        supervisor.stop.set()

    status = supervisor.run(
        [Service("worker", python(WORKER, str(pids_file))), Service("dashboard", python(DASHBOARD, str(port)))],
        f"http://127.0.0.1:{port}/_stcore/health",
        stop_once_answered,
    )
    assert status == 0
    assert answered == [port]
    pids = [int(pid) for pid in pids_file.read_text().split()]
    wait_until(lambda: not any(map(is_alive, pids)))
    check_port(port)


@pytest.mark.parametrize("first_to_end", ["worker", "dashboard"])
def test_when_one_ends_the_other_is_ended_and_it_is_said(
    first_to_end: str, tmp_path: pathlib.Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    lasting = python("import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(600)")
    ending = python(
        "import os, time\nwhile not (os.path.exists('pid') and os.stat('pid').st_size): time.sleep(0.01)\nexit(7)"
    )
    services = [Service(name, ending if name == first_to_end else lasting) for name in ("worker", "dashboard")]
    status = Supervisor(tmp_path).run(services, f"http://127.0.0.1:{port}/", lambda: None)
    assert status == 1
    other = "dashboard" if first_to_end == "worker" else "worker"
    assert f"The {first_to_end} ended (exit status 7), so the {other} is stopped as well." in capfd.readouterr().err
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_service_that_does_not_listen_to_sigterm_is_killed(tmp_path: pathlib.Path, port: int) -> None:
    supervisor = Supervisor(tmp_path, end_seconds=0.5)
    threading.Timer(1.0, supervisor.stop.set).start()
    started = time.monotonic()
    assert supervisor.run([Service("worker", python(STUBBORN))], f"http://127.0.0.1:{port}/", lambda: None) == 0
    assert time.monotonic() - started < 10


def test_a_dashboard_that_never_answers_is_told(
    tmp_path: pathlib.Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    services = [Service("dashboard", python("import time; time.sleep(600)"))]
    status = Supervisor(tmp_path).run(services, f"http://127.0.0.1:{port}/", lambda: None, start_seconds=0.5)
    assert status == 1
    assert "Nothing answered" in capfd.readouterr().err


LAUNCH_WITH_STAND_INS = """
import pathlib, sys
from scripts import environment, launch
environment.Environment.ensure = lambda self, requirements, say=print: False
worker, dashboard, pids, port = sys.argv[1:]
class Prepared(environment.Environment):
    def __init__(self):
        super().__init__()
        self.python = pathlib.Path("/bin/true")   # the database: `true -m db upgrade`
launch.Environment = Prepared
launch.services = lambda python, port: [
    launch.Service("worker", [sys.executable, "-c", worker, pids]),
    launch.Service("dashboard", [sys.executable, "-c", dashboard, str(port)]),
]
sys.exit(launch.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_launcher_ends_everything(number: signal.Signals, tmp_path: pathlib.Path, port: int) -> None:
    pids_file = tmp_path / "pids"
    process = subprocess.Popen(
        python(LAUNCH_WITH_STAND_INS, WORKER, DASHBOARD, str(pids_file), str(port)),
        cwd=ROOT,
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line
    wait_until(lambda: pids_file.exists() and len(pids_file.read_text().split()) == 2)
    pids = [int(pid) for pid in pids_file.read_text().split()]
    assert all(map(is_alive, pids))
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert "stopped" in process.stdout.read()
    process.stdout.close()
    wait_until(lambda: not any(map(is_alive, pids)))
    check_port(port)


def test_the_launcher_leaves_with_one_line_where_the_port_is_taken(taken_port: int) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "scripts.launch"],
        cwd=ROOT,
        env={**os.environ, "PORT": str(taken_port)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1
    assert "is taken" in outcome.stderr


def test_a_full_disk_ends_the_launcher_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: int, tmp_path: pathlib.Path
) -> None:
    def full(directory: pathlib.Path, *_arguments: object) -> None:
        raise SetupError(f"The disk is too full: 0.1 GB are free in {directory}.")

    monkeypatch.setattr("scripts.environment.check_space", full)
    monkeypatch.setattr(launch, "Environment", lambda: Environment(tmp_path / ".venv"))
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)  # the test keeps its own handlers
    monkeypatch.setenv("PORT", str(port))
    assert launch.main() == 1
    assert capsys.readouterr().err == f"The disk is too full: 0.1 GB are free in {tmp_path}.\n"
    assert not (tmp_path / ".venv").exists()
