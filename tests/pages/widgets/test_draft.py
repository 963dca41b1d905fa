"""The draft: undo, what counts as unsaved, and the address that holds it all."""

from __future__ import annotations

import base64
import zlib

import pytest

from pages.widgets import draft as drafts
from pages.widgets import edits
from pages.widgets.draft import Settings
from pages.widgets.starting import starting_spec
from planner import PlannerError, ServingPlan, TrainingPlan


def test_a_packed_draft_comes_back_with_its_settings_and_is_short() -> None:
    settings = Settings(ServingPlan(context_length=8192), TrainingPlan(sequence_length=1024), "flops")
    text = drafts.pack(starting_spec(), settings)
    assert drafts.unpack(text) == (starting_spec(), settings, None, "")
    assert len(text) < 500


@pytest.mark.parametrize("text", ["", "????", "AAAA", "é", "x" * 5000])
def test_text_that_is_no_draft_is_refused(text: str) -> None:
    with pytest.raises(PlannerError):
        drafts.unpack(text)


@pytest.mark.parametrize("data", [b"[]", b"{}", b"[1, 2]", b"[" * 100_000, b'[{}, {"serving": {}, "training": {}}]'])
def test_packed_data_that_is_no_draft_is_refused(data: bytes) -> None:
    squeezed = zlib.compressobj(9, wbits=-15)
    text = base64.urlsafe_b64encode(squeezed.compress(data) + squeezed.flush()).decode()
    with pytest.raises(PlannerError):
        drafts.unpack(text)


def test_an_address_cannot_unpack_to_more_than_it_may() -> None:
    squeezed = zlib.compressobj(9, wbits=-15)
    data = squeezed.compress(b'"' + b"a" * (drafts.LARGEST_DRAFT_BYTES * 3) + b'"') + squeezed.flush()
    with pytest.raises(PlannerError) as refused:
        drafts.unpack(base64.urlsafe_b64encode(data).decode())
    assert refused.value.code == "unreadable_draft"


def test_unsaved_changes_count_edits_and_come_back_to_nothing() -> None:
    draft = drafts.opened(starting_spec())
    draft.change(edits.set_repeats(draft.spec, 0, 16))
    draft.change(edits.set_repeats(draft.spec, 0, 8))
    assert draft.unsaved_changes == 2
    draft.undo()
    assert draft.unsaved_changes == 1
    draft.change(starting_spec())
    assert draft.unsaved_changes == 0


def test_a_selection_loses_the_layers_that_are_gone() -> None:
    draft = drafts.opened(starting_spec())
    draft.select("sequence_mixer", (0, 31))
    draft.change(edits.set_repeats(draft.spec, 0, 16))
    assert draft.selected == (0,)
    draft.select("layer", (15,))
    draft.change(edits.set_repeats(draft.spec, 0, 4))
    assert (draft.part, draft.selected) == ("model", ())


def test_an_address_holds_the_baseline_that_a_design_is_held_against() -> None:
    draft = drafts.opened(starting_spec())
    draft.change(edits.set_repeats(draft.spec, 0, 16))
    again = drafts.from_address(draft.query(), starting_spec())
    assert again.spec == draft.spec
    assert (again.baseline, again.baseline_label) == (starting_spec(), "as opened")


def test_an_untouched_design_needs_no_baseline_in_its_address() -> None:
    draft = drafts.opened(starting_spec())
    assert draft.query() == {"draft": drafts.pack(starting_spec(), Settings())}


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_an_address_that_was_left_lags_for_as_long_as_the_browser_may_need(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(drafts, "time", clock)
    draft = drafts.opened(starting_spec())
    draft.address = {"draft": "old"}
    draft.move_to({"draft": "new"})
    clock.now += 2.9
    assert draft.lags({"draft": "old"})
    assert not draft.lags({"draft": "another"})
    clock.now += 2.9  # it was still heard of 2.9 seconds ago
    assert draft.lags({"draft": "old"})
    clock.now += 3.1
    assert not draft.lags({"draft": "old"})


def test_a_run_that_takes_long_takes_nothing_of_the_time_to_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(drafts, "time", clock)
    draft = drafts.opened(starting_spec())
    draft.address = {"draft": "old"}
    draft.move_to({"draft": "new"})
    began = clock.now
    clock.now += 8  # a busy machine
    draft.answered(began)
    clock.now += 2.9
    assert draft.lags({"draft": "old"})
    clock.now += 3.1
    assert not draft.lags({"draft": "old"})
