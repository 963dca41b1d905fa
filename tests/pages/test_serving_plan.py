"""The serving plan without a browser: its numbers are the planner's, and wrong plans are said where they stand."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from planner import ServingPlan, load
from planner.serving import estimate_inference
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, key_numbers, query, shown


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "serving_plan.py"), default_timeout=120)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_the_numbers_are_the_planners_and_the_points_lie_on_one_curve() -> None:
    app = opened(preset="llama-3-8b", batch_size="8", context_length="4096", hardware="a100")
    plan = ServingPlan(batch_size=8, context_length=4096, hardware="a100")
    estimate = estimate_inference(load("llama-3-8b"), plan)
    numbers = key_numbers(app)
    assert numbers["memory"]["exact"] == f"{estimate.memory.total_bytes:,} bytes"
    assert numbers["requests"]["value"] == f"{estimate.max_batch_size:,}"
    (curve,) = charts(app)["serving-latency"]["data"]
    assert curve["text"][0] == "1"
    at = curve["text"].index("8")
    assert estimate.inter_token_latency_seconds is not None
    assert curve["y"][at] == pytest.approx(1e3 * estimate.inter_token_latency_seconds)
    # A batch's tokens a second are the batch over the seconds between its tokens.
    for size, speed, wait in zip(curve["text"], curve["x"], curve["y"], strict=True):
        assert speed == pytest.approx(int(size.replace(",", "")) / (wait / 1e3))


def test_every_operator_stands_under_the_roof() -> None:
    # An A100 moves 2,039 GB and multiplies 312 TFLOP a second (NVIDIA's data sheet).
    app = opened(preset="llama-3-8b", hardware="a100", phase="prefill")
    roof, *points = charts(app)["serving-roofline-prefill"]["data"]
    for intensity, rate in zip(roof["x"], roof["y"], strict=True):
        assert rate == pytest.approx(min(312e12, 2039e9 * intensity), rel=1e-3)
    assert points
    for point in points:
        assert point["y"][0] <= min(312e12, 2039e9 * point["x"][0]) * (1 + 1e-9)


def test_a_changed_format_is_in_the_address_and_comes_back_from_it() -> None:
    app = opened(preset="llama-3-8b")
    app.selectbox(key="serving-plan-weight_format").select("q4_k_m").run()
    assert not app.exception
    said = query(app)
    assert said["weight_format"] == "q4_k_m"
    assert key_numbers(opened(**said))["memory"] == key_numbers(app)["memory"]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"tensor_parallel": "3"}, "tensor_parallel"),
        ({"batch_size": "0"}, "greater than 0"),
        ({"speculative": "nonsense"}, "speculative"),
        ({"weight_format": "int3"}, "of what is usable"),
        ({"hardware": "abacus"}, "of what is usable"),
        ({"preset": "no-such"}, "no-such"),
        ({"preset": "llama-3.1-405b", "hardware": "t4"}, "of what is usable"),
    ],
)
def test_wrong_plans_are_said_without_a_traceback(asked: dict[str, str], said: str) -> None:
    assert said in shown(opened(**{"preset": "llama-3-8b", **asked}))


@pytest.mark.parametrize(
    ("button", "name", "attribute"),
    [
        ("open-decode", "inter-token latency", "inter_token_latency_seconds"),
        ("open-prefill", "time to first token", "time_to_first_token_seconds"),
    ],
)
def test_a_time_opens_into_its_terms_with_formulas_and_sources(button: str, name: str, attribute: str) -> None:
    app = opened(preset="llama-3-8b", batch_size="8", context_length="4096", hardware="a100")
    app.button(key=button).click().run()
    assert not app.exception, app.exception
    page = shown(app)
    estimate = estimate_inference(load("llama-3-8b"), ServingPlan(batch_size=8, context_length=4096, hardware="a100"))
    assert f"{name}, modelled" in page
    assert f"{getattr(estimate, attribute):.6g} seconds" in page
    assert "doi:10.1145/1498765.1498785" in page
    assert all(number["opens"] for number in key_numbers(app).values())
