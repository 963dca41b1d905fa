"""The compare page says what each changed field did, and what fields did together; all of it sums to the whole."""

from __future__ import annotations

import re

from streamlit.testing.v1 import AppTest

from db.engine import open_store
from planner import ArchitectureSpec, parse_spec, size
from tests.pages.conftest import ROOT
from tests.pages.reading import shown
from tests.planner.published import LLAMA_2_7B


def halved() -> ArchitectureSpec:
    """Llama 2 7B with half the layers and a quarter of the KV heads."""
    data = LLAMA_2_7B.model_dump(mode="json")
    data["name"] = "halved"
    data["layer_groups"][0]["repeats"] = 16
    data["layer_groups"][0]["layers"][0]["sequence_mixer"]["num_key_value_heads"] = 8
    return parse_spec(data)


def test_what_each_field_did_stands_beside_what_both_did() -> None:
    with open_store() as store:
        ids = [store.designs.create(spec.name, spec.to_dict()).latest.id for spec in (LLAMA_2_7B, halved())]
    app = AppTest.from_file(str(ROOT / "pages" / "compare.py"), default_timeout=60)
    app.query_params["revisions"] = ",".join(map(str, ids))
    app.run()
    assert not app.exception, app.exception
    (table,) = re.findall(r"<table[^>]*><thead><tr><th>Field</th>.*?</table>", shown(app), re.S)
    rows = [re.findall(r'<td class="fig" title="([-+][\d,]+)">', row) for row in table.split("<tr>")]
    parameters = [int(row[0].replace(",", "")) for row in rows if row]
    # By hand: 24 heads of keys and values in 32 layers; 16 layers; and the 24 heads of the layers that went.
    heads = 2 * 24 * 128 * 4096
    layer = 4 * 4096 * 4096 + 3 * 11_008 * 4096 + 2 * 4096
    assert sorted(parameters[:3]) == sorted([-32 * heads, -16 * layer, 16 * heads])
    assert parameters[3] == sum(parameters[:3])
    assert parameters[3] == size(halved()).parameters.total - 6_738_415_616
    assert "repeats × num_key_value_heads" in table
