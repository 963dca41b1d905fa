"""The strip and the diagram in a real browser: drag, keys, paint, click, and what the page shows then."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.settled import box_of, wait_for_count, wait_for_nearest_runs

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(180)]

WINDOW = ".chip[data-paint='sequence_mixer:attention:window']"


def opened(page: Any, server: str, query: str = "") -> Any:
    page.goto(f"{server}/studio{query}")
    page.wait_for_selector(".st-key-panel-strip .cell")
    page.wait_for_selector(".st-key-panel-diagram .block")
    page.wait_for_selector(".js-plotly-plot")
    wait_for_nearest_runs(page)
    return page


def drag(page: Any, first: int, last: int, layers: int = 32) -> None:
    """Drag over the strip from one layer to another."""
    box = box_of(page.locator(".lanes"))
    middle = box["y"] + box["height"] / 2

    def x(layer: int) -> float:
        return float(box["x"] + box["width"] * (layer + 0.5) / layers)

    page.mouse.move(x(first), middle)
    page.mouse.down()
    page.mouse.move(x(last), middle, steps=5)
    page.mouse.up()


def inspector(page: Any, text: str) -> None:
    """Wait until the inspector's heading says ``text``."""
    page.wait_for_function(
        "text => document.querySelector('.st-key-panel-inspector .pl-heading')?.innerText.includes(text)", arg=text
    )


def number(page: Any, quantity: str) -> str:
    return str(page.locator(f".key[data-quantity='{quantity}'] .value").inner_text())


def wait_for_number(page: Any, quantity: str, value: str) -> None:
    page.wait_for_function(
        "([name, value]) => document.querySelector('.st-key-plumb-sticky')"
        " && [...document.querySelectorAll('*')].some(e => e.shadowRoot"
        " && e.shadowRoot.querySelector(`.key[data-quantity='${name}'] .value`)?.textContent === value)",
        arg=[quantity, value],
    )


def test_layers_are_selected_by_drag_and_painted(page: Any, server: str) -> None:
    opened(page, server)
    assert number(page, "cache") == "4"
    drag(page, 0, 27)
    inspector(page, "layers 0–27")
    page.locator(WINDOW).click()
    # 28 layers keep 4,096 of 32,768 tokens, 4 keep all: 2 * 8 * 128 * 2 bytes a token and layer.
    assert (28 * 4096 + 4 * 32768) * 2 * 8 * 128 * 2 == 960 * 2**20
    wait_for_number(page, "cache", "960")
    assert "−77%" in page.locator(".key[data-quantity='cache']").inner_text()
    page.locator(".st-key-panel-diagram .head .note", has_text="window 4,096 · open").wait_for()
    assert "draft=" in page.url

    page.reload()
    page.wait_for_selector(".st-key-panel-strip .cell")
    wait_for_number(page, "cache", "960")


def test_layers_are_selected_by_keys_alone(page: Any, server: str) -> None:
    opened(page, server)
    page.locator(".lanes").focus()
    page.keyboard.press("End")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    inspector(page, "layers 29–31")
    wait_for_count(page.locator(".cell[aria-selected='true']"), 3)
    page.keyboard.press("Control+a")
    inspector(page, "layers 0–31")


def test_a_click_on_a_group_opens_it_and_a_block_inside_is_edited(page: Any, server: str) -> None:
    opened(page, server)
    page.locator(".block", has_text="Layers 0–31").click()
    inspector(page, "layers 0–31")
    page.locator(".frame .block", has_text="Attention").click()
    page.wait_for_function(
        "document.querySelector('.st-key-panel-inspector .pl-heading')?.innerText.startsWith('Attention')"
    )
    box = page.get_by_role("textbox", name="KV heads")
    box.fill("7")
    box.press("Enter")
    page.get_by_text("Choose a divisor of 32.").wait_for()
    assert box.input_value() == "7"
    assert number(page, "parameters") == "7.24"
    box.fill("32")
    box.press("Enter")
    wait_for_number(page, "parameters", "8.05")
    page.locator(".st-key-undo button").first.click()
    wait_for_number(page, "parameters", "7.24")


def test_a_number_opens_into_its_terms(page: Any, server: str) -> None:
    opened(page, server)
    page.locator(".key[data-quantity='parameters']").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("7,241,732,096").first.wait_for()
    dialog.locator(".katex").first.wait_for()
    dialog.get_by_text("arXiv:2305.13245").first.wait_for()


def test_the_key_numbers_stay_in_view_and_nothing_runs_out_of_the_page(page: Any, server: str) -> None:
    for width in (1440, 1100):
        page.set_viewport_size({"width": width, "height": 900})
        opened(page, server)
        page.mouse.move(width / 2, 700)
        page.mouse.wheel(0, 900)
        page.wait_for_timeout(400)
        box = box_of(page.locator(".key[data-quantity='parameters']"))
        assert 0 <= box["y"] < 140
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_no_error_reaches_the_console_or_the_page(page: Any, server: str) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened(page, server)
    drag(page, 4, 9)
    inspector(page, "layers 4–9")
    for chip in page.locator(".chip").all():
        chip.click()
        page.wait_for_timeout(350)
    page.wait_for_timeout(500)
    assert errors == []
    assert page.locator(".stException").all_inner_texts() == []


def test_edits_that_follow_each_other_faster_than_the_address_are_all_kept(page: Any, server: str) -> None:
    opened(page, server)
    drag(page, 4, 9)
    inspector(page, "layers 4–9")
    kinds = ("sequence_mixer:mamba1", "sequence_mixer:mamba2", "channel_mixer:moe", "channel_mixer:mlp")
    for kind in 2 * kinds:
        page.locator(f".chip[data-paint='{kind}']").click()
        page.wait_for_timeout(40)
    page.locator(".pl-head", has_text="8 changes not saved").wait_for()
    wait_for_count(page.locator(".cell[aria-selected='true']"), 6)


def test_a_pasted_configuration_is_refused_at_its_line_and_a_preset_opens_is_saved_and_queued(
    page: Any, server: str
) -> None:
    opened(page, server)
    page.get_by_role("button", name="Design").click()
    page.get_by_role("button", name="Open a preset").click()
    dialog = page.get_by_role("dialog", name="Open a design")
    dialog.get_by_text("Paste or drop").click()
    box = dialog.get_by_role("textbox", name="Or its text")
    box.fill('{\n  "model_type": "llama",\n  "hidden_size": 64,\n  "gears": 5\n}')
    box.press("Control+Enter")
    line = dialog.locator(".pl-source div", has_text='"gears": 5')
    line.wait_for()
    assert line.locator("span").inner_text() == "4"
    assert page.locator(".pl-head h1").inner_text() == "New design"

    dialog.get_by_role("tab", name="Presets").click()
    dialog.get_by_role("combobox").fill("llama-2-7b")
    page.keyboard.press("Enter")
    dialog.get_by_text("6,738,415,616 parameters").wait_for()
    dialog.get_by_role("button", name="Open the preset").click()
    wait_for_number(page, "parameters", "6.74")
    assert "Llama 2 7B" in page.locator(".pl-head h1").inner_text()

    page.get_by_role("button", name="Save revision").click()
    page.get_by_role("button", name="Save as a new design").click()
    page.wait_for_url("**/studio?design=*&revision=1")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("Takes about").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("It is in the queue.").wait_for()

    page.goto(server)
    page.get_by_role("link", name="Llama 2 7B").click()
    page.wait_for_url("**/studio?design=*")
    wait_for_number(page, "parameters", "6.74")


def test_a_copied_address_opens_the_same_unsaved_design_in_a_fresh_tab(page: Any, server: str) -> None:
    opened(page, server)
    page.locator(".lanes").focus()
    page.keyboard.press("Control+a")
    inspector(page, "layers 0–31")
    page.locator(WINDOW).click()
    # 32 layers of 4,096 tokens: 2 * 8 * 128 * 2 bytes a token and layer are 512 MiB.
    wait_for_number(page, "cache", "512")
    page.wait_for_function("location.search.includes('draft=')")
    address = page.url
    fresh = page.context.new_page()
    fresh.goto(address)
    fresh.wait_for_selector(".st-key-panel-strip .cell")
    wait_for_number(fresh, "cache", "512")


def test_undo_goes_on_after_a_reload(page: Any, server: str) -> None:
    opened(page, server)
    page.locator(".lanes").focus()
    page.keyboard.press("Control+a")
    inspector(page, "layers 0–31")
    page.locator(WINDOW).click()
    wait_for_number(page, "cache", "512")
    page.wait_for_function("location.search.includes('draft=')")
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_selector(".st-key-panel-strip .cell")
    wait_for_number(page, "cache", "512")
    page.locator(".pl-head", has_text="1 change not saved").wait_for()
    page.locator(".st-key-undo button").first.click()
    wait_for_number(page, "cache", "4")
