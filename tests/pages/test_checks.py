"""Measurements beside predictions: which of the key numbers carry the mark, and what the opened number says of them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from db import example
from db.engine import Store, open_store
from db.records import JobState, NewResult
from pages.widgets import checks, draft
from pages.widgets.starting import starting_spec
from planner import parse_spec
from tests.pages.conftest import ROOT
from tests.pages.reading import key_numbers, shown

TOTAL = 7_241_732_096
PLAN = {"batch_size": 1, "sequence_length": 128, "context_length": 128, "precision": "bf16_autocast"}
ENVIRONMENT = {"device": "Test device", "torch": "2.13.0", "date": "2026-11-24T20:06:24+00:00"}


def verified(
    store: Store, rows: list[Mapping[str, Any]], plan: Mapping[str, Any] = PLAN, spec: Mapping[str, Any] | None = None
) -> int:
    """A verification of the starting design that found ``rows``; the result's id."""
    spec = spec or starting_spec().to_dict()
    found = [each for each in store.designs.list() if each.name == "Ours"]
    design = found[0] if found else store.designs.create("Ours", spec)
    job = store.jobs.begin("verify", design.latest.id, dict(plan), "test", name="Check")
    store.jobs.append(job.id, job.attempt, [NewResult("verify", {"rows": list(rows)}, ENVIRONMENT)])
    store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    return store.results.list(job_id=job.id)[0].id


def row(quantity: str, measured: Any, unit: str = "parameters") -> dict[str, Any]:
    return {"quantity": quantity, "predicted": 1, "measured": measured, "error": 0.0, "unit": unit, "how": "counted"}


def studio(page: str = "studio", **query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def marks(app: AppTest) -> dict[str, str]:
    return {name: number["measured"] for name, number in key_numbers(app).items() if number["measured"]}


def test_the_recorded_example_carries_its_measurements_and_a_changed_design_none() -> None:
    with open_store() as store:
        example.import_example(store)
    app = studio(design="1")
    assert set(marks(app)) == {"parameters", "flops_forward", "cache", "training_memory"}
    assert marks(app)["parameters"] == "measured: as predicted, the built model"
    assert marks(app)["cache"] == "measured: as predicted, one sequence of 128 tokens, bf16"
    assert marks(app)["training_memory"].startswith("measured: the prediction is ")
    opened: draft.Draft = app.session_state["draft"]
    opened.change(parse_spec({**opened.spec.to_dict(), "vocab_size": 512}))
    app.run()
    assert marks(app) == {}
    opened.undo()
    opened.change(parse_spec({**opened.spec.to_dict(), "name": "Another name"}))
    app.run()
    assert len(marks(app)) == 4


def test_an_error_is_said_against_what_is_predicted_today() -> None:
    with open_store() as store:
        # Predicted is 7,241,732,096; the stored row claims another prediction, which is of no account.
        verified(store, [row("Parameters", 7_170_031_778)])
    (check,) = checks.of_design(starting_spec())["parameters"]
    assert (check.predicted, check.measured) == (TOTAL, 7_170_031_778)
    assert check.error == pytest.approx(0.01, abs=1e-6)
    assert check.words == "measured: the prediction is 1.0% too high, the built model"


def test_the_newest_measurement_of_each_shape_is_shown_and_an_archived_one_is_not() -> None:
    with open_store() as store:
        verified(store, [row("Parameters", TOTAL - 5), row("Cache", 128 * 131_072, "bytes")])
        newest = verified(store, [row("Parameters", TOTAL)])
        # Keys and values of 8 heads of 128 channels in 32 layers, two bytes each.
        assert 2 * 8 * 128 * 32 * 2 == 131_072
        verified(store, [row("Cache", 512 * 131_072, "bytes")], {**PLAN, "context_length": 512})
        found = checks.of_design(starting_spec())
        assert [check.measured for check in found["parameters"]] == [TOTAL]
        assert [(check.shape, check.error) for check in found["cache"]] == [
            ("one sequence of 512 tokens, bf16", 0),
            ("one sequence of 128 tokens, bf16", 0),
        ]
        store.results.archive(newest)
        assert [check.measured for check in checks.of_design(starting_spec())["parameters"]] == [TOTAL - 5]


def test_a_design_is_found_however_it_was_written() -> None:
    with open_store() as store:
        verified(store, [row("Parameters", TOTAL)], spec=starting_spec().model_dump(mode="json"))
    assert "parameters" in checks.of_design(starting_spec())
    assert checks.of_design(parse_spec({**starting_spec().to_dict(), "vocab_size": 512})) == {}


def test_what_could_not_be_measured_carries_no_mark() -> None:
    with open_store() as store:
        verified(store, [row("Peak training memory", None, "bytes"), row("Tensors with the predicted name", 98)])
        verified(store, [row("Parameters", TOTAL)], {**PLAN, "precision": "a type of another version"})
    assert checks.of_design(starting_spec()) == {}


def test_the_opened_number_shows_predicted_measured_and_error_with_where_it_was_measured() -> None:
    with open_store() as store:
        verified(store, [row("FLOPs, forward", 1_700_000_000_000, "FLOP")])

    def opened() -> None:
        from pages.widgets import checks, terms
        from pages.widgets.starting import starting_spec
        from planner import TrainingPlan, explain

        spec = starting_spec()
        found = checks.of_design(spec)
        terms.show(explain(spec, "flops_forward", TrainingPlan(sequence_length=4096)), spec, found["flops_forward"])

    app = AppTest.from_function(opened, default_timeout=60).run()
    assert not app.exception
    # Two FLOPs a weight of every matrix but the embedding, four a score and channel, over 128 tokens.
    predicted = 128 * (2 * (TOTAL - 32_000 * 4096 - 65 * 4096) + 4 * 128 * 4096 * 32)
    assert f"{predicted / 1e12:.3g} TFLOPs" in shown(app)
    assert "1.7 TFLOPs" in shown(app)
    assert "Test device" in shown(app)
    assert "one sequence of 128 tokens" in shown(app)
    assert f"+{100 * (predicted - 1.7e12) / 1.7e12:.1f}%" in shown(app)


def test_the_sizing_page_shows_them_too() -> None:
    with open_store() as store:
        verified(store, [row("Parameters", TOTAL)])
    app = studio("sizing", derive="parameters")
    assert set(marks(app)) == {"parameters"}
    assert "Measured on this design" in shown(app)
    assert "exact" in shown(app)


def test_a_store_that_cannot_be_opened_takes_no_number_away(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(blocked))
    app = studio()
    assert marks(app) == {}
    assert key_numbers(app)["parameters"]["exact"] == f"{TOTAL:,}"
