"""Will it run, on Home: the answer is the planner's, what is suggested fits, and one button queues one job."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest
from streamlit.testing.v1 import AppTest

from db.engine import open_store
from planner import ServingPlan, load, parse_spec, size
from planner.calibration import (
    PHASES,
    Calibration,
    KindRates,
    MatrixRates,
    OuterRates,
    PhaseRates,
    PrecisionRates,
    calibration_path,
)
from planner.hardware import MachineProfile
from planner.serving import serving_memory
from tests.pages.conftest import ROOT
from tests.pages.reading import key_numbers, query, shown

GIB = 2**30
TINY = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def measured_machine(tmp_path: pathlib.Path, own_store: None) -> None:
    """This machine is one of 24 GiB, of which 20 are free."""
    profile = MachineProfile(
        device_name="a processor", memory_bytes=24 * GIB, usable_memory_bytes=20 * GIB,
        measured_at=datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC),
    )  # fmt: skip
    (tmp_path / "profile.json").write_text(profile.model_dump_json())


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "home.py"), default_timeout=120)
    for name, value in asked.items():
        app.query_params[name] = value
    return ran(app)


def ran(app: AppTest) -> AppTest:
    app.run()
    assert not app.exception, app.exception
    return app


def jobs() -> list[tuple[str, dict[str, object]]]:
    with open_store() as store:
        return [(job.kind, dict(job.plan)) for job in store.jobs.list()]


def test_the_verdict_is_the_sum_of_weights_and_cache_over_what_is_usable() -> None:
    # Llama 2 7B: 6,738,415,616 parameters in bf16; 32 layers of 4,096 keys and values of 2 bytes a token.
    weights, cache = 2 * 6_738_415_616, 2048 * 32 * 2 * 4096 * 2
    page = shown(opened(preset="llama-2-7b", context="2048"))
    assert "runs here." in page
    assert "and 20 GiB are usable" in page
    assert f"weights {weights / GIB:.1f} GiB" in page
    assert cache == GIB
    assert "blocks 1 GiB" in page


def test_the_longest_context_is_the_last_that_fits() -> None:
    spec, app = load("llama-2-7b"), opened(preset="llama-2-7b", context="2048")
    longest = int(key_numbers(app)["context"]["value"].replace(",", ""))
    plan = ServingPlan()
    assert serving_memory(spec, plan, longest, 1).total_bytes <= 20 * GIB
    assert serving_memory(spec, plan, longest + 1, 1).total_bytes > 20 * GIB
    assert f"{longest + 1:,}" not in key_numbers(app)["requests"]["value"]


def test_what_is_suggested_fits_once_it_is_taken() -> None:
    app = opened(preset="llama-2-7b", context="32768", batch="2")
    assert "does not so run here." in shown(app)
    takes = [button.key for button in app.button if str(button.key).startswith("home-take-")]
    assert len(takes) >= 2
    for key in takes:
        again = opened(**query(app))
        again.button(key=key).click()
        assert '<b class="pl-good">Yes, ' in shown(ran(again)), key


def test_narrower_weights_are_the_widest_that_fit() -> None:
    # 7 billion parameters of 2 bytes are 14 GB, so that 12 GB need fewer bits: 8.5 of Q8_0 (llama.cpp's blocks of 32).
    app = opened(preset="llama-2-7b", context="512", device="rtx3060")
    best = key_numbers(app)["format"]
    assert best["value"] not in ("bf16", "fp16", "none")


def test_nothing_fits_and_that_is_said() -> None:
    page = shown(opened(preset="deepseek-v3"))
    assert "does not so run here." in page
    assert "No change of these settings and no single device" in page


def test_training_says_what_to_change() -> None:
    # 16 bytes a parameter with AdamW under mixed precision (ZeRO, section 3.1) are 108 GB for 7 billion.
    app = opened(preset="llama-2-7b", run="train", length="512")
    page = shown(app)
    assert "does not so run here." in page
    assert "another device: the smallest that holds it" in page
    assert "adamw_8bit" in page


def test_a_pasted_config_is_the_design_and_stands_in_the_address() -> None:
    app = opened()
    app.text_area(key="home-text").set_value(json.dumps(TINY))
    ran(app)
    assert "runs here." in shown(app)
    said = query(app)
    assert set(said) == {"draft"}
    # 2 × 1,000 × 64 outside the layers and the last norm; in each of 2 layers 64 × 64 × 2 + 64 × 32 × 2, 3 × 64 × 128
    # and two norms.
    parameters = 2 * 1000 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
    assert parameters == 202_048
    assert key_numbers(opened(**said)) == key_numbers(app)
    app.button(key="home-verify-button").click()
    ran(app)
    with open_store() as store:
        (design,) = store.designs.list()
        assert size(parse_spec(dict(design.latest.spec))).parameters.total == parameters


def test_a_preset_chosen_after_a_pasted_config_holds() -> None:
    app = opened()
    app.text_area(key="home-text").set_value(json.dumps(TINY))
    ran(app)
    box = next(each for each in app.selectbox if each.label == "Design")
    box.select("preset:gpt2")
    ran(app)
    assert query(app) == {"preset": "gpt2"}
    # GPT-2's positions are 1,024: the context follows.
    assert app.text_input(key="home-context").value == "1024"


def test_a_refused_config_names_its_field() -> None:
    app = opened()
    app.text_area(key="home-text").set_value(json.dumps({**TINY, "num_key_value_heads": 3}))
    page = shown(ran(app))
    assert "num_key_value_heads" in page
    assert 'role="alert"' in page
    assert query(app) == {}


def test_the_button_queues_one_job_of_the_asked_shape() -> None:
    app = opened(preset="gpt2", context="256", batch="3")
    app.button(key="home-verify-button").click()
    ran(app)
    ran(app)
    ((kind, plan),) = jobs()
    assert kind == "verify"
    assert (plan["batch_size"], plan["sequence_length"], plan["context_length"]) == (3, 256, 256)
    assert "home-verify-button" not in {button.key for button in app.button}  # a link to the job stands there
    with open_store() as store:
        assert len(store.designs.list()) == 1


def test_a_saved_design_is_not_saved_again() -> None:
    with open_store() as store:
        store.designs.create("Mine", load("gpt2").to_dict())
    app = opened(preset="gpt2", run="train", length="128", sequences="2")
    app.button(key="home-verify-button").click()
    ran(app)
    ((_, plan),) = jobs()
    assert (plan["batch_size"], plan["sequence_length"]) == (2, 128)
    with open_store() as store:
        assert [design.name for design in store.designs.list()] == ["Mine"]


def test_speed_here_needs_a_calibration_and_says_how_to_get_it() -> None:
    assert "runners run calibrate" in shown(opened(preset="gpt2"))


def test_speed_elsewhere_is_the_planners() -> None:
    # Decoding reads at least the weights once a token: 2 · 7.5 GB beside the embedding at 3.35 TB/s (H100's data sheet)
    # are 4.5 ms, and engines reach more than a third of that rate.
    number = key_numbers(opened(preset="llama-3-8b", device="h100", context="1024"))["token"]
    assert number["unit"] == "ms"
    assert 4.5 < float(number["value"]) < 13.5


def test_no_time_is_given_of_what_does_not_fit() -> None:
    assert set(key_numbers(opened(preset="llama-3.1-405b", device="h100"))) == {"format", "context", "requests"}


def test_speed_here_is_the_calibrations() -> None:
    # One rate for every matrix, and nothing else takes time: 1e9 FLOPs a second. A token of a plain decoder passes
    # each weight of the matrices once, two FLOPs each.
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 1000
    rates = MatrixRates(rows=(1,), sizes=(1,), working_sets=(1,), flops_per_second=(((1e9,),),))
    free = KindRates(launch_seconds=0, seconds_per_byte=0, seconds_per_flop=0)
    phase = PhaseRates(
        kinds={"attention": free, "mlp": free}, outer=OuterRates(launch_seconds=0, seconds_per_logit=0)
    )  # fmt: skip
    calibration = Calibration(
        device_name="a processor", threads=1, versions={}, measured_at=datetime.datetime(2026, 11, 1),
        launch_seconds=0, copy_bytes_per_second={}, attention_flops_per_second={}, optimizer_seconds_per_parameter=0,
        precisions={"fp32": PrecisionRates(forward=rates, backward=rates, phases=dict.fromkeys(PHASES, phase))},
    )  # fmt: skip
    calibration_path().write_text(calibration.model_dump_json())
    app = opened()
    app.text_area(key="home-text").set_value(json.dumps(TINY))
    numbers = key_numbers(ran(app))
    assert float(numbers["token"]["exact"].split(" ")[0]) == pytest.approx(2 * matrices / 1e9, rel=1e-4)
    assert "1 threads, 2026-11-01" in shown(app)
    # A step: forward, and twice that backward, for each of 128 tokens.
    app = opened(**query(app), run="train", length="128")
    seconds = float(key_numbers(app)["step"]["exact"].split(" ")[0])
    assert seconds == pytest.approx(3 * 128 * 2 * matrices / 1e9, rel=1e-4)


def test_a_calibration_that_cannot_be_read_is_said() -> None:
    calibration_path().write_text("{}")
    assert "cannot be read" in shown(opened(preset="gpt2"))


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"context": "many"}, "whole number"),
        ({"context": "0"}, "greater than 0"),
        ({"batch": "-1"}, "greater than 0"),
        ({"preset": "gpt2", "context": "2000"}, "1,024 learned positions"),
        ({"preset": "no-such"}, "no-such"),
        ({"draft": "nonsense"}, "cannot be read"),
        ({"weights": "int3"}, "runs here"),
        ({"cache": "int3"}, "int3"),
        ({"devices": "3"}, "tensor_parallel"),
        ({"device": "abacus", "run": "fly"}, "here."),
        ({"run": "train", "length": "9e9"}, "whole number"),
        ({"run": "train", "optimizer": "magic"}, "adamw"),
        ({"context": "9" * 30}, "context"),
    ],
)
def test_wrong_inputs_are_said_without_a_traceback(asked: dict[str, str], said: str) -> None:
    assert said in shown(opened(**asked))
