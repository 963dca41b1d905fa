"""The kernels page: a stored report in words."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from db.engine import open_store
from db.records import JobState, NewResult
from pages.widgets.starting import starting_spec
from tests.pages.conftest import ROOT
from tests.pages.reading import shown


def entry(rich: int, spills: int = 0) -> dict[str, object]:
    return {
        "kernel": "causal_attention",
        "function": "_forward",
        "architecture": "sm_90",
        "dtype": "bf16",
        "sizes": {"head_dim": 128, "rich_mask": rich},
        "registers": 168,
        "spills": spills,
        "shared_memory_bytes": 65_536,
        "tensor_core_instructions": {"wgmma": 48},
        "num_warps": 4,
    }


def opened() -> str:
    app = AppTest.from_file(str(ROOT / "pages" / "kernels.py"), default_timeout=60).run()
    assert not app.exception
    return shown(app)


def test_without_a_report_it_says_how_to_get_one() -> None:
    assert "No report yet" in opened()


def test_a_flag_is_yes_or_no_and_a_size_is_a_size() -> None:
    with open_store() as store:
        revision = store.designs.create("Any", starting_spec().to_dict()).latest
        job = store.jobs.begin("kernels", revision.id, {}, "test", name="Kernel report")
        values = {"kernels": [entry(0), entry(1, spills=8)]}
        store.jobs.append(job.id, job.attempt, [NewResult("kernels", values, {"date": "2026-11-24T20:06:24+00:00"})])
        store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    found = opened()
    assert "head dim 128, rich mask: no" in found
    assert "head dim 128, rich mask: yes" in found
    assert "64 KiB" in found
    assert '<span class="pl-bad">8</span>' in found
    assert "24 Nov 2026 20:06 UTC" in found
