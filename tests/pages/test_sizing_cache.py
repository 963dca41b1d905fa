"""The sizing page: what a cache fills and what an engine's blocks take up."""

from __future__ import annotations

import re

from streamlit.testing.v1 import AppTest

from pages.widgets.draft import Settings, pack
from planner import ServingPlan
from planner.presets import preset
from tests.pages.conftest import ROOT


def page(**query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "sizing.py"), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def said(app: AppTest) -> str:
    return " ".join(element.proto.body for element in app.get("html"))


def bytes_of(app: AppTest, label: str) -> int:
    found = re.search(rf'{label}</td><td class="fig" title="([\d,]+) bytes', said(app))
    assert found is not None, said(app)[:2000]
    return int(found.group(1).replace(",", ""))


def test_ideal_and_allocated_cache_stand_side_by_side_and_follow_the_engine() -> None:
    """Mistral 7B keeps 4,096 of 32,768 positions in each of its 32 layers."""
    app = page(preset="mistral-7b", context="32768")
    assert not app.exception, app.exception
    a_position = 2 * 32 * 8 * 128 * 2
    assert bytes_of(app, "Cache, filled") == a_position * 4096
    assert bytes_of(app, "Cache, allocated in blocks") == a_position * 257 * 16
    assert "Blocks of 16 tokens" in said(app)
    app.selectbox(key="sizing-pages").select("context").run()
    assert bytes_of(app, "Cache, filled") == a_position * 4096
    assert bytes_of(app, "Cache, allocated in blocks") == a_position * 32_768
    assert app.query_params["pages"] == "context"


def test_a_quantized_cache_names_its_scheme() -> None:
    app = page(preset="llama-2-7b", context="4096", cache="int4_per_token_head", block="128")
    assert not app.exception, app.exception
    assert bytes_of(app, "Cache, filled") == 4096 * 2 * 32 * 32 * (64 + 4)
    assert "int4 per token and head" in said(app)
    assert "Blocks of 128 tokens" in said(app)


def test_a_type_that_latents_cannot_have_is_no_choice_and_breaks_no_page() -> None:
    app = page(preset="deepseek-v3", cache="int8_per_token_head")
    assert not app.exception, app.exception
    offered = app.selectbox(key="sizing-cache")
    assert "int8_per_token_head" not in offered.options
    assert offered.value == "bf16"
    settings = Settings(serving=ServingPlan(cache_dtype="int8_per_token_head", context_length=32_768))
    studio = AppTest.from_file(str(ROOT / "pages" / "studio.py"), default_timeout=60)
    studio.query_params["draft"] = pack(preset("deepseek-v3").spec, settings)
    studio.run()
    assert not studio.exception, studio.exception
    assert "latents have no heads: it is taken in bf16" in said(studio)
