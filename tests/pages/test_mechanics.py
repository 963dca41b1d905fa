"""Mechanics: what probes found is drawn as it was stored; without a result the page says how to get one."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from db.engine import Store, open_store
from db.records import JobState, NewResult, Revision
from planner import PrototypePlan, parse_spec
from planner.plans import Plan
from planner.probes import AttentionCostPlan, GradientNormsPlan, ReachPlan, RouterLoadPlan
from runners.events import Result
from runners.jobs.base import JobContext
from runners.jobs.registry import job_kind
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, query, shown, trace

HEADS = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5}
EXPERTS = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}
PLANS: dict[str, Plan] = {
    "reach": ReachPlan(sequence_length=16, keep_windows=True, hidden_size=16),
    "attention_cost": AttentionCostPlan(first_context=32, last_context=64, hidden_size=16),
    "gradient_norms": GradientNormsPlan(hidden_size=16, steps=1, seeds=2, batch_size=1, sequence_length=16),
    "router_load": RouterLoadPlan(parameter_budget=60_000, steps=1, batch_size=2, sequence_length=16, batches=1),
}


def spec(channel: dict[str, Any] = EXPERTS) -> dict[str, Any]:
    groups = [{"repeats": 2, "layers": [{"sequence_mixer": HEADS, "channel_mixer": channel}]}]
    return parse_spec({"vocab_size": 256, "hidden_size": 16, "layer_groups": groups}).model_dump(mode="json")


def saved(store: Store, name: str = "Mixture", **options: Any) -> Revision:
    return store.designs.create(name, spec(**options)).latest


def measured(store: Store, revision: Revision, kind: str, directory: pathlib.Path) -> dict[str, Any]:
    """The job's own result, stored as a worker stores it."""
    run = job_kind(kind).load_run()
    events = run(parse_spec(dict(revision.spec)), PLANS[kind], JobContext(directory))
    (result,) = [event for event in events if isinstance(event, Result)]
    job = store.jobs.begin(kind, revision.id, PLANS[kind].model_dump(mode="json"), "test")
    store.jobs.append(job.id, job.attempt, [NewResult(kind, dict(result.values), dict(result.environment))])
    store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    return dict(result.values)


def opened(**address: str) -> AppTest:
    test = AppTest.from_file(str(ROOT / "pages" / "mechanics.py"), default_timeout=60)
    for name, value in address.items():
        test.query_params[name] = value
    test.run()
    assert not test.exception
    return test


def test_without_a_design_the_studio_comes_first() -> None:
    assert "No saved design yet" in shown(opened())


@pytest.mark.parametrize("kind", list(PLANS))
def test_without_a_result_a_job_is_sent_from_here(kind: str) -> None:
    with open_store() as store:
        revision = saved(store)
    test = opened(measure=kind)
    assert "Nothing is measured yet" in shown(test)
    assert "About" in shown(test)  # what it will take
    test.button(key=f"send-{kind}").click().run()
    assert not test.exception
    with open_store() as store:
        (job,) = store.jobs.list()
    assert (job.kind, job.revision_id) == (kind, revision.id)
    assert "On the way" in shown(test)


def test_what_a_design_does_not_have_is_refused_with_its_field_and_no_button() -> None:
    with open_store() as store:
        saved(store, channel={"kind": "mlp", "intermediate_size": 32})
    test = opened(measure="router_load")
    assert "layer_groups" in shown(test)
    assert "moe" in shown(test)
    assert not [button for button in test.button if button.key == "send-router_load"]


def test_a_wrong_setting_leaves_its_message_at_its_field() -> None:
    with open_store() as store:
        saved(store)
    test = opened(measure="reach")
    test.text_input(key="probe-reach-position").set_value("256").run()
    assert not test.exception
    assert "no position 256" in shown(test)
    assert not [button for button in test.button if button.key == "send-reach"]


def test_reach_is_drawn_with_the_predicted_edge(tmp_path: pathlib.Path) -> None:
    with open_store() as store:
        revision = saved(store)
        measured(store, revision, "reach", tmp_path)
    test = opened(measure="reach")
    figures = charts(test)
    (name,) = [key for key in figures if key.endswith("-profile")]
    cells = next(each for each in figures[name]["data"] if each["type"] == "heatmap")
    # From position 15 a window of 5 sees 11 to 15, two of them 7 to 15.
    assert [[place for place, value in enumerate(row) if value is not None] for row in cells["z"]] == [
        [11, 12, 13, 14, 15],
        [7, 8, 9, 10, 11, 12, 13, 14, 15],
    ]
    assert trace(figures[name], "predicted edge")["x"] == [11, 7]
    assert "just the positions that were predicted" in shown(test)
    assert "70 of 16 × 16 counted, 70 predicted" in shown(test)  # 12 rows of 5, and 1 + 2 + 3 + 4


def test_a_difference_is_said_in_place_of_agreement(tmp_path: pathlib.Path) -> None:
    with open_store() as store:
        revision = saved(store)
        values = measured(store, revision, "reach", tmp_path)
        values["differing"] = [2]
        values["depths"][1] |= {"equal": False, "missing": 3}
        job = store.jobs.begin("reach", revision.id, PLANS["reach"].model_dump(mode="json"), "test")
        store.jobs.append(job.id, job.attempt, [NewResult("reach", values, {"device": "test"})])
        store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    test = opened(measure="reach")
    assert "differ after 2" in shown(test)
    assert "3 missing" in shown(test)
    older = test.selectbox(key="mechanics-result").options[1]
    test.selectbox(key="mechanics-result").select(older).run()
    assert "just the positions that were predicted" in shown(test)
    assert query(test)["result"]


def test_cost_gradients_and_load_are_drawn_as_stored(tmp_path: pathlib.Path) -> None:
    with open_store() as store:
        revision = saved(store)
        found = {
            kind: measured(store, revision, kind, tmp_path)
            for kind in ("attention_cost", "gradient_norms", "router_load")
        }
    cost = found["attention_cost"]
    drawn = next(figure for key, figure in charts(opened(measure="attention_cost")).items() if key.endswith("-seconds"))
    line = trace(drawn, "SDPA with a mask")
    assert line["x"] == [entry["context"] for entry in cost["contexts"] if "sdpa" in entry["ways"]]
    assert line["y"] == [e["ways"]["sdpa"]["median_seconds"] for e in cost["contexts"] if "sdpa" in e["ways"]]
    drawn = next(
        figure for key, figure in charts(opened(measure="gradient_norms")).items() if key.endswith("-trained-stream")
    )
    stored = {entry["placement"]: entry for entry in found["gradient_norms"]["placements"]}
    assert trace(drawn, "after residual")["y"] == stored["after_residual"]["trained"]["stream"]["median"]
    assert drawn["layout"]["yaxis"]["type"] == "log"
    test = opened(measure="router_load")
    drawn = next(figure for key, figure in charts(test).items() if key.endswith("-initial-load"))
    initial = found["router_load"]["stages"][0]["layers"]
    assert drawn["data"][0]["z"] == [layer["relative"] for layer in initial]
    assert "by chance" in shown(test)


def test_a_prototype_lends_its_weights_with_the_settings_that_they_need() -> None:
    with open_store() as store:
        revision = saved(store)
        plan = PrototypePlan(parameter_budget=70_000, sequence_length=32)
        trained = store.jobs.begin("prototype", revision.id, plan.model_dump(mode="json"), "test")
        store.jobs.finish(trained.id, trained.attempt, JobState.SUCCEEDED)
    test = opened(measure="router_load")
    test.selectbox(key="mechanics-lender").set_value(trained.id).run()
    test.button(key="send-router_load").click().run()
    assert not test.exception
    with open_store() as store:
        (job,) = [job for job in store.jobs.list() if job.kind == "router_load"]
    sent = (job.plan["prototype"], job.plan["parameter_budget"], job.plan["sequence_length"])
    assert sent == (trained.id, 70_000, 32)


def test_an_address_that_leads_nowhere_shows_the_first_design() -> None:
    with open_store() as store:
        saved(store)
    test = opened(design="99", measure="nonsense", result="7")
    assert "Nothing is measured yet" in shown(test)


def test_the_job_itself_shows_the_drawing(tmp_path: pathlib.Path) -> None:
    with open_store() as store:
        revision = saved(store)
        measured(store, revision, "reach", tmp_path)
        (job,) = store.jobs.list()
    test = AppTest.from_file(str(ROOT / "pages" / "jobs.py"), default_timeout=60)
    test.query_params["job"] = job.id
    test.run()
    assert not test.exception
    assert any(key.endswith("-profile") for key in charts(test))
