"""Colours: one table, the same in Streamlit's configuration, every component with one, no two alike."""

from __future__ import annotations

import re
import tomllib

import pytest

from pages.widgets import edits, theme
from tests.pages.conftest import ROOT


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_streamlits_configuration_repeats_the_ground_colours(mode: str) -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["theme"][mode]
    place = ("light", "dark").index(mode)
    ground = {name: pair[place] for name, pair in theme.tokens()["ground"].items()}
    assert config["primaryColor"] == ground["accent"]
    assert config["backgroundColor"] == config["sidebar"]["backgroundColor"] == ground["ground"]
    assert config["secondaryBackgroundColor"] == ground["panel"]
    assert (config["textColor"], config["borderColor"]) == (ground["ink"], ground["line"])


def test_every_component_of_the_planner_has_a_colour_of_its_own_kind() -> None:
    for union in edits.MIXER_UNIONS.values():
        for component in edits.kinds_of(union).values():
            assert theme.component_token(component.component) != "other", component


def test_no_colour_means_two_things() -> None:
    for place in (0, 1):
        meaning = {name: pairs for name, pairs in theme.tokens().items() if name != "ground"}
        colours = [pair[place] for pairs in meaning.values() for pair in pairs.values()]
        assert len(colours) == len(set(colours))


def test_what_the_stylesheets_use_is_defined() -> None:
    defined = set(theme.palette_of("light"))
    own = {"kind", "count", "bars", "shade"}
    for path in [*(ROOT / "pages" / "widgets").glob("*.css"), ROOT / "assets" / "theme.css"]:
        used = set(re.findall(r"var\(--([a-z-]+)", path.read_text()))
        assert {name for name in used if not name.startswith("st-")} <= defined | own, path.name


def test_text_can_be_read_on_its_ground() -> None:
    """WCAG 2.1, success criterion 1.4.3: at least 4.5 to 1 for text, 3 to 1 for large or faint marks."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(first: str, second: str) -> float:
        high, low = sorted((luminance(first), luminance(second)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for mode in ("light", "dark"):
        palette = theme.palette_of(mode)  # type: ignore[arg-type]
        for ground in (palette["ground"], palette["panel"]):
            for name in ("ink", "soft", "accent", "good", "warn", "bad"):
                assert contrast(palette[name], ground) >= 4.5, (mode, name)
            assert contrast(palette["faint"], ground) >= 3.0, mode
        assert contrast(palette["on-accent"], palette["accent"]) >= 4.5
