"""Sensitivity without a browser: the bars, how far a field goes, and what an address may say."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from planner import ServingPlan, fits, load
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, query, shown, trace


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "sensitivity.py"), default_timeout=120)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_the_bars_are_hand_calculations() -> None:
    app = opened(preset="llama-2-7b", output="parameters", shown="")
    figure = charts(app)["tornado-parameters"]
    high = trace(figure, "high")
    at = high["y"].index("Repeats")
    # As many layers again: 32 of four matrices of 4,096 by 4,096, three of 4,096 by 11,008, and two norms.
    assert high["base"] == pytest.approx(6.738415616)
    assert high["x"][at] == pytest.approx(32 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) / 1e9)
    low = trace(figure, "low")
    assert low["x"][at] == pytest.approx(-high["x"][at] / 2)
    # Half of the query heads cannot share 32 KV heads.
    assert "16: not possible" in high["hovertext"][high["y"].index("Num attention heads · attention")]


def test_how_far_a_field_goes_is_exact() -> None:
    app = opened(preset="mixtral-8x7b", weight_format="int4", device="h100", field="plan.batch_size")
    plan = ServingPlan(weight_format="int4", hardware="h100")
    spec = load("mixtral-8x7b")
    greatest = max(
        count for count in range(1, 400) if fits(spec, plan.model_copy(update={"batch_size": count}), "h100").fits
    )
    assert f'<b class="pl-figures">{greatest:,}</b>' in shown(app)
    assert f"{greatest + 1:,} no longer fits" in shown(app)
    app.selectbox(key="sensitivity-field").select("num_layers").run()
    assert not app.exception
    assert query(app)["field"] == "num_layers"


def test_what_fits_nowhere_says_so() -> None:
    app = opened(preset="llama-3.1-405b", device="t4", field="plan.context_length")
    assert "Nothing fits." in shown(app)


@pytest.mark.parametrize("output", ["cache", "training_memory", "flops_per_token"])
def test_every_kind_of_number_has_bars(output: str) -> None:
    assert trace(charts(opened(preset="tiny-hybrid", output=output))[f"tornado-{output}"], "high")["x"]


def test_a_wrong_field_of_the_plan_says_so_where_it_stands() -> None:
    app = opened(preset="llama-2-7b")
    app.text_input(key="sensitivity-ServingPlan-batch_size").set_value("none").run()
    assert not app.exception
    assert 'class="pl-field-error"' in shown(app)


@pytest.mark.parametrize(
    "name, wrong", [("output", "beauty"), ("device", "abacus"), ("field", "x"), ("preset", "no-such"), ("shown", "-1")]
)
def test_an_address_that_cannot_be_breaks_nothing(name: str, wrong: str) -> None:
    assert "What each field does" in shown(opened(**{name: wrong}))
