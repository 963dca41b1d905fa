"""Undo after a reload: whose steps come back, where, and how many are kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets import draft as drafts
from pages.widgets import history
from pages.widgets.draft import Draft
from pages.widgets.starting import starting_spec
from planner import ArchitectureSpec, parse_spec
from tests.pages.conftest import ROOT
from tests.pages.reading import query, shown


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    history._steps.clear()
    yield
    history._steps.clear()


def wide(vocab_size: int) -> ArchitectureSpec:
    return parse_spec({**starting_spec().to_dict(), "vocab_size": vocab_size})


def studio(asked: dict[str, str]) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "studio.py"), default_timeout=60)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def draft_of(app: AppTest) -> Draft:
    found: Draft = app.session_state["draft"]
    return found


def edited(monkeypatch: pytest.MonkeyPatch, who: str = "me") -> AppTest:
    """A session in which the vocabulary was changed three times and the last change undone."""
    monkeypatch.setattr(history, "browser", lambda: who)
    app = studio({})
    for size in (1000, 2000, 3000):
        draft_of(app).change(wide(size))
    draft_of(app).undo()
    app.run()
    return app


def test_a_reload_keeps_every_step_back_and_forth_and_what_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    app = edited(monkeypatch)
    again = studio(query(app))
    assert "2 changes not saved" in shown(again)
    draft = draft_of(again)
    assert (draft.spec, draft.past, draft.future) == (wide(2000), [starting_spec(), wide(1000)], [wide(3000)])
    again.button(key="redo").click().run()
    assert draft_of(again).spec == wide(3000)
    for _ in range(3):
        again.button(key="undo").click().run()
    assert draft_of(again).spec == starting_spec()
    assert again.button(key="undo").disabled
    # The first session has lists of its own.
    assert draft_of(app).spec == wide(2000)


def test_another_browser_gets_the_design_and_none_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    app = edited(monkeypatch)
    monkeypatch.setattr(history, "browser", lambda: "another")
    other = studio(query(app))
    assert draft_of(other).spec == wide(2000)
    assert (draft_of(other).past, draft_of(other).future) == ([], [])


def test_who_cannot_be_told_apart_leaves_no_steps_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    app = edited(monkeypatch, who="")
    assert not history._steps
    assert draft_of(studio(query(app))).past == []


def test_steps_that_led_to_another_design_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "browser", lambda: "me")
    draft = drafts.opened(wide(1000))
    draft.change(wide(2000))
    history.keep(draft, {"design": "1"})
    other = drafts.opened(wide(5000))
    history.restore(other, {"design": "1"})
    assert other.past == []


def test_only_so_many_are_kept_and_the_newest_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "browser", lambda: "me")
    monkeypatch.setattr(history, "KEPT", 3)
    draft = drafts.opened(wide(1000))
    draft.change(wide(2000))
    for number in range(5):
        history.keep(draft, {"design": str(number)})
    assert [dict(address)["design"] for _, address in history._steps] == ["2", "3", "4"]


def test_a_browser_is_known_by_its_token_whatever_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two cookies of one browser, as two loads of a page gave them, and one of another.
    first = "2|09f1cf1f|f491eaf8d7e99e948f076a8d76f3a944|1795693156"
    second = "2|b2ccc602|4face3e56cd49789343a6390cdcea059|1795693156"

    def known(cookie: str) -> str:
        class Context:
            cookies = {"_streamlit_xsrf": cookie} if cookie else {}

        monkeypatch.setattr("streamlit.context", Context)
        return history.browser()

    assert known(first) == known(second) != ""
    assert known(first.replace("f491", "f492")) != known(first)
    assert [known(cookie) for cookie in ("", "nonsense", "2|xx|yy|1", "2||aa|1")] == ["", "", "", ""]
