"""A private PostgreSQL server for tests: in a temporary directory, on a free port, gone at the end."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator


def _program(name: str) -> str:
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    if found is None:
        raise RuntimeError(f"PostgreSQL's {name} is not installed: on Debian, apt-get install postgresql")
    return found


def _as_server_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root; root hands it to the user that the package made."""
    if os.geteuid() != 0:
        return command
    return ["runuser", "-u", "postgres", "--", *command]


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """The URL of an empty server, as ``postgresql://…/postgres``."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="plumbline-postgres-"))
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    data = directory / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = {"check": True, "capture_output": True, "cwd": directory}
    initdb = [_program("initdb"), "-D", str(data), "-U", "plumbline", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(_as_server_user(initdb), **run)  # type: ignore[call-overload]
    options = f"-h 127.0.0.1 -p {port} -k {directory} -F"
    control = [_program("pg_ctl"), "-D", str(data), "-w", "-l", str(directory / "log")]
    subprocess.run(_as_server_user([*control, "-o", options, "start"]), **run)  # type: ignore[call-overload]
    try:
        yield f"postgresql://plumbline@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(_as_server_user([*control, "-m", "immediate", "stop"]), check=False, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)
