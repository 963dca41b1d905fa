"""The page on adding a family is true: its file is found, and sizes every variation as transformers builds it."""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

import planner.interop
from planner import UnsupportedArchitecture
from planner.interop import ADAPTERS, families, from_huggingface
from planner.interop.base import Adapter
from tests.planner.interop.oracle import judged, variations

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "planner" / "adding-a-family.md"
MODULE = "written_on_the_page"


def blocks() -> list[str]:
    """The page's Python, in its order: the family's file, and the proof."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def put_in_place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    """The page's adapter, found as a file in the folder of families, in place of the family's own for one test."""
    (tmp_path / f"{MODULE}.py").write_text(blocks()[0], encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{families.__name__}.{MODULE}", raising=False)
    found = planner.interop._every_adapter()
    monkeypatch.delitem(sys.modules, f"{families.__name__}.{MODULE}")
    assert list(found) == ["arcee"]
    assert found["arcee"] is not ADAPTERS["arcee"]
    monkeypatch.setitem(ADAPTERS, "arcee", found["arcee"])  # type: ignore[misc]
    return found["arcee"]


def test_the_page_has_a_file_and_a_proof() -> None:
    assert len(blocks()) == 2


def test_the_proof_on_the_page_holds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = put_in_place(tmp_path, monkeypatch)
    names: dict[str, object] = {}
    exec(blocks()[1], names)
    assert len(names["expected"]) == 3 + 3 * 10  # type: ignore[arg-type]
    assert planner.interop.adapter_for(names["config"]) is adapter


def test_every_variation_is_judged_as_by_the_family_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = list(variations("arcee", pairs=10))
    own = [judged(config)[0] for config in configs]
    put_in_place(tmp_path, monkeypatch)
    assert [judged(config)[0] for config in configs] == own
    assert set(own) <= {"exact", "refused", "rejected"}
    assert own.count("exact") >= 50


def test_a_field_in_no_list_is_refused_by_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(tmp_path, monkeypatch)
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface({"model_type": "arcee", "extra_width": 8})
    assert refused.value.path == "extra_width"
