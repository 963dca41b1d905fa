"""The virtual environment that `make app` makes: each reason for which it cannot be made is one line."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import zipfile

import pytest

from scripts import environment
from scripts.environment import Environment, SetupError, check_python, check_space


def write_wheel(directory: pathlib.Path, version: str) -> pathlib.Path:
    """A wheel with one module, so that pip has something to install without a network."""
    wheel = directory / f"plumb_bob-{version}-py3-none-any.whl"
    information = f"plumb_bob-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("plumb_bob.py", f"version = {version!r}\n")
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: plumb-bob\nVersion: {version}\n")
        archive.writestr(
            f"{information}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{information}/RECORD", "")
    return wheel


def installed_version(made: Environment) -> str:
    command = [made.python, "-c", "import plumb_bob; print(plumb_bob.version)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def requirements(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "requirements.txt"
    file.write_text(f"{write_wheel(tmp_path, '1.0')}\n")
    return file


@pytest.mark.parametrize("version", [(3, 8, 20), (3, 10, 4)])
def test_an_old_python_is_named_with_what_to_do(version: tuple[int, ...]) -> None:
    with pytest.raises(SetupError) as caught:
        check_python(version)
    assert ".".join(map(str, version)) in str(caught.value)
    assert "make app PYTHON=" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 3), (3, 13, 1)])
def test_newer_pythons_are_welcome(version: tuple[int, ...]) -> None:
    check_python(version)


def test_a_python_without_venv_names_debians_package() -> None:
    with pytest.raises(SetupError, match=r"apt-get install python3\.11-venv"):
        check_python((3, 11, 2), has_module=lambda name: name != "ensurepip")


def test_an_old_python_can_read_the_scripts_far_enough_to_say_so() -> None:
    for name in ("environment.py", "launch.py"):
        source = (environment.ROOT / "scripts" / name).read_text()
        ast.parse(source, feature_version=(3, 8))


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SetupError) as caught:
        check_space(tmp_path, needed_bytes=4_000_000_000, free_bytes=lambda _directory: 1_200_000_000)
    assert "1.2 GB are free" in str(caught.value)
    assert "4 GB" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    check_space(tmp_path, needed_bytes=4_000_000_000, free_bytes=lambda _directory: 4_000_000_000)


def test_a_disk_that_fills_while_pip_works_is_one_line(tmp_path: pathlib.Path) -> None:
    said_by_pip = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\nmore\n"
    error = environment._failure("install the requirements", said_by_pip, tmp_path)
    assert "became full" in str(error)
    assert "\n" not in str(error)


@pytest.mark.slow
def test_an_environment_is_made_once_renewed_on_change_and_repaired(
    tmp_path: pathlib.Path, requirements: pathlib.Path
) -> None:
    made = Environment(tmp_path / ".venv")
    said: list[str] = []
    assert made.ensure(requirements, said.append)
    assert installed_version(made) == "1.0"
    assert not made.ensure(requirements, said.append), "a second start installs nothing"

    requirements.write_text(f"{write_wheel(tmp_path, '2.0')}\n")
    assert made.ensure(requirements, said.append)
    assert installed_version(made) == "2.0"

    # Cut off half way, as by `kill -9`: metadata says "installed", the module is not there.
    (made.directory / "installing").touch()
    next(made.directory.glob("lib/*/site-packages/plumb_bob.py")).unlink()
    assert made.ensure(requirements, said.append)
    assert installed_version(made) == "2.0"
    assert any("cut off" in line for line in said)


@pytest.mark.slow
def test_what_pip_cannot_find_is_one_line_and_leaves_the_mark_of_an_unfinished_installation(
    tmp_path: pathlib.Path,
) -> None:
    broken = tmp_path / "requirements.txt"
    broken.write_text(f"{tmp_path / 'absent-1.0-py3-none-any.whl'}\n")
    made = Environment(tmp_path / ".venv")
    with pytest.raises(SetupError) as caught:
        made.ensure(broken, lambda _line: None)
    assert "absent-1.0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (made.directory / "installing").exists()


def test_development_requirements_include_the_applications(tmp_path: pathlib.Path) -> None:
    (tmp_path / "requirements.txt").write_text("a==1\n")
    development = tmp_path / "requirements-dev.txt"
    development.write_text("-r requirements.txt\nb==1\n")
    before = environment._digest(development)
    (tmp_path / "requirements.txt").write_text("a==2\n")
    assert environment._digest(development) != before


def test_every_requirement_is_pinned() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (environment.ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert "==" in line, f"{name}: {line} would install something else tomorrow"


def test_the_command_ends_with_status_1_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Environment, requirements: pathlib.Path) -> bool:
        raise SetupError("The disk is too full.")

    monkeypatch.setattr(Environment, "ensure", full)
    assert environment.main(["requirements.txt"]) == 1
    assert capsys.readouterr().err == "The disk is too full.\n"
