"""Home: what stands there on a new machine, and after work was done."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from pages.widgets.starting import starting_spec
from tests.pages.conftest import ROOT


def opened() -> str:
    app = AppTest.from_file(str(ROOT / "pages" / "home.py"), default_timeout=30).run()
    assert not app.exception
    return " ".join(element.proto.body for element in app.get("html"))


def test_a_new_machine_says_what_to_do_next() -> None:
    shown = opened()
    assert "No designs yet" in shown
    assert "No jobs yet" in shown
    assert "No decisions yet" in shown


def test_saved_designs_and_queued_jobs_are_listed_and_names_are_escaped() -> None:
    from db.engine import open_store
    from runners.engines.client import submit

    with open_store() as store:
        design = store.designs.create("<b>Wide</b>", starting_spec().to_dict())
        submit(store, "verify", design.latest.id, {}, "<script>check</script>")
    shown = opened()
    assert "7.24 B" in shown
    assert "&lt;script&gt;check" in shown
    assert "<script>" not in shown
    assert "queued" in shown
