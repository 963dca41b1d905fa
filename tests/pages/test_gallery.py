"""The gallery without a browser: what is listed, filtered, sorted and compared, and what an address may say."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from planner import ArchitectureSpec, cache_bytes, flops, load, size
from planner.presets import preset, preset_ids
from tests.pages.conftest import ROOT
from tests.pages.reading import elements, query, shown

PUBLISHED = {"llama-2-7b": 6_738_415_616, "mixtral-8x7b": 46_702_792_704, "gpt2": 124_439_808}
"""Parameters as the published weights have them."""


def opened(**asked: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "gallery.py"), default_timeout=60)
    for name, value in asked.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def cards(app: AppTest) -> list[str]:
    """Titles of the architectures that are shown, in their order: what their strips are called."""
    titles = re.findall(r'role="img" aria-label="([^"]*?)(?:: \d[^"]*)?"', shown(app))
    known = {preset(name).title for name in preset_ids()}
    return [title for title in titles if title in known]


def numbers(app: AppTest, title: str) -> str:
    """HTML of one card's numbers."""
    bodies = [element.proto.body for element in elements(app, "html")]
    return str(bodies[next(i for i, body in enumerate(bodies) if f'aria-label="{title}: ' in body) + 1])


def test_every_preset_is_a_card_with_the_published_count() -> None:
    app = opened()
    assert sorted(cards(app)) == sorted(preset(name).title for name in preset_ids())
    for name, count in PUBLISHED.items():
        assert f"{count:,}: all of them, counted" in numbers(app, preset(name).title)


def test_the_numbers_of_a_card_are_the_planners_and_a_hand_calculations() -> None:
    app = opened()
    card = numbers(app, preset("mixtral-8x7b").title)
    # Two of eight experts of three matrices of 4,096 by 14,336 in 32 layers.
    assert f"{46_702_792_704 - 6 * 32 * 3 * 4096 * 14_336:,}: what one token touches" in card
    # Keys and values of 8 heads of 128 channels in 32 layers, two bytes each.
    assert f"{2 * 8 * 128 * 32 * 2:,} bytes: what one more token adds" in card
    assert f"{2 * 8 * 128 * 32 * 2 * 32_768:,} bytes: one sequence" in card


def test_the_context_changes_the_cache_and_nothing_else() -> None:
    app = opened()
    before = numbers(app, "Llama 2 7B")
    app.select_slider(key="gallery-context").set_value("131072").run()
    after = numbers(app, "Llama 2 7B")
    assert "Cache at 128K" in after
    assert f"{cache_bytes(load('llama-2-7b'), 131_072):,} bytes" in after
    counted = re.compile(r'title="([^"]*?): ')
    assert counted.findall(before)[:4] == counted.findall(after)[:4]
    assert len(counted.findall(after)) == 5
    assert query(app) == {"context": "131072"}


@pytest.mark.parametrize(
    "asked, inside, outside",
    [
        ({"q": "llama 70b"}, {"Llama 3.1 70B"}, {"Llama 2 7B"}),
        ({"q": "openai"}, {"GPT-2 small", "GPT-2 XL"}, {"Llama 2 7B"}),
        ({"mixer": "mamba2"}, {"Mamba-2 2.7B", "Tiny hybrid"}, {"Mamba 2.8B", "Llama 2 7B"}),
        ({"mixer": "latent_attention"}, {"DeepSeek-V3"}, {"Llama 2 7B"}),
        ({"mixer": "window"}, {"Mistral 7B v0.1", "Gemma 2 2B"}, {"Llama 2 7B", "Mamba 2.8B"}),
        ({"mixer": "hybrid"}, {"Jamba v0.1", "Tiny hybrid"}, {"Mamba-2 2.7B", "Llama 2 7B"}),
        ({"experts": "moe"}, {"DeepSeek-V3", "Jamba v0.1"}, {"Llama 2 7B"}),
        ({"experts": "dense"}, {"Llama 2 7B"}, {"DeepSeek-V3", "Jamba v0.1"}),
        ({"size": "under-1b"}, {"GPT-2 small"}, {"Llama 3.2 1B", "Llama 2 7B"}),
        ({"size": "over-40b"}, {"Llama 3.1 70B", "Mixtral 8x7B"}, {"Llama 2 7B"}),
    ],
)
def test_a_filter_keeps_those_that_it_names(asked: dict[str, str], inside: set[str], outside: set[str]) -> None:
    app = opened(**asked)
    found = set(cards(app))
    titles = {title.replace("×", "x") for title in found}
    assert {title.replace("×", "x") for title in inside} <= titles
    assert not titles & outside
    assert f"{len(found):,} of {len(preset_ids()):,} shown." in shown(app)


def test_the_widgets_filter_as_the_address_does() -> None:
    app = opened()
    app.selectbox(key="gallery-experts").select("moe").run()
    app.selectbox(key="gallery-size").select("over-40b").run()
    assert query(app) == {"experts": "moe", "size": "over-40b"}
    assert cards(app) == cards(opened(experts="moe", size="over-40b"))
    app.text_input(key="gallery-q").set_value("deepseek-ai deepseek-v3").run()
    assert cards(app) == ["DeepSeek-V3"]


MEASURED: dict[str, Callable[[ArchitectureSpec], float]] = {
    "parameters": lambda spec: size(spec).parameters.total,
    "active_parameters": lambda spec: size(spec).parameters.active,
    "flops_a_token": lambda spec: flops(spec, 4096).total,
    "cache_bytes": lambda spec: cache_bytes(spec, 32_768),
}


@pytest.mark.parametrize("sort", MEASURED)
def test_the_order_is_that_of_the_number(sort: str) -> None:
    by_title = {preset(name).title: preset(name).spec for name in preset_ids()}
    for order in ("up", "down"):
        values = [MEASURED[sort](by_title[title]) for title in cards(opened(sort=sort, order=order))]
        assert len(values) == len(by_title)
        assert values == sorted(values, reverse=order == "down")


def test_what_keeps_nothing_a_token_comes_first_by_that() -> None:
    stateful = ("falcon-mamba-7b", "gla-1.3b", "mamba-2.8b", "mamba2-2.7b", "rwkv-4-7b")
    first = cards(opened(sort="cache_bytes_a_token"))[: len(stateful)]
    assert {preset(name).title for name in stateful} == set(first)


def test_the_order_by_name_has_no_direction() -> None:
    app = opened(sort="name", order="down")
    assert cards(app) == sorted(cards(app), key=str.lower)
    assert app.selectbox(key="gallery-order").disabled


def test_a_baseline_shows_each_change_against_it() -> None:
    app = opened()
    app.selectbox(key="gallery-baseline").select("llama-2-7b").run()
    # 46,702,792,704 over 6,738,415,616 is 6.93; a quarter of the KV heads in as many layers is 75% less.
    card = numbers(app, preset("mixtral-8x7b").title)
    assert "×6.93" in card
    assert "−75%" in card
    assert "pl-bad" in card
    assert "pl-good" in card
    assert "baseline" in shown(app)
    own = numbers(app, "Llama 2 7B")
    assert own.count("same") == 5


def test_the_table_says_the_same_as_the_cards() -> None:
    app = opened(baseline="llama-2-7b")
    app.button_group(key="gallery-view").set_value("table").run()
    assert not app.exception
    assert sorted(cards(app)) == sorted(preset(name).title for name in preset_ids())
    for count in PUBLISHED.values():
        assert f'title="{count:,}"' in shown(app)
    assert "×6.93" in shown(app)
    assert query(app) == {"baseline": "llama-2-7b", "view": "table"}


def test_filters_that_nothing_passes_say_so_and_are_cleared_at_once() -> None:
    app = opened(q="no such thing", size="under-1b", sort="name")
    assert "No architecture passes" in shown(app)
    assert cards(app) == []
    app.button(key="clear-filters").click().run()
    assert not app.exception
    assert len(cards(app)) == len(preset_ids())
    assert query(app) == {}


@pytest.mark.parametrize(
    "name, wrong, default",
    [
        ("mixer", "magic", ""),
        ("experts", "some", ""),
        ("size", "huge", ""),
        ("sort", "beauty", "parameters"),
        ("order", "sideways", "up"),
        ("baseline", "<b>none</b>", ""),
        ("context", "-1", "32768"),
        ("view", "film", "shapes"),
    ],
)
def test_an_address_that_cannot_be_falls_back_to_its_default(name: str, wrong: str, default: str) -> None:
    app = opened(**{name: wrong})
    assert str(app.session_state[f"gallery-{name}"]) == default
    assert query(app) == {}
    assert len(cards(app)) == len(preset_ids())


def test_what_is_searched_for_is_never_taken_for_html() -> None:
    app = opened(q="<script>check</script>")
    assert "<script>check" not in shown(app)
    assert "No architecture passes" in shown(app)
