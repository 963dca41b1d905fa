"""The training plan without a browser: memory of each rank, the moments of a step, the map, and wrong plans."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from planner import TrainingPlan, estimate_training, load
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, key_numbers, query, shown, trace


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "training_plan.py"), default_timeout=120)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_the_states_are_those_of_the_rule_of_sixteen_bytes() -> None:
    # Llama 2 7B in bf16 with fp32 master weights: 2 + 2 + 12 bytes a parameter (ZeRO, arXiv:1910.02054, section 3.1).
    app = opened(preset="llama-2-7b", sequence_length="512")
    step = charts(app)["training-timeline"]
    parameters = 6_738_415_616
    for part, width in (("parameters", 2), ("gradients", 2), ("optimizer", 12)):
        assert trace(step, part)["y"][0] == pytest.approx(width * parameters / 2**30, rel=1e-3)
    assert "every device" in shown(app)
    assert "does not fit" in str(key_numbers(app)["memory"])


def test_each_pipeline_rank_has_a_bar_and_each_device_a_square() -> None:
    app = opened(
        preset="llama-2-7b", tensor_parallel="2", pipeline_parallel="4", data_parallel="2", global_batch_size="16",
        hardware="h200",
    )  # fmt: skip
    page = shown(app)
    assert all(f"pipeline rank {rank}" in page for rank in range(4))
    assert page.count('<i style="background:var(--variant-') == 16
    assert "16 in all" in page
    assert key_numbers(app)["devices"]["value"] == "16"
    plan = TrainingPlan(
        tensor_parallel=2, pipeline_parallel=4, data_parallel=2, global_batch_size=16, sequence_length=4096,
        hardware="h200",
    )  # fmt: skip
    total = estimate_training(load("llama-2-7b"), plan).memory.total_bytes
    assert key_numbers(app)["memory"]["exact"] == f"{total:,} bytes"


def test_the_layers_of_uneven_stages_are_typed_and_told() -> None:
    app = opened(preset="llama-2-7b", pipeline_parallel="3", pipeline_layers="12,12,8", global_batch_size="8")
    page = shown(app)
    assert "pipeline rank 0, 12 layers" in page
    assert "pipeline rank 2, 8 layers" in page
    assert query(app)["pipeline_layers"] == "12,12,8"
    assert app.text_input(key="training-plan-pipeline_layers").value == "12, 12, 8"


def test_a_changed_field_is_in_the_address_and_comes_back_from_it() -> None:
    app = opened(preset="llama-2-7b")
    app.selectbox(key="training-plan-recompute").select("full").run()
    app.checkbox(key="training-plan-gradient_fusion").uncheck().run()
    assert not app.exception
    said = query(app)
    assert said["recompute"] == "full"
    again = opened(**said)
    assert again.selectbox(key="training-plan-recompute").value == "full"
    assert not again.checkbox(key="training-plan-gradient_fusion").value
    assert key_numbers(again)["memory"] == key_numbers(app)["memory"]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"tensor_parallel": "3"}, "tensor_parallel"),
        ({"pipeline_parallel": "64"}, "pipeline_parallel"),
        ({"micro_batch_size": "0"}, "greater than 0"),
        ({"micro_batch_size": "many"}, "valid integer"),
        ({"zero_stage": "7"}, "less than or equal to 3"),
        ({"global_batch_size": "3", "micro_batch_size": "2"}, "global_batch_size"),
        ({"precision": "fp3"}, "Memory a device"),
        ({"hardware": "abacus"}, "Memory by part"),
        ({"preset": "no-such"}, "no-such"),
    ],
)
def test_wrong_plans_are_said_without_a_traceback(asked: dict[str, str], said: str) -> None:
    app = opened(**{"preset": "llama-2-7b", **asked})
    numbers = str(key_numbers(app)) if said == "Memory a device" else shown(app)
    assert said in numbers


def test_the_time_of_a_step_opens_into_its_terms_with_formulas_and_sources() -> None:
    app = opened(preset="llama-3-8b", optimizer="adamw_8bit", recompute="full")
    app.button(key="open-step-time").click().run()
    assert not app.exception, app.exception
    page = shown(app)
    assert "step time, modelled" in page
    # arXiv:2307.08691 is the source of fused attention's time, of which a part is by d·n_q.
    assert "arXiv:2307.08691" in page
    assert "d·n_q" in page
    plan = TrainingPlan(
        sequence_length=4096, optimizer="adamw_8bit", recompute="full", hardware="h100",
    )  # fmt: skip
    seconds = estimate_training(load("llama-3-8b"), plan).step_seconds
    assert f"{seconds:.6g} seconds" in page
    assert all(number["opens"] == (name != "devices") for name, number in key_numbers(app).items())


def test_a_checkpoint_may_take_no_time() -> None:
    app = opened(preset="gpt2", checkpoint="0")
    assert "steps that count" in shown(app)
