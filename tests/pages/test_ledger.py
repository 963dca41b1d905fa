"""The ledger without a browser: pairs of stored results and of published runs, and their errors by group."""

from __future__ import annotations

import datetime

import pytest
from streamlit.testing.v1 import AppTest

from db.engine import open_store
from db.example import import_example
from db.records import JobState, NewResult
from planner import VerifyPlan, load
from planner.ledger import published_pairs
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, query, shown, trace


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "ledger.py"), default_timeout=120)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def stored(device: str, predicted: float, measured: float, quantity: str = "Peak training memory") -> None:
    """A stored verification of one quantity, as a job leaves it."""
    row = {"quantity": quantity, "predicted": predicted, "measured": measured, "unit": "bytes", "error": None}
    with open_store() as store:
        revision = store.designs.create(f"On {device}", load("tiny-hybrid").model_dump(mode="json")).latest
        job = store.jobs.begin("verify", revision.id, VerifyPlan().model_dump(mode="json"), "test")
        store.jobs.append(job.id, job.attempt, [NewResult("verify", {"rows": [row]}, {"device": device})])
        store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)


def test_without_jobs_the_published_runs_stand_there_and_one_is_told_what_to_do() -> None:
    app = opened()
    assert f"{len(published_pairs()):,} predictions" in shown(app)
    own = opened(origin="own")
    assert "Nothing was measured of this yet" in shown(own)


def test_a_stored_pair_is_a_point_and_a_row_with_its_error() -> None:
    stored("Machine one", 110 * 2**20, 100 * 2**20)
    stored("Machine two", 75 * 2**20, 100 * 2**20)
    app = opened(origin="own", by="device")
    points = trace(charts(app)["ledger-bytes"], "own")
    assert sorted(points["y"]) == pytest.approx([75 / 1024, 110 / 1024])
    assert points["x"] == pytest.approx([100 / 1024] * 2)
    page = shown(app)
    assert page.index("Machine two") < page.index("Machine one")  # the worst first
    assert "+10.0%" in page
    assert "−25.0%" in page
    components = opened(origin="own", by="component")
    assert "mamba2" in shown(components)


def test_what_is_chosen_is_in_the_address() -> None:
    stored("Machine one", 110, 100)
    stored("Machine one", 5, 5, quantity="Cache")
    app = opened(origin="own")
    app.selectbox(key="ledger-quantity").select("Cache").run()
    assert not app.exception
    assert query(app) == {"origin": "own", "quantity": "Cache"}
    assert "Peak training memory, Machine one" not in shown(app)


def test_the_pairs_of_the_ready_example_are_there() -> None:
    with open_store() as store:
        import_example(store)
    app = opened(origin="own", by="quantity")
    page = shown(app)
    assert "FLOPs, training step" in page
    assert "Parameters" in page


def test_errors_stand_on_the_day_of_their_measurement_a_row_a_quantity() -> None:
    stored("Machine one", 110 * 2**20, 100 * 2**20)
    stored("Machine two", 350 * 2**20, 100 * 2**20)  # 250% too high: at the edge
    stored("Machine one", 5, 5, quantity="Cache")
    app = opened(origin="own")
    figure = charts(app)["ledger-time"]
    points = trace(figure, "Peak training memory, own")
    assert sorted(points["y"]) == pytest.approx([0.1, 1.0])
    assert set(points["x"]) == {f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}
    page = shown(app)
    assert "as more than 100%: 1." in page
    assert "Cache (1)" in page  # exact, and so without a row
    assert not any(each["name"].startswith("Cache") for each in figure["data"])
    assert "component=mamba2" in page


def test_a_component_can_be_chosen_and_published_runs_stand_on_their_days() -> None:
    app = opened(origin="published", component="latent_attention", quantity="Time of a training step")
    chosen = [
        pair
        for pair in published_pairs()
        if "latent_attention" in pair.kinds and pair.quantity == "Time of a training step"
    ]
    points = trace(charts(app)["ledger-time"], "Time of a training step, published")
    assert points["x"] == [str(pair.when) for pair in chosen if pair.when is not None]
    assert set(points["x"]) >= {"2026-08-22"}  # Megatron-Bridge's table was read then


@pytest.mark.parametrize("name", ["origin", "quantity", "device", "component", "by"])
def test_an_address_that_cannot_be_breaks_nothing(name: str) -> None:
    assert "predictions that were measured" in shown(opened(**{name: "<b>nonsense"}))
