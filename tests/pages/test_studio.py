"""The Studio without a browser: editing fields, undo and redo, wrong input, sharing by the address, saving, jobs.

The strip and the diagram send triggers, which only a browser can: what their handlers do to the draft is called here,
and ``tests/browser/test_studio.py`` drives the real ones.
"""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets import draft as drafts
from pages.widgets import inspector, studio_actions
from pages.widgets.draft import Draft
from pages.widgets.starting import starting_spec
from planner import size
from tests.pages.conftest import ROOT

ATTENTION = "sequence_mixer"


def opened(selected: tuple[int, ...] = (), part: Any = "model", **query: str) -> AppTest:
    """The Studio after its first run, with some layers selected."""
    app = AppTest.from_file(str(ROOT / "pages" / "studio.py"), default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    if selected or part != "model":
        draft_of(app).select(part, selected)
        app.run()
    assert not app.exception
    return app


def draft_of(app: AppTest) -> Draft:
    draft: Draft = app.session_state["draft"]
    return draft


def field(app: AppTest, name: str) -> Any:
    """The text box of a field of what is selected."""
    draft = draft_of(app)
    prefixes = (draft.part, "model", "layer", "positions", "norm", "group0")
    keys = [f"{prefix}:{draft.generation}:{name}" for prefix in prefixes]
    return next(box for box in (*app.text_input, *app.selectbox, *app.toggle) if box.key in keys)


def messages(app: AppTest) -> str:
    """All HTML that the page shows, joined."""
    return " ".join(element.proto.body for element in app.get("html"))


def test_an_edit_changes_the_design_and_undo_and_redo_walk_over_it() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    before = size(draft_of(app).spec).parameters.total

    field(app, "num_key_value_heads").set_value("4").run()
    after = size(draft_of(app).spec).parameters.total
    # Four KV heads of 128 channels fewer, keys and values, over a width of 4,096, in 32 layers.
    assert before - after == 32 * 2 * 4 * 128 * 4096

    app.button(key="undo").click().run()
    assert draft_of(app).spec == starting_spec()
    assert field(app, "num_key_value_heads").value == "8"

    app.button(key="redo").click().run()
    assert size(draft_of(app).spec).parameters.total == after


@pytest.mark.parametrize(
    "name, typed, message",
    [
        ("num_key_value_heads", "abc", "whole number"),
        ("num_key_value_heads", "7", "Choose a divisor of 32."),
        ("head_dim", "-3", "Choose a larger value."),
        ("head_dim", "", "whole number"),
        ("num_attention_heads", "1.5", "whole number"),
        ("sliding_window", "0", "Choose a larger value."),
        ("rope_theta", "fast", "Enter a number."),
        ("rope_share", "2", "Choose a smaller value."),
    ],
)
def test_wrong_text_stays_as_typed_with_a_message_and_the_last_valid_design(
    name: str, typed: str, message: str
) -> None:
    app = opened(tuple(range(32)), ATTENTION)
    field(app, name).set_value(typed).run()
    assert not app.exception
    assert field(app, name).value == typed
    assert message in messages(app)
    assert draft_of(app).spec == starting_spec()


def test_a_refused_choice_leaves_a_message_at_the_field_that_does_not_go_with_it() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    draft_of(app)
    field(app, "rope_theta").set_value("500000").run()
    draft_of(app).select("model")
    app.run()
    key = f"kind:positions:{draft_of(app).generation}"
    app.selectbox(key=key).select("none").run()
    assert not app.exception
    assert "positions are not rotary" in messages(app)
    assert draft_of(app).spec.positions.kind == "rotary"


def test_two_fields_that_only_go_together_are_taken_when_the_second_is_right() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    field(app, "num_attention_heads").set_value("36").run()
    assert "36 query heads cannot share 8 KV heads evenly" in messages(app)
    field(app, "num_key_value_heads").set_value("12").run()
    mixer = draft_of(app).spec.layer_groups[0].layers[0].sequence_mixer
    assert mixer is not None
    assert (mixer.num_attention_heads, mixer.num_key_value_heads) == (36, 12)  # type: ignore[union-attr]
    assert "cannot share" not in messages(app)


def test_digits_may_be_grouped_and_nothing_leaves_an_optional_field_out() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    field(app, "sliding_window").set_value("4,096").run()
    assert draft_of(app).spec.layer_groups[0].layers[0].sequence_mixer.sliding_window == 4096  # type: ignore[union-attr]
    field(app, "sliding_window").set_value("full").run()
    assert draft_of(app).spec.layer_groups[0].layers[0].sequence_mixer.sliding_window is None  # type: ignore[union-attr]


def test_a_flag_and_a_choice_are_edited_like_any_field() -> None:
    app = opened(tuple(range(32)), "channel_mixer")
    field(app, "gated").set_value(False).run()
    field(app, "activation").select("relu").run()
    mixer = draft_of(app).spec.layer_groups[0].layers[0].channel_mixer
    assert mixer is not None
    assert (mixer.gated, mixer.activation) == (False, "relu")


def test_an_edit_of_some_layers_splits_the_group_and_leaves_the_others() -> None:
    app = opened((28, 29, 30, 31), ATTENTION)
    field(app, "sliding_window").set_value("1024").run()
    groups = draft_of(app).spec.layer_groups
    assert [group.num_layers for group in groups] == [28, 4]


def test_the_kind_of_a_mixer_can_be_switched_and_every_kind_can_be_begun_with() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    for kind in ("mamba2", "latent_attention", "mamba1", "attention"):
        key = f"kind:{ATTENTION}:{draft_of(app).generation}"
        app.selectbox(key=key).select(kind).run()
        assert not app.exception
        assert draft_of(app).spec.layer_groups[0].layers[0].sequence_mixer.kind == kind  # type: ignore[union-attr]


def test_the_last_layer_cannot_be_removed() -> None:
    app = opened(tuple(range(32)), "layer")
    next(button for button in app.button if button.label == "Remove").click().run()
    assert "at least one layer" in messages(app)
    assert draft_of(app).spec.num_layers == 32


def test_groups_can_be_repeated_duplicated_and_removed() -> None:
    app = opened(tuple(range(32)), "layer")
    field(app, "repeats").set_value("12").run()
    assert draft_of(app).spec.num_layers == 12
    field(app, "repeats").set_value("0").run()
    assert "Choose a larger value." in messages(app)
    draft_of(app).select("layer", (10, 11))
    app.run()
    next(button for button in app.button if button.label == "Duplicate").click().run()
    assert draft_of(app).spec.num_layers == 14
    draft_of(app).select("layer", (0, 1, 2, 3))
    app.run()
    next(button for button in app.button if button.label == "Remove").click().run()
    assert draft_of(app).spec.num_layers == 10


def test_the_address_holds_the_unsaved_draft() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    field(app, "num_key_value_heads").set_value("2").run()
    app.run()
    held = app.query_params["draft"]
    again = opened(draft=held[0] if isinstance(held, list) else held)
    assert draft_of(again).spec == draft_of(app).spec


def test_a_broken_address_opens_the_starting_design_and_says_so() -> None:
    app = opened(draft="not-a-draft")
    assert "cannot be read" in messages(app)
    assert draft_of(app).spec == starting_spec()


def test_a_design_that_does_not_exist_is_said_so() -> None:
    app = opened(design="41")
    assert "41" in messages(app)
    assert draft_of(app).spec == starting_spec()


def test_saving_makes_revisions_and_the_address_opens_them_again() -> None:
    from db.engine import open_store

    app = opened(tuple(range(32)), ATTENTION)
    with open_store() as store:
        first = studio_actions.save(draft_of(app), store, "the beginning")
        app.run()
        field(app, "num_key_value_heads").set_value("2").run()
        assert draft_of(app).unsaved_changes == 1
        second = studio_actions.save(draft_of(app), store, "fewer KV heads")
        assert (first.number, second.number) == (1, 2)
        assert draft_of(app).unsaved_changes == 0
        assert [revision.note for revision in store.designs.revisions(first.design_id)] == [
            "the beginning",
            "fewer KV heads",
        ]
    old = opened(design=str(first.design_id), revision="1")
    assert draft_of(old).spec == starting_spec()
    new = opened(design=str(first.design_id))
    assert draft_of(new).spec.layer_groups[0].layers[0].sequence_mixer.num_key_value_heads == 2  # type: ignore[union-attr]


def test_a_job_is_estimated_before_it_is_sent_and_saves_the_draft_it_is_about() -> None:
    from db.engine import open_store

    app = opened()
    app.session_state["menu-prototype"] = True
    app.run()
    assert not app.exception
    shown = messages(app)
    assert "Takes about" in shown
    assert "Disk" in shown
    next(button for button in app.button if button.key == "start-prototype").click().run()
    assert not app.exception
    with open_store() as store:
        (job,) = store.jobs.list()
        assert (job.kind, job.state) == ("prototype", "queued")
        revision = store.designs.revision(job.revision_id)
        assert dict(revision.spec) == starting_spec().to_dict()


def test_a_plan_that_cannot_be_is_refused_at_its_field_before_anything_is_queued() -> None:
    app = opened()
    app.session_state["menu-prototype"] = True
    app.run()
    box = next(box for box in app.text_input if box.key == "plan-prototype:steps")
    box.set_value("0").run()
    assert "Choose a larger value." in messages(app)
    assert next(button for button in app.button if button.key == "start-prototype").disabled


def test_settings_change_the_numbers_and_a_wrong_one_is_refused_at_its_field() -> None:
    app = opened()
    app.session_state["menu-settings"] = True
    app.run()
    box = next(box for box in app.text_input if box.key == "settings-serving:context_length")
    box.set_value("131,072").run()
    assert draft_of(app).settings.serving.context_length == 131_072
    box = next(box for box in app.text_input if box.key == "settings-serving:context_length")
    box.set_value("-1").run()
    assert "Choose a larger value." in messages(app)
    assert draft_of(app).settings.serving.context_length == 131_072


def test_a_new_design_opens_with_nothing_to_undo() -> None:
    app = opened()
    assert app.button(key="undo").disabled
    assert app.button(key="redo").disabled
    assert drafts.opened(starting_spec()).unsaved_changes == 0


def test_setting_a_mixer_of_every_kind_on_one_layer_keeps_the_rest() -> None:
    draft = drafts.opened(starting_spec())
    draft.select("layer", (3,))
    inspector.set_mixer(draft, "channel_mixer", "moe")
    assert [group.num_layers for group in draft.spec.layer_groups] == [3, 1, 28]
    inspector.set_mixer(draft, "channel_mixer", "mlp")
    assert draft.spec == starting_spec()


def test_a_layer_can_be_added_and_a_painted_pattern_folded() -> None:
    app = opened()
    next(button for button in app.button if button.label == "Add a layer").click().run()
    assert draft_of(app).spec.num_layers == 33
    draft_of(app).change(starting_spec())
    for layer in range(3, 32, 4):
        draft_of(app).select("layer", (layer,))
        inspector.set_mixer(draft_of(app), ATTENTION, "mamba2")
    draft_of(app).select("model")
    app.run()
    assert len(draft_of(app).spec.layer_groups) == 16
    next(button for button in app.button if button.label == "Fold the stack").click().run()
    (group,) = draft_of(app).spec.layer_groups
    assert (group.repeats, len(group.layers)) == (8, 4)


def test_a_layers_mask_is_drawn_with_its_numbers_and_follows_its_fields() -> None:
    app = opened(tuple(range(32)), ATTENTION)
    assert "What a query sees" in messages(app)
    assert "full · over 4K positions" in messages(app)
    field(app, "sliding_window").set_value("1024").run()
    field(app, "global_tokens").set_value("4").run()
    assert not app.exception
    shown = messages(app)
    assert "window 1,024, 4 global · over 4K positions" in shown
    for name, value in (
        # 4 keys seen by all 4,096 queries after them, and a window of 1,024 in the 4,092 positions behind them.
        ("Pairs seen", "3.68 M, 22.0% of the square"),
        ("Positions kept of 32K", "1,028"),
        # Global tokens stand at the start of the sequence, so that every layer reaches it.
        ("Reach through 1 layer", "all 4,096"),
    ):
        assert f'<td>{name}</td><td class="fig">{value}</td>' in shown, name
    assert 4 * 4096 - 6 + 1024 * 4092 - 1024 * 1023 // 2 == 3_682_810


def test_what_has_no_mask_has_no_picture_of_one() -> None:
    app = opened(tuple(range(32)), "channel_mixer")
    assert "What a query sees" not in messages(app)
    draft_of(app).select(ATTENTION, tuple(range(32)))
    app.run()
    app.selectbox(key=f"kind:{ATTENTION}:{draft_of(app).generation}").select("mamba2").run()
    assert not app.exception
    assert "What a query sees" not in messages(app)
    app.selectbox(key=f"kind:{ATTENTION}:{draft_of(app).generation}").select("latent_attention").run()
    assert "full · over 4K positions" in messages(app)
