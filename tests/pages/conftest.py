"""Pages under Streamlit's own test harness: real scripts and widgets, no browser."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import streamlit as st

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_store(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has a data directory of its own, and no store left over from another."""
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("PLUMBLINE_DATABASE_URL", raising=False)
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()
