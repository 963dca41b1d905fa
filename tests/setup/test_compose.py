"""The containers of a team's server. Their form is checked; no container engine runs them here."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from scripts.environment import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def compose_command() -> list[str] | None:
    """The compose client, if this machine has one."""
    if shutil.which("docker"):
        command = ["docker", "compose"]
        if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
            return command
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.skipif(compose_command() is None, reason="no compose client: docker-compose.yml is read as YAML alone")
def test_the_compose_client_accepts_the_file_with_a_password_and_refuses_it_without() -> None:
    command = [*(compose_command() or []), "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    with_password = {**environment, "POSTGRES_PASSWORD": "plumb"}
    accepted = subprocess.run(command, env=with_password, capture_output=True, text=True, check=False)
    assert accepted.returncode == 0, accepted.stderr
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "set POSTGRES_PASSWORD" in refused.stderr


def test_every_service_builds_or_names_an_image() -> None:
    assert set(SERVICES) == {"postgres", "migrate", "app", "worker", "worker-gpu"}
    for name, service in SERVICES.items():
        assert "build" in service or "image" in service, name


def test_only_the_dashboard_is_published_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"app"}
    assert all(port.startswith("127.0.0.1:") for port in published["app"])


def test_there_is_no_password_in_the_file_and_none_is_assumed() -> None:
    for name in ("app", "worker", "worker-gpu", "migrate"):
        assert "${POSTGRES_PASSWORD:?" in SERVICES[name]["environment"]["PLUMBLINE_DATABASE_URL"]
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_nothing_starts_before_the_tables_are_there() -> None:
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "pg_isready" in SERVICES["postgres"]["healthcheck"]["test"]
    for name in ("app", "worker", "worker-gpu"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_the_gpu_worker_is_asked_for_and_reserves_a_device() -> None:
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "profiles" not in SERVICES["worker"]


def test_the_image_holds_what_the_services_start() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "COPY requirements.txt" in dockerfile
    for needed in ("app.py", "assets", "db", "pages", "planner", "runners", "static", ".streamlit"):
        assert needed not in ignored
        assert (ROOT / needed).exists()
    assert ".venv" in ignored
    assert ".env" in ignored
