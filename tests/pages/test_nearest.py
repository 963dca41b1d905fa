"""Estimates carry the error of their nearest measured runs, on every page that shows one."""

from __future__ import annotations

import statistics

import pytest
from streamlit.testing.v1 import AppTest

from db.engine import open_store
from pages.widgets import nearest
from planner import load
from planner.ledger import published_pairs
from tests.pages.conftest import ROOT
from tests.pages.reading import shown


@pytest.fixture(autouse=True, scope="module")
def predicted() -> None:
    """The published runs are predicted, as they are some seconds after a server has started."""
    nearest.published()


def opened(page: str, **asked: str) -> str:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=120)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return shown(app)


LLAMA = {"preset": "llama-3-8b"}


@pytest.mark.parametrize(
    ("page", "asked", "quantities"),
    [
        ("studio", LLAMA, ("Memory of serving", "Peak training memory")),
        ("sizing", LLAMA, ("Memory of serving", "Peak training memory")),
        ("training_plan", LLAMA, ("Peak training memory", "Time of a training step")),
        ("serving_plan", LLAMA, ("Memory of serving", "Time between tokens", "Time of a prompt")),
        ("sensitivity", {**LLAMA, "output": "tokens_per_second"}, ("Time between tokens", "Memory of serving")),
        ("hardware", {"device": "h100"}, ("Time between tokens", "Memory of serving")),
        ("home", {**LLAMA, "device": "h100"}, ("Memory of serving", "Time between tokens", "Time of a prompt")),
    ],
)
def test_each_estimate_names_its_nearest_runs_and_their_error(
    page: str, asked: dict[str, str], quantities: tuple[str, ...]
) -> None:
    text = opened(page, **asked)
    for quantity in quantities:
        link = f'<a href="ledger?quantity={quantity.replace(" ", "+")}&amp;by=component" target="_self">{quantity}</a>'
        assert f"{link}: <span title=" in text
    assert text.count("median error") >= len(quantities)


def test_the_error_that_is_told_is_that_of_runs_like_it() -> None:
    # By hand, from the pairs themselves: attention and experts, no more than twice as many kinds, 4.67 to 467 B.
    near = [
        pair
        for pair in published_pairs()
        if pair.quantity == "Peak training memory"
        and pair.kinds >= {"attention", "moe"}
        and len(pair.kinds) <= 4
        and 4.67e9 <= pair.parameters <= 4.67e11
    ]
    errors = [abs(pair.predicted - pair.measured) / pair.measured for pair in near]
    assert 0 < len(near) <= 10
    said = f"{len(near)} runs, median error {100 * statistics.median(errors):.1f}%, worst {100 * max(errors):.1f}%"
    assert said in opened("training_plan", preset="mixtral-8x7b")


def test_a_design_that_nobody_measured_is_said_to_have_no_near_run() -> None:
    text = opened("sizing", preset="mamba2-2.7b")
    assert "no near run</b> (none has mamba2)" in text
    assert "Mamba-2 2.7B, counts 2,702,599,680 where 2.7 B are published" in text


def test_compared_designs_have_a_row_an_estimate() -> None:
    with open_store() as store:
        ids = [
            store.designs.create(name, load(name).model_dump(mode="json")).latest.id
            for name in ("llama-3-8b", "mamba2-2.7b")
        ]
    text = opened("compare", revisions=",".join(map(str, ids)))
    assert "Error on the nearest measured runs" in text
    assert text.count("none has mamba2") == 2


def test_before_the_runs_are_predicted_the_page_stands_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    waiting: Future[tuple[object, ...]] = Future()
    monkeypatch.setattr(nearest, "_predicting", lambda: waiting)
    text = opened("studio", **LLAMA)
    assert "predicting the published ones once" in text
    assert "median error" not in text
