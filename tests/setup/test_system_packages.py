"""What the tests need outside Python: found, installed where that is allowed, and else named with the command."""

from __future__ import annotations

import subprocess

import pytest

from scripts import system_packages


def nothing(_name: str) -> None:
    return None


def test_only_what_is_missing_is_named() -> None:
    packages = {"chromium": lambda: True, "postgresql": lambda: False, "fontconfig fonts": lambda: False}
    assert system_packages.missing_packages(packages) == ["postgresql", "fontconfig", "fonts"]


def test_root_needs_no_sudo() -> None:
    assert system_packages.privilege(is_root=True, which=lambda name: f"/usr/bin/{name}") == []


@pytest.mark.parametrize(("status", "expected"), [(0, ["sudo", "-n"]), (1, None)])
def test_sudo_is_used_only_if_it_asks_nothing(status: int, expected: list[str] | None) -> None:
    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        assert command == ["sudo", "-n", "true"]
        return subprocess.CompletedProcess(command, status)

    assert system_packages.privilege(False, lambda name: f"/usr/bin/{name}", run) == expected


def test_without_apt_nothing_is_tried() -> None:
    assert system_packages.privilege(is_root=True, which=nothing) is None


def test_where_nothing_may_be_installed_the_command_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system_packages, "missing_packages", lambda: ["chromium", "postgresql"])
    monkeypatch.setattr(system_packages, "privilege", lambda: None)
    assert system_packages.main() == 1
    assert "sudo apt-get update && sudo apt-get install -y chromium postgresql" in capsys.readouterr().err
