"""Home in a real browser: a pasted configuration is answered, refused at its field, and verified as what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]
SMALL = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


def paste(page: Any, config: dict[str, Any]) -> None:
    box = page.get_by_label("Or its text")
    box.fill(json.dumps(config))
    box.press("Control+Enter")


def test_a_pasted_config_is_answered_and_verified(page: Any, server: str) -> None:
    page.goto(f"{server}/")
    verdict = page.locator(".pl-verdict")
    verdict.get_by_text("New design runs here").wait_for()
    page.get_by_text("Or paste or drop a config.json").click()
    paste(page, {**SMALL, "num_key_value_heads": 3})
    page.locator(".st-key-panel-will-it-run [role=alert]", has_text="num_key_value_heads").wait_for()
    paste(page, SMALL)
    verdict.get_by_text("llama runs here").wait_for()
    assert "draft=" in page.url
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Verify this with a job").click()
    page.get_by_role("link", name="follow it under Jobs").click()
    page.wait_for_url("**/jobs?job=*")
    page.get_by_text("Verify · llama").first.wait_for()
    page.goto(f"{server}/?preset=gpt2&context=512")
    verdict.get_by_text("512 tokens").wait_for()
    assert page.locator(".stException").count() == 0
