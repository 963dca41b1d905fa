"""Hardware and cost without a browser: the devices, the three ways of having tokens, and a row of one's own."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from planner.hardware import own_devices_path
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, query, shown, trace

RATE = {"tokens_per_second": "900"}


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "hardware.py"), default_timeout=60)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def field(app: AppTest, name: str) -> str:
    """The key of an assumption's widget."""
    return next(each.key for each in app.text_input if str(each.key).endswith(f"-{name}"))


def test_the_three_ways_cost_what_a_hand_calculation_says() -> None:
    app = opened(**RATE, device="rtx4090", api="llama_3_1_8b", tokens_per_day="10000000")
    page = shown(app)
    # A device at 0.60 dollars an hour; ten million written and thirty million read at 0.18 a million.
    assert ">$14.40<" in page
    assert ">$7.20<" in page
    # 4,599 dollars less a tenth over five years, a twentieth of them a year, and 208.5 W all day; then the work of
    # 391.5 W for 11,111 seconds, each kWh at 1.54 times 13.41 cents.
    kwh = 1.54 * 0.1341
    waiting = 4599 * 0.9 / (5 * 365.25) + 4599 * 0.05 / 365.25 + 0.2085 * 24 * kwh
    assert f">${waiting + 0.3915 * 1e7 / 900 / 3600 * kwh:.2f}<" in page
    figure = charts(app)["cost-curves"]
    assert {each["name"] for each in figure["data"]} == {"own", "rented", "by the token"}
    rented = trace(figure, "rented")
    assert min(rented["y"]) == pytest.approx(14.4)
    assert "Renting costs no more than buying tokens at 20 M tokens a day" in page


def test_a_changed_assumption_is_in_the_address_and_comes_back_from_it() -> None:
    app = opened(**RATE)
    app.text_input(key=field(app, "electricity_usd_per_kwh")).set_value("0.4").run()
    assert not app.exception
    said = query(app)
    assert said["electricity_usd_per_kwh"] == "0.4"
    again = opened(**said)
    assert again.text_input(key=field(again, "electricity_usd_per_kwh")).value == "0.4"
    assert charts(again)["cost-curves"]["data"] == charts(app)["cost-curves"]["data"]


def test_another_device_brings_its_own_prices() -> None:
    app = opened(**RATE, device_usd="1000")
    app.selectbox(key="hardware-device").select("rtx5090").run()
    assert not app.exception
    assert app.text_input(key=field(app, "device_usd")).value == ""
    assert "device_usd" not in query(app)


@pytest.mark.parametrize("name, wrong", [("tokens_per_second", "-3"), ("lifetime_years", "never"), ("devices", "1.5")])
def test_a_wrong_assumption_says_so_at_its_field_and_keeps_the_catalogue(name: str, wrong: str) -> None:
    app = opened(**RATE)
    app.text_input(key=field(app, name)).set_value(wrong).run()
    assert not app.exception
    assert 'class="pl-field-error"' in shown(app)
    assert app.text_input(key=field(app, name)).value == wrong
    assert "NVIDIA H200" in shown(app)


def test_what_has_no_price_is_named_and_not_guessed() -> None:
    app = opened(**RATE, device="h200", api="")
    page = shown(app)
    assert "No list price of NVIDIA H200" in page
    assert "No price of tokens is chosen" in page
    assert [each["name"] for each in charts(app)["cost-curves"]["data"]] == ["rented"]


def test_the_devices_are_filtered_by_kind_and_name() -> None:
    app = opened(kind="tpu")
    assert "Google TPU v4" in shown(app)
    assert "NVIDIA H200" not in shown(app)
    app.text_input(key="hardware-q").set_value("no such thing").run()
    assert "No device passes" in shown(app)


@pytest.mark.parametrize("name, wrong", [("device", "abacus"), ("kind", "x"), ("design", "<b>"), ("api", "y")])
def test_an_address_that_cannot_be_breaks_nothing(name: str, wrong: str) -> None:
    assert "NVIDIA H200" in shown(opened(**RATE, **{name: wrong}))


def typed(app: AppTest, **values: str) -> None:
    for name, value in values.items():
        app.text_input(key=f"own-{name}").set_value(value)


def test_a_device_of_ones_own_is_added_and_removed() -> None:
    app = opened(**RATE)
    typed(app, id="my_card", name="My card", memory_gib="48", usable_mib="48,000", reason="its driver", source="a shop")
    app.text_input(key="own-peak-bf16").set_value("100")
    app.button(key="add-device").click().run()
    assert not app.exception
    assert "My card" in shown(app)
    assert "my_card" in app.selectbox(key="hardware-device").options or "My card" in str(
        app.selectbox(key="hardware-device").options
    )
    app.button(key="remove-my_card").click().run()
    assert not app.exception
    assert "My card" not in shown(app)


def test_a_wrong_device_says_what_is_wrong_and_keeps_what_was_typed() -> None:
    app = opened(**RATE)
    typed(app, id="h100", name="Mine")
    app.button(key="add-device").click().run()
    assert not app.exception
    assert "id_taken" not in shown(app)
    assert "my_h100" in shown(app)
    typed(app, id="mine")
    app.button(key="add-device").click().run()
    assert "memory_gib" in shown(app)
    assert app.text_input(key="own-name").value == "Mine"
    assert not own_devices_path().exists()


def test_a_file_of_devices_that_cannot_be_read_costs_no_page() -> None:
    own_devices_path().parent.mkdir(parents=True, exist_ok=True)
    own_devices_path().write_text("- nothing", encoding="utf-8")
    app = opened(**RATE)
    assert "cannot be read" in shown(app)
    assert "NVIDIA H200" in shown(app)
