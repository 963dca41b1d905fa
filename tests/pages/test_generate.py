"""The prompt page: who can be asked, what is wrong said at its field, what is written shown with its probabilities."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from db.engine import Store, open_store
from db.records import GeneratedToken, JobState, NewResult
from pages.widgets import job_view, written
from planner import PrototypePlan, parse_spec
from tests.pages.conftest import ROOT

ATTENTION = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}


def opened(page: str = "generate", **address: str) -> AppTest:
    test = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=30)
    for name, value in address.items():
        test.query_params[name] = value
    return test.run()


def text_of(test: AppTest) -> str:
    return " ".join(str(element.proto.body) for element in test.get("html"))


def prototype(store: Store, name: str, worker: str = "test", **fields: Any) -> str:
    """A stored prototype with the given fields of its specification or its plan, as a job leaves it; its id."""
    positions = fields.pop("positions", {"kind": "rotary"})
    plan = PrototypePlan(**fields)
    groups = [{"repeats": 1, "layers": [{"sequence_mixer": ATTENTION}]}]
    data = {"name": "design", "vocab_size": plan.vocab_size, "hidden_size": 8, "layer_groups": groups}
    spec = parse_spec({**data, "positions": positions})
    revision = store.designs.create(name, spec.model_dump(mode="json")).latest
    job = store.jobs.begin("prototype", revision.id, plan.model_dump(mode="json"), worker, name=name)
    values = {"bits_per_byte": 2.5, "parameters": 1_234_567, "spec": spec.to_dict()}
    store.jobs.append(job.id, job.attempt, [NewResult("prototype", values, {"device": "test"})])
    store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    return job.id


def test_without_a_trained_prototype_the_page_says_where_one_comes_from() -> None:
    """A recorded one has no weights here."""
    with open_store() as store:
        prototype(store, "recorded", job_view.RECORDED)
    test = opened()
    assert not test.exception
    assert "No trained prototype yet" in text_of(test)
    assert not test.multiselect


def test_a_prompt_is_sent_with_its_options() -> None:
    with open_store() as store:
        first, second = prototype(store, "first"), prototype(store, "second")
    test = opened(prototypes=f"{second},{first}")
    assert test.multiselect[0].value == [second, first]
    assert test.multiselect[0].options == ["second · 1.23 M", "first · 1.23 M"]
    test.text_area[0].set_value("def é\n")
    test.text_input(key="top_p-new").set_value("0.9")
    test.text_input(key="temperature-new").set_value("0")
    test.selectbox(key="draft-new").set_value(first)
    test.button(key="generate").click().run()
    assert not test.exception
    with open_store() as store:
        (job,) = store.jobs.list(kind="generate")
    assert test.query_params["job"] == job.id
    assert job.name == "“def é” by second"
    expected = {"prototypes": [second, first], "draft": first, "prompt": "def é\n", "top_p": 0.9, "temperature": 0.0}
    assert {name: job.plan[name] for name in expected} == expected
    assert (job.plan["top_k"], job.plan["max_new_tokens"]) == (None, 200)
    again = opened(job=job.id)
    assert again.text_area[0].value == "def é\n"
    assert again.multiselect[0].value == [second, first]
    assert "Waiting for a worker" in text_of(again)
    assert "No worker is running" in text_of(again)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("top_p", "0", "greater than 0"),
        ("top_p", "1.5", "less than or equal to 1"),
        ("top_k", "0", "greater than 0"),
        ("min_p", "-1", "greater than or equal to 0"),
        ("temperature", "hot", "number"),
        ("temperature", "inf", "less than or equal to 100"),
        ("max_new_tokens", "1000", "With a prompt of 3 tokens short has positions for 17. </span>"),
        ("prompt", "", "There is no prompt."),
        ("prompt", "x" * 25, "It has 25 tokens, and short knows 20 positions."),
    ],
)
def test_what_is_wrong_is_said_at_its_field_and_nothing_is_sent(field: str, value: str, message: str) -> None:
    with open_store() as store:
        prototype(store, "short", positions={"kind": "learned", "num_positions": 20})
    test = opened()
    test.text_input(key="max_new_tokens-new").set_value("4")
    test.text_area[0].set_value("abc")
    (test.text_area[0] if field == "prompt" else test.text_input(key=f"{field}-new")).set_value(value)
    test.button(key="generate").click().run()
    assert not test.exception
    assert "pl-field-error" in text_of(test)
    assert message.removesuffix(" </span>") in text_of(test)
    with open_store() as store:
        assert store.jobs.list(kind="generate") == ()


def test_prototypes_of_different_tokens_do_not_share_a_prompt() -> None:
    with open_store() as store:
        on_text, sorts = prototype(store, "on text"), prototype(store, "sorts", task="sorting", difficulty=4)
    test = opened(prototypes=sorts)
    assert "symbols of sorting" in test.text_area[0].label
    assert "only the tokens that it asks for were ever learned" in text_of(test)
    test.text_area[0].set_value("17 nonsense ?")
    test.button(key="generate").click().run()
    assert "There is no symbol &#x27;nonsense&#x27;." in text_of(test)
    test = opened(prototypes=f"{on_text},{sorts}")
    test.text_area[0].set_value("17")
    test.button(key="generate").click().run()
    assert "sorts reads symbols of sorting" in text_of(test)
    with open_store() as store:
        assert store.jobs.list(kind="generate") == ()


def said(piece: str, label: str, probability: float, is_proposed: bool | None = None) -> dict[str, Any]:
    return {
        "token": 1,
        "piece": piece,
        "label": label,
        "probability": probability,
        "sampling_probability": 0.75,
        "alternatives": [[label, probability], ["<b>", 0.125]],
        "is_proposed": is_proposed,
        "log_probability": -12.34,
        "tokens_per_second": 1234.5,
    }


def test_what_is_written_is_shaded_and_has_its_alternatives() -> None:
    with open_store() as store:
        first = prototype(store, "first")
        plan = {"prototypes": [first], "draft": first, "prompt": "<i>def"}
        revision = store.jobs.get(first).revision_id
        job = store.jobs.begin("generate", revision, plan, "test")
        tokens = [
            GeneratedToken(0, 0, said("\n", "\\n", 0.9)),
            GeneratedToken(0, 1, said("", "\\xc3", 0.0042)),
            GeneratedToken(1, 0, said("<", "<", 0.3, True)),
        ]
        store.jobs.append(job.id, job.attempt, tokens)
    test = opened(job=job.id)
    assert not test.exception
    shown = text_of(test)
    assert '<span class="pl-prompt">&lt;i&gt;def</span>' in shown
    assert '<span class="pl-token s0" data-tip="\\n  90.0%&#10;drawn at 75.0%&#10;&#10;' in shown
    assert "<i>↵</i>\n</span>" in shown
    assert 'class="pl-token s4"' in shown
    assert "<i>·</i></span>" in shown
    assert 'class="pl-token s1 proposed"' in shown
    assert "proposed by the draft" in shown
    assert "&lt;b&gt;  12.5%" in shown
    assert "<b>1,234</b> tokens a second" in shown
    assert "<b>-12.3</b> nats" in shown
    assert "first, with a draft" in shown
    with open_store() as store:
        results = [{}, {"tokens_per_pass": 2.5, "acceptance_rate": 0.75}]
        store.jobs.append(job.id, job.attempt, [NewResult("generate", {"texts": results}, {"device": "test"})])
        store.jobs.finish(job.id, job.attempt, JobState.FAILED, "prototypes: the directory is not there any more")
    shown = text_of(opened(job=job.id))
    assert "<b>2.50</b> tokens a pass" in shown
    assert "<b>75%</b> of the proposals taken" in shown
    assert "the directory is not there any more" in shown


def test_shades_are_those_of_the_legend() -> None:
    assert [written.shade(p) for p in (1.0, 0.5, 0.49, 0.2, 0.19, 0.05, 0.04, 0.01, 0.009, 0.0)] == [
        *("s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3", "s4", "s4")
    ]


def test_a_trained_prototype_is_one_click_from_its_prompt() -> None:
    with open_store() as store:
        trained, recorded = prototype(store, "trained"), prototype(store, "recorded", job_view.RECORDED)
    assert "Try a prompt" in [button.label for button in opened("jobs", job=trained).button]
    assert "Try a prompt" not in [button.label for button in opened("jobs", job=recorded).button]


def test_an_address_that_leads_nowhere_is_said() -> None:
    with open_store() as store:
        first = prototype(store, "first")
    assert "pl-problems" in text_of(opened(job="nothing"))
    assert opened(job=first).multiselect[0].value == [first]  # a job of another kind is no prompt
    assert opened(prototypes="nothing").multiselect[0].value == [first]
