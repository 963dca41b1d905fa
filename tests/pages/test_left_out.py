"""What an import left out stands where designs are imported: in the Studio's dialog and in the gallery."""

from __future__ import annotations

import json

from streamlit.testing.v1 import AppTest

from tests.pages.conftest import ROOT
from tests.pages.reading import shown

TEXT = {"model_type": "gemma3_text", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2}
AROUND = {"model_type": "gemma3", "text_config": TEXT, "vision_config": {"hidden_size": 8}}
BESIDE = "Only the language model is sized; left out are vision_config."
MULTI_TOKEN = "Layers for multi-token prediction are no part of the model that generates."


def opened(page: str, **asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=60)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_the_studio_says_what_a_pasted_configuration_has_beside_the_model() -> None:
    app = opened("studio")
    app.session_state["studio-opening"] = True  # as the menu's button does
    app.run()
    for text, said in ((AROUND, True), (TEXT, False)):
        app.text_area(key="import-text").set_value(json.dumps(text))
        app.session_state["studio-opening"] = True
        app.run()
        assert not app.exception, app.exception
        assert any(button.label == "Open it" for button in app.button)
        assert (BESIDE in shown(app)) == said


def test_the_gallery_says_it_on_the_card_and_in_the_table() -> None:
    for view in ("shapes", "table"):
        assert MULTI_TOKEN in shown(opened("gallery", q="deepseek-ai deepseek-v3", view=view))
        assert "pl-left-out" not in shown(opened("gallery", q="llama-2-7b", view=view))
