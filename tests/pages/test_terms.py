"""Every number that opens: the page shows the tree that the command line prints, with each term's status and bounds."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets import figures, terms
from pages.widgets.terms import DEEPEST
from planner import load
from planner.__main__ import main
from planner.explain import PLAN_OF, QUANTITIES
from planner.plans import ServingPlan, TrainingPlan
from tests.pages.conftest import ROOT

PRESET = "tiny-hybrid"
SETTINGS: dict[Any, list[str]] = {
    ServingPlan: ["--set", "context_length=32768"],
    TrainingPlan: ["--set", "sequence_length=4096"],
    None: [],
}
"""What the page takes unless its address says otherwise."""


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """What the page says of each quantity."""
    found = {}
    for quantity in QUANTITIES:
        app = AppTest.from_file(str(ROOT / "pages" / "sizing.py"), default_timeout=60)
        app.query_params["preset"], app.query_params["derive"] = PRESET, quantity
        app.run()
        assert not app.exception, app.exception
        shown = [element.proto.body for element in app.get("html")]
        found[quantity] = html.unescape(" ".join([*shown, *(note.value for note in app.caption)]))
    return found


def down_to(term: dict[str, Any], depth: int) -> list[dict[str, Any]]:
    below = [] if depth == 0 else [each for child in term["children"] for each in down_to(child, depth - 1)]
    return [term, *below]


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_page_and_data_show_the_same_tree(
    quantity: str, seen: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", PRESET, quantity, "--json", *SETTINGS[PLAN_OF[quantity]]]) == 0
    root = json.loads(capsys.readouterr().out)
    shown = seen[quantity]
    whole = re.search(r'<em class="pl-figures">([\d,.]+) ', shown)
    assert whole is not None
    assert float(whole.group(1).replace(",", "")) == pytest.approx(root["value"], abs=0.01)
    assert f'class="pl-status {root["status"]}"' in shown
    rows = re.findall(r'<tr class="depth-\d"><td[^>]*>(.*?)</td>.*?<td class="fig" title="([^"]*)">', shown, re.S)
    expected = down_to(root, DEEPEST + 1)[1:]
    assert len(rows) == len(expected)
    figure = {"bytes": figures.memory, "FLOPs": figures.flops, "FLOPs a token": figures.flops}
    for (name, exact), term in zip(rows, expected, strict=True):
        assert name.endswith(term["name"]) or f'title="{term["name"]}">' in name
        assert exact == figure.get(root["unit"], figures.count)(term["value"]).exact
        assert ("pl-status" in name) == (term["status"] != "exact")
    if root["status"] == "exact":
        assert root["uncertainty"] is None
    else:
        assert root["uncertainty"]["low"] <= root["value"] <= root["uncertainty"]["high"]
        ground = root["uncertainty"]["ground"]
        assert ground[1:] in shown


def test_a_path_is_said_by_its_layers() -> None:
    spec = load("jamba-v0.1")
    # Attention stands in one layer of eight, the fifth, and there are four times eight.
    name = terms._name("layer_groups[0].layers[4].sequence_mixer", spec)
    assert name == '<span title="layer_groups[0].layers[4].sequence_mixer">sequence mixer, layers 4, 12, 20, 28</span>'
    assert "layers 0–31" in terms._name("layer_groups[0].layers[0]", load("llama-2-7b"))
    assert terms._name("lm_head", spec) == "lm_head"
