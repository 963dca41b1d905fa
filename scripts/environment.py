"""The virtual environment in `.venv`: made once, renewed when a requirements file changes, repaired when half made.

    python3 -m scripts.environment requirements.txt

Runs under the system's Python before anything is installed, so it knows the standard library alone, and its syntax
is old enough for an old Python to read it and say which one is needed. It does not know what the environment is for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
NEEDED_PYTHON = (3, 11)
# Measured: an environment of 2.8 GB with torch's CPU build and 5.4 GB with the CUDA build, which brings NVIDIA's
# libraries; pip keeps the downloaded wheels while it unpacks them.
NEEDED_FREE_BYTES = 4_000_000_000
CUDA_FREE_BYTES = 9_000_000_000


class SetupError(Exception):
    """Something that the person at the terminal can mend; its text is the one line they are shown."""


def check_python(
    version: typing.Tuple[int, ...] = sys.version_info[:3],  # noqa: UP006 - an old Python must get this far
    has_module: typing.Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
) -> None:
    """Raise `SetupError` unless this Python is new enough and can make virtual environments."""
    if tuple(version[:2]) < NEEDED_PYTHON:
        found = ".".join(str(part) for part in version)
        raise SetupError(
            f"Plumbline needs Python 3.11 or newer, and {sys.executable} is {found}: "
            "install a newer one and name it, for example `make app PYTHON=python3.11`."
        )
    if not (has_module("venv") and has_module("ensurepip")):
        raise SetupError(
            f"{sys.executable} has no venv module: install it (on Debian: `apt-get install "
            f"python{version[0]}.{version[1]}-venv`) and run the command again."
        )


def check_space(
    directory: pathlib.Path,
    needed_bytes: int = NEEDED_FREE_BYTES,
    free_bytes: typing.Callable[[pathlib.Path], int] = lambda directory: shutil.disk_usage(directory).free,
) -> None:
    """Raise `SetupError` when `directory` cannot hold the installation."""
    free = free_bytes(directory)
    if free < needed_bytes:
        raise SetupError(
            f"The disk is too full: {free / 1e9:.1f} GB are free in {directory}, and the installation needs "
            f"{needed_bytes / 1e9:.0f} GB there ({CUDA_FREE_BYTES / 1e9:.0f} GB where pip takes torch's CUDA build)."
        )


class Environment:
    """One virtual environment and what was installed into it.

    A stamp beside the interpreter names a requirements file and the hash of all it says. The file `installing` stands
    there while pip works: where it is found at the start, pip was cut off, and since pip takes a package whose metadata
    is in place for an installed one, such an environment is made anew.
    """

    def __init__(self, directory: pathlib.Path = ROOT / ".venv") -> None:
        self.directory = directory
        self.python = directory / "bin" / "python"

    def ensure(self, requirements: pathlib.Path, say: typing.Callable[[str], None] = print) -> bool:
        """Make the environment satisfy `requirements`; True when something had to be installed.

        Raises:
            SetupError: no usable Python, no space on the disk, or pip did not succeed.
        """
        unfinished = (self.directory / "installing").exists()
        if not unfinished and self._works() and self._is_stamped(requirements):
            return False
        check_python()
        check_space(self.directory.parent)
        if unfinished:
            say("The last installation was cut off: making the virtual environment anew.")
        if unfinished or not self._works():
            self._create()
        say(f"Installing {requirements.name} into {self.directory}: some minutes the first time.")
        (self.directory / "installing").touch()
        self._pip("install", "--requirement", str(requirements))
        for file in _with_included(requirements):
            self._stamp(file).write_text(_digest(file))
        (self.directory / "installing").unlink()
        return True

    def _works(self) -> bool:
        """Whether the interpreter starts, is new enough and has pip: a system upgrade may have taken its base away."""
        program = f"import sys, pip; sys.exit(sys.version_info < {NEEDED_PYTHON})"
        try:
            return subprocess.run([self.python, "-c", program], capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def _is_stamped(self, requirements: pathlib.Path) -> bool:
        stamp = self._stamp(requirements)
        return stamp.exists() and stamp.read_text() == _digest(requirements)

    def _stamp(self, requirements: pathlib.Path) -> pathlib.Path:
        return self.directory / f"installed-{requirements.name}"

    def _create(self) -> None:
        command = [sys.executable, "-m", "venv", "--clear", str(self.directory)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise _failure("make the virtual environment", outcome.stdout + outcome.stderr, self.directory)

    def _pip(self, *arguments: str) -> None:
        """Run pip: its progress goes to the terminal, its complaints are kept for the one line on what is wrong."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            complaints = process.communicate()[1]
        except BaseException:  # an interrupt: pip must not go on behind the prompt
            process.terminate()
            process.wait()
            raise
        if process.returncode:
            raise _failure("install the requirements", complaints, self.directory)


def _failure(what: str, output: str, directory: pathlib.Path) -> SetupError:
    if "No space left on device" in output or "Errno 28" in output:
        places = f"{directory}, pip's cache or {os.environ.get('TMPDIR', '/tmp')}"
        return SetupError(
            f"The disk became full while installing ({places}): this needs {NEEDED_FREE_BYTES / 1e9:.0f} GB "
            f"({CUDA_FREE_BYTES / 1e9:.0f} GB where pip takes torch's CUDA build). Free some and run the command again."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    reason = errors[-1] if errors else "no reason given"
    return SetupError(f"Could not {what}: {reason} (run the command again to go on from here).")


def _with_included(requirements: pathlib.Path) -> typing.List[pathlib.Path]:  # noqa: UP006
    """The file and those that it includes with `-r`, each of which is then installed as well."""
    files = [requirements]
    for line in requirements.read_text().splitlines():
        if line.startswith("-r "):
            files += _with_included(requirements.parent / line[3:].strip())
    return files


def _digest(requirements: pathlib.Path) -> str:
    content = b"".join(file.read_bytes() for file in _with_included(requirements))
    return hashlib.sha256(content).hexdigest()


def main(arguments: typing.Sequence[str]) -> int:
    try:
        for name in arguments:
            Environment().ensure(ROOT / name)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the next run goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
