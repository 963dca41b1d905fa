"""Sizing and fit without a browser: its numbers, what each control changes, what it says where there is nothing."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets.draft import Settings, pack
from pages.widgets.starting import starting_spec
from planner import ServingPlan, TrainingPlan, cache_bytes, fits, flops, hardware, parse_spec, size
from planner.presets import preset
from tests.pages.conftest import ROOT
from tests.pages.reading import charts, key_numbers, query, shown, trace

LLAMA_2_7B = 6_738_415_616
"""Parameters of Llama 2 7B, as published (Touvron et al. 2023; the sum of its safetensors' shapes)."""


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "sizing.py"), default_timeout=60)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def designed(*, layers: list[dict[str, Any]], **fields: Any) -> str:
    """The draft of a small design, as an address holds it."""
    spec = {"name": "Small", "vocab_size": 1000, "hidden_size": 64, "layer_groups": [{"repeats": 2, "layers": layers}]}
    return pack(parse_spec({**spec, **fields}), Settings())


ATTENTION = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
MLP = {"kind": "mlp", "intermediate_size": 128}


# --- its numbers ---


def test_the_numbers_are_those_of_the_published_model_and_of_a_hand_calculation() -> None:
    app = opened(preset="llama-2-7b")
    numbers = key_numbers(app)
    assert numbers["parameters"]["exact"] == f"{LLAMA_2_7B:,}"
    # Keys and values of 32 heads of 128 channels in 32 layers, two bytes each, for 32,768 tokens: 16 GiB.
    assert 2 * 32 * 128 * 32 * 2 * 32_768 == 16 * 2**30
    assert (numbers["cache"]["value"], numbers["cache"]["unit"]) == ("16", "GiB")
    # 2 FLOPs a weight of every matrix but the embedding, and 4 a score and channel over 4,096 tokens.
    matrices = LLAMA_2_7B - 32_000 * 4096 - 65 * 4096
    assert numbers["flops_forward"]["exact"].startswith(f"{2 * matrices + 4 * 4096 * 4096 * 32:,} forward")
    assert "Llama 2 7B" in shown(app)


def test_the_treemap_the_table_and_the_bars_add_up_to_the_whole() -> None:
    app = opened(preset="llama-2-7b")
    drawn = charts(app)
    tree = drawn["chart-treemap"]["data"][0]
    outer = sum(value for value, parent in zip(tree["values"], tree["parents"], strict=True) if not parent)
    assert outer == LLAMA_2_7B
    inner = {name: value for name, value in zip(tree["ids"], tree["values"], strict=True)}
    assert inner["attention/q_proj.weight"] == 32 * 4096 * 4096
    assert inner["mlp/down_proj.weight"] == 32 * 4096 * 11_008

    assert f'title="{LLAMA_2_7B:,}"' in shown(app)
    assert f'title="{32 * 4 * 4096 * 4096:,}"' in shown(app)

    by_layer = drawn["by-layer-parameters"]["data"]
    assert [len(each["y"]) for each in by_layer] == [32, 32, 32]
    # All but the embedding, the head and the last norm.
    assert sum(sum(each["y"]) for each in by_layer) == LLAMA_2_7B - 2 * 32_000 * 4096 - 4096


def test_the_curves_are_the_planners_at_every_length() -> None:
    app = opened(preset="mistral-7b")
    spec = preset("mistral-7b").spec
    drawn = charts(app)
    cache = trace(drawn["chart-cache"], "this design")
    assert cache["x"] == [2**exponent for exponent in range(10, 21)]
    # A window of 4,096 tokens keeps no more: 2 * 8 * 128 * 2 bytes a token in each of 32 layers.
    held = [min(length, 4096) * 2 * 8 * 128 * 2 * 32 for length in cache["x"]]
    assert cache["y"] == [size / 2**30 for size in held]
    forward = trace(drawn["chart-flops"], "forward, counted")
    needed = trace(drawn["chart-flops"], "forward, needed")
    for index, length in enumerate(forward["x"][:5]):
        found = flops(spec, length)
        assert forward["y"][index] == pytest.approx(found.total / length / 1e9, rel=1e-12)
        assert needed["y"][index] == pytest.approx(found.needed_total / length / 1e9, rel=1e-12)


def test_attention_and_the_mlps_meet_where_a_hand_calculation_says() -> None:
    app = opened()
    # Scores and values take 4 * 4,096 FLOPs a token and position, the MLP 6 * 4,096 * 14,336 a token.
    assert 6 * 4096 * 14_336 / (4 * 4096) == 21_504
    assert "from 21,504 tokens on" in shown(app)


def test_a_verdict_stands_for_each_device_with_what_it_needs() -> None:
    app = opened(preset="llama-2-7b")
    verdict = fits(preset("llama-2-7b").spec, Settings().serving, hardware("rtx4090"))
    assert not verdict.fits
    # 12.6 GiB of weights and 16 GiB of cache do not go into 24 GiB.
    assert verdict.parts["cache"] == 16 * 2**30
    assert f"usable {verdict.usable_bytes:,} bytes" in shown(app)
    assert "RTX 4090" in shown(app)
    assert "T4" not in shown(app)


# --- what each control changes ---


def test_the_context_the_sequences_and_the_types_change_what_they_should() -> None:
    app = opened()
    spec = starting_spec()
    before = key_numbers(app)
    app.select_slider(key="sizing-context").set_value("65536").run()
    assert key_numbers(app)["cache"]["exact"] == f"{cache_bytes(spec, 65_536):,} bytes"
    app.select_slider(key="sizing-batch").set_value("4").run()
    assert key_numbers(app)["cache"]["exact"] == f"{4 * cache_bytes(spec, 65_536):,} bytes"
    assert "4 sequences of 64K tokens" in shown(app)
    app.selectbox(key="sizing-cache").select("fp8").run()
    assert key_numbers(app)["cache"]["exact"] == f"{2 * cache_bytes(spec, 65_536):,} bytes"
    held = key_numbers(app)["inference_memory"]["exact"]
    app.selectbox(key="sizing-weights").select("int8").run()
    assert key_numbers(app)["inference_memory"]["exact"] != held
    app.select_slider(key="sizing-length").set_value("8192").run()
    found = flops(spec, 8192).total / 8192
    assert key_numbers(app)["flops_forward"]["exact"].startswith(f"{found:,.0f} forward")
    assert key_numbers(app)["parameters"] == before["parameters"]
    assert query(app) == {
        "context": "65536", "batch": "4", "cache": "fp8", "weights": "int8", "length": "8192",
    }  # fmt: skip
    again = opened(**query(app))
    assert key_numbers(again) == key_numbers(app)


def test_the_bars_show_the_chosen_measure() -> None:
    app = opened(preset="pattern-hybrid-7b")
    app.button_group(key="sizing-layers").set_value("cache_bytes").run()
    bars = charts(app)["by-layer-cache_bytes"]["data"]
    # 16 windows of 4,096 tokens; 12 that see every fourth of them, so 1,023 * 4 + 1 back; 4 that keep all 32,768.
    assert bars[0]["y"] == [2 * 8 * 128 * 2 * kept for kept in [4096] * 16 + [4093] * 12 + [32_768] * 4]
    app.button_group(key="sizing-layers").set_value("flops").run()
    bars = charts(app)["by-layer-flops"]["data"]
    # The MLP's three matrices, two FLOPs a weight, over 4,096 tokens.
    assert bars[1]["y"] == [2 * 3 * 4096 * 14_336 * 4096] * 32


def test_growing_deeper_multiplies_the_layers_and_leaves_the_rest() -> None:
    app = opened(preset="llama-2-7b")
    app.button_group(key="sizing-grow").set_value("depth").run()
    figure = charts(app)["growth-depth-parameters"]
    # Factors from an eighth to sixteen times in steps of the root of two: the fourth is 4 layers, the tenth 64.
    layer = (LLAMA_2_7B - 2 * 32_000 * 4096 - 4096) / 32
    outside = 2 * 32_000 * 4096 + 4096
    grown = [4 * layer + outside, 32 * layer + outside, 512 * layer + outside]
    assert [figure["data"][0]["x"][index] for index in (0, 6, 14)] == pytest.approx(grown, rel=1e-9)
    assert "Deeper multiplies the layers" in shown(app)
    app.button_group(key="sizing-share").set_value("flops").run()
    assert "growth-depth-flops" in charts(app)


def test_the_phase_and_the_device_move_the_points_and_the_ridge() -> None:
    app = opened()
    points = charts(app)["intensity-decode-h100"]["data"][0]
    # One token reads each weight of two bytes for two FLOPs: one FLOP a byte, less the vectors that move too.
    assert points["x"][points["y"].index("MLP · gate_proj")] == pytest.approx(1, rel=2e-3)
    # NVIDIA's data sheet: 989.4 TFLOPS of dense bf16 over 3.35 TB/s.
    assert "ridge of bf16: 295" in str(charts(app)["intensity-decode-h100"]["layout"]["annotations"])
    app.button_group(key="sizing-phase").set_value("prefill").run()
    points = charts(app)["intensity-prefill-h100"]["data"][0]
    assert points["x"][points["y"].index("MLP · gate_proj")] > 1000
    app.selectbox(key="sizing-device").select("t4").run()
    assert "ridge of fp16" in str(charts(app)["intensity-prefill-t4"]["layout"]["annotations"])


def test_the_way_of_running_and_the_whole_catalogue_change_the_verdicts() -> None:
    app = opened()
    app.button_group(key="sizing-run").set_value("training").run()
    plan = Settings().training
    needed = fits(starting_spec(), plan, hardware("h100"))
    assert not needed.fits
    assert f"needs {needed.needed_bytes:,} bytes" in shown(app)
    assert "optimizer" in shown(app)
    few = shown(app).count('class="pl-bar"')
    app.toggle(key="sizing-all-devices").set_value(True).run()
    assert not app.exception
    assert shown(app).count('class="pl-bar"') > few + 8
    assert query(app) == {"run": "training", "all": "1"}
    app.toggle(key="sizing-all-devices").set_value(False).run()
    assert shown(app).count('class="pl-bar"') == few


def test_a_number_opens_into_the_terms_that_it_is_the_sum_of() -> None:
    app = opened(preset="llama-2-7b")
    assert "Choose a number" not in shown(app)
    app.selectbox(key="sizing-derive").select("parameters").run()
    assert not app.exception
    assert f"{LLAMA_2_7B:,} parameters" in shown(app)
    app.selectbox(key="sizing-derive").select("cache").run()
    assert f"{16 * 2**30:,} bytes" in shown(app)


def test_another_design_is_chosen_and_a_saved_one_is_among_them() -> None:
    from db.engine import open_store

    with open_store() as store:
        saved = store.designs.create("Ours", parse_spec(starting_spec().to_dict() | {"vocab_size": 64_000}).to_dict())
    app = opened()
    (box,) = (box for box in app.selectbox if box.label == "Design")
    assert box.options[:2] == ["Studio: New design", "Ours, revision 1"]
    box.select(f"design:{saved.id}:1").run()
    assert not app.exception
    assert query(app) == {"design": str(saved.id), "revision": "1"}
    assert key_numbers(app)["parameters"]["exact"] == f"{size(starting_spec()).parameters.total + 64_000 * 4096:,}"
    (box,) = (box for box in app.selectbox if box.label == "Design")
    box.select("preset:llama-2-7b").run()
    assert query(app) == {"preset": "llama-2-7b"}
    assert key_numbers(app)["parameters"]["exact"] == f"{LLAMA_2_7B:,}"


def test_what_is_open_in_the_studio_is_sized_with_its_settings() -> None:
    settings = Settings(ServingPlan(context_length=5000), TrainingPlan(sequence_length=3000))
    app = opened(draft=pack(starting_spec(), settings))
    assert app.select_slider(key="sizing-context").value == "5000"
    assert key_numbers(app)["cache"]["exact"] == f"{cache_bytes(starting_spec(), 5000):,} bytes"


# --- where there is nothing, and what cannot be ---


def test_a_design_that_keeps_nothing_between_tokens_is_said_to() -> None:
    app = opened(draft=designed(layers=[{"sequence_mixer": None, "channel_mixer": MLP}]), layers="cache_bytes")
    assert shown(app).count("This design has no cache.") == 2
    assert "They never meet" in shown(app)
    assert "chart-cache" not in charts(app)
    assert key_numbers(app)["cache"]["value"] == "0"


def test_learned_positions_end_where_the_curves_say_so() -> None:
    layers = [{"sequence_mixer": {**ATTENTION}, "channel_mixer": MLP}]
    app = opened(draft=designed(layers=layers, positions={"kind": "learned", "num_positions": 4096}))
    assert "positions end" in str(charts(app)["chart-flops"]["layout"]["annotations"])


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"preset": "no-such-model"}, "no-such-model"),
        ({"draft": "not-a-draft"}, "cannot be read"),
        ({"design": "41"}, "41"),
        ({"design": "x"}, "names no design"),
        ({"design": "99999999999999999999"}, "there is no design 99999999999999999999"),
    ],
)
def test_a_wrong_address_is_said_and_the_starting_design_is_sized(asked: dict[str, str], said: str) -> None:
    app = opened(**asked)
    assert 'role="alert"' in shown(app)
    assert said in shown(app)
    assert key_numbers(app)["parameters"]["exact"] == "7,241,732,096"


@pytest.mark.parametrize(
    "name, wrong, default",
    [
        ("context", "-1", "32768"),
        ("context", "many", "32768"),
        ("batch", "0", "1"),
        ("length", "1e3", "4096"),
        ("weights", "int3", "bf16"),
        ("cache", "", "bf16"),
        ("layers", "money", "parameters"),
        ("phase", "sleep", "decode"),
        ("device", "abacus", "h100"),
        ("grow", "sideways", "width"),
        ("share", "luck", "parameters"),
        ("run", "away", "serving"),
        ("derive", "beauty", ""),
        ("all", "2", ""),
    ],
)
def test_a_setting_that_cannot_be_falls_back_to_its_default(name: str, wrong: str, default: str) -> None:
    app = opened(**{name: wrong})
    assert str(app.session_state[f"sizing-{name}"]) == default
    assert name not in query(app)
    assert key_numbers(app)["parameters"]["exact"] == "7,241,732,096"


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt2", "mamba2-2.7b", "jamba-v0.1", "deepseek-v3", "mixtral-8x7b"])
def test_every_kind_of_architecture_is_drawn(name: str) -> None:
    app = opened(preset=name, derive="active_parameters")
    assert 'role="alert"' not in shown(app)
    assert f"{size(preset(name).spec).parameters.active:,} parameters" in shown(app)
