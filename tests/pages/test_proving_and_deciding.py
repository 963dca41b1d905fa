"""Jobs, benchmarks, kernels, compare and decisions: empty states, wrong inputs, the address, verdicts, conflicts."""

from __future__ import annotations

import datetime

import pytest
from streamlit.testing.v1 import AppTest

from db.engine import Store, open_store
from db.records import JobState, NewResult, Revision
from pages.widgets.measured import plan_key
from planner import BenchmarkPlan, PrototypePlan, load
from tests.pages.conftest import ROOT

PAGES = ("jobs", "benchmarks", "kernels", "compare", "decisions")


def opened(page: str, **address: str) -> AppTest:
    test = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=30)
    for name, value in address.items():
        test.query_params[name] = value
    return test.run()


def text_of(test: AppTest) -> str:
    """All that the page shows as text."""
    return " ".join(str(element.proto.body) for element in test.get("html")) if test.get("html") else ""


def two_designs(store: Store) -> tuple[Revision, Revision]:
    spec = load("llama-2-7b")
    data = spec.model_dump(mode="json")
    grouped = load("mistral-7b").model_dump(mode="json")
    return store.designs.create("MHA", data).latest, store.designs.create("GQA", grouped).latest


def measured(store: Store, revision: Revision, seed: int, bits: float) -> None:
    """A stored prototype, as a job leaves it."""
    plan = PrototypePlan(seed=seed).model_dump(mode="json")
    job = store.jobs.begin("prototype", revision.id, plan, "test")
    values = {"bits_per_byte": bits, "loss": bits, "seed": seed, "parameters": 10, "tokens": 5, "training_flops": 7}
    store.jobs.append(job.id, job.attempt, [NewResult("prototype", values, {"device": "test"})])
    store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_store_is_met_with_what_to_do_next(page: str) -> None:
    test = opened(page)
    assert not test.exception
    assert "pl-empty" in text_of(test)


@pytest.mark.parametrize(
    "page, address",
    [
        ("jobs", {"job": "nothing"}),
        ("compare", {"revisions": "7,8,nonsense", "baseline": "99"}),
        ("decisions", {"decision": "nonsense"}),
        ("decisions", {"decision": "41"}),
    ],
)
def test_an_address_that_leads_nowhere_is_said_without_a_traceback(page: str, address: dict[str, str]) -> None:
    test = opened(page, **address)
    assert not test.exception
    assert "pl-problems" in text_of(test) or "pl-empty" in text_of(test)


def test_a_wrong_setting_leaves_its_message_at_its_field_and_nothing_is_sent() -> None:
    with open_store() as store:
        two_designs(store)
    test = opened("jobs")
    test.text_input(key="plan-verify-batch_size").set_value("0").run()
    assert not test.exception
    assert "greater than 0" in text_of(test)
    assert test.text_input(key="plan-verify-batch_size").value == "0"
    assert not [button for button in test.button if button.key == "send-job"]
    test.text_input(key="plan-verify-batch_size").set_value("2").run()
    test.button(key="send-job").click().run()
    with open_store() as store:
        (job,) = store.jobs.list()
    assert (job.kind, job.plan["batch_size"]) == ("verify", 2)


def test_a_prototype_is_sent_on_text_or_on_a_task() -> None:
    """A choice that may be left empty begins so; the task's own rules are said at the field that breaks them."""
    with open_store() as store:
        two_designs(store)
    test = opened("jobs")
    test.selectbox(key="dispatch-kind").set_value("prototype").run()
    assert not test.exception
    assert test.selectbox(key="plan-prototype-task").value is None
    test.selectbox(key="plan-prototype-task").set_value("sorting").run()
    test.text_input(key="plan-prototype-difficulty").set_value("128").run()
    assert "needs 257 positions, not 256" in text_of(test)
    test.text_input(key="plan-prototype-difficulty").set_value("4").run()
    test.button(key="send-job").click().run()
    with open_store() as store:
        (job,) = store.jobs.list()
    assert (job.plan["task"], job.plan["difficulty"]) == ("sorting", 4)


def test_plans_from_before_a_field_existed_are_comparable_with_those_that_leave_it_empty() -> None:
    plan = PrototypePlan().model_dump(mode="json")
    before = {name: value for name, value in plan.items() if name not in ("task", "difficulty")}
    assert plan_key(before) == plan_key(plan)
    on_task = PrototypePlan(task="sorting").model_dump(mode="json")
    assert plan_key(on_task) != plan_key(plan)


def test_a_queued_job_is_cancelled_from_its_page() -> None:
    with open_store() as store:
        revision, _ = two_designs(store)
        job = store.jobs.enqueue("verify", revision.id, {})
    test = opened("jobs", job=job.id)
    assert "No worker is running" in text_of(test)
    test.button(key="cancel").click().run()
    with open_store() as store:
        assert store.jobs.get(job.id).state is JobState.CANCELLED


def test_a_difference_is_called_one_beside_three_seeds_only() -> None:
    with open_store() as store:
        first, second = two_designs(store)
        for seed in range(3):
            measured(store, first, seed, 2.0 + seed / 100)
        for seed in range(2):
            measured(store, second, seed, 1.0 + seed / 100)
    test = opened("compare", revisions=f"{first.id},{second.id}")
    assert not test.exception
    assert "no verdict: fewer than 3 seeds" in text_of(test)
    with open_store() as store:
        measured(store, second, 2, 1.02)
    shown = text_of(opened("compare", revisions=f"{first.id},{second.id}"))
    assert "lower (95% interval" in shown
    assert "tokens held equal" in shown


def test_only_what_differs_is_listed_when_asked() -> None:
    with open_store() as store:
        first, second = two_designs(store)
    address = {"revisions": f"{first.id},{second.id}"}
    assert "Layers</td>" in text_of(opened("compare", **address))
    assert "Layers</td>" not in text_of(opened("compare", differences="1", **address))


def test_a_decision_saved_by_somebody_else_first_keeps_what_was_typed() -> None:
    with open_store() as store:
        decision = store.decisions.create("Use GQA")
    test = opened("decisions", decision=str(decision.id), edit="1")
    with open_store() as store:
        store.decisions.update(decision.id, expected_version=decision.version, title="Theirs")
    test.text_input(key=f"decision-{decision.id}-title").set_value("Mine")
    next(button for button in test.button if button.label == "Save").click().run()
    assert not test.exception
    assert "Your text is still here" in text_of(test)
    assert test.text_input(key=f"decision-{decision.id}-title").value == "Mine"
    next(button for button in test.button if button.label == "Save").click().run()
    with open_store() as store:
        assert store.decisions.get(decision.id).title == "Mine"


def test_benchmarks_and_kernels_show_what_is_stored() -> None:
    timing = {"median_seconds": 0.5, "low_seconds": 0.4, "high_seconds": 0.6, "repetitions": 20, "narrow": True}
    entry = {
        "kernel": "swiglu", "function": "forward", "architecture": "sm_90", "dtype": "bf16", "sizes": {},
        "registers": 32, "spills": 0, "shared_memory_bytes": 0, "tensor_core_instructions": {}, "num_warps": 4,
    }  # fmt: skip
    with open_store() as store:
        revision, _ = two_designs(store)
        values = {
            "benchmark": {"timings": {"prefill": {**timing, "tokens_per_second": 1234.0}}},
            "kernels": {"kernels": [entry]},
        }
        for kind, found in values.items():
            plan = BenchmarkPlan().model_dump(mode="json")
            job = store.jobs.begin(kind, revision.id, plan, "test")
            environment = {"device": "a device of the test", "date": datetime.date.today().isoformat()}
            store.jobs.append(job.id, job.attempt, [NewResult(kind, found, environment)])
            store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    for page, words in (("benchmarks", "500 ms"), ("kernels", "sm_90"), ("kernels", "50.785 ms")):
        test = opened(page)
        assert not test.exception
        assert words in text_of(test)
        assert "a device of the test" in text_of(test)
