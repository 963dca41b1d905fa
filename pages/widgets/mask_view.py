"""What a query of an attention layer sees, drawn from the layer's mask, with the numbers that follow from it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pages.widgets import charts, chrome, figures, theme
from pages.widgets.draft import Settings
from planner import ArchitectureSpec
from planner.components.patterns import MaskPattern
from planner.mask_view import KERNEL_BLOCK, MaskView, mask_view, pattern_of

HEIGHT = 290
SHADES = {"some": 0.38, "every": 1.0}
"""How strong the colour is of a cell of which some pairs are seen, and of one of which all are."""
WORDS = ("none is seen", "some are seen", "all are seen")


def show(spec: ArchitectureSpec, mixer: Any, settings: Settings) -> None:
    """The mask of a sequence mixer of ``spec``; nothing where it has none."""
    pattern = pattern_of(mixer)
    if pattern is None:
        return
    view = _view(spec, pattern, settings.training.sequence_length, settings.serving.context_length)
    length = figures.context(view.sequence_length)
    chrome.html(
        '<div class="pl-cost"><h2 class="pl-heading">What a query sees'
        f"<span>{chrome.escape(pattern.words())} · over {length} positions</span></h2></div>"
    )
    alt = f"Pairs of queries and keys that the mask leaves: {figures.percent(view.density)} of the square"
    charts.show(drawing(view, theme.mixer_token(mixer)), key="mask-view", alt=alt)
    side = view.picture.block_size
    chrome.note(
        f"A cell is {side:,} × {side:,} positions: strong where all pairs are seen, light where some are."
        if side > 1
        else "A cell is a query and a key."
    )
    body = "".join(
        f'<tr title="{chrome.escape(hover)}"><td>{chrome.escape(name)}</td>'
        f'<td class="fig">{chrome.escape(text)}</td></tr>'
        for name, text, hover in facts(view)
    )
    chrome.html(f'<table class="pl-table">{body}</table>')


@lru_cache(maxsize=64)
def _view(spec: ArchitectureSpec, pattern: MaskPattern, sequence_length: int, context_length: int) -> MaskView:
    return mask_view(spec, pattern, sequence_length, context_length)


def facts(view: MaskView) -> list[tuple[str, str, str]]:
    """Rows of the table below the drawing: what is counted, the number, and what its hover says."""
    pairs = figures.count(view.pairs)
    rows = [
        ("Pairs seen", f"{pairs}, {figures.percent(view.density)} of the square", pairs.exact),
        (
            f"Blocks of {KERNEL_BLOCK} that hold any",
            "not counted" if view.block_density is None else figures.percent(view.block_density),
            "What a kernel computes that goes block by block and skips the empty ones",
        ),
        (
            f"Positions kept of {figures.context(view.context_length)}",
            f"{view.kept:,}",
            "Positions whose keys and values stay in this layer's cache",
        ),
    ]
    for depth, positions in view.reach:
        layers = "1 layer" if depth == 1 else f"{depth:,} layers"
        ends = positions == view.reach_length
        rows.append(
            (
                f"Reach through {layers}",
                f"all {positions:,}" if ends else f"{positions:,}",
                f"Positions that the last of {view.reach_length:,} depends on, from the farthest to itself, "
                "through the model's first layers",
            )
        )
        if ends:
            break
    return rows


def drawing(view: MaskView, token: str) -> dict[str, Any]:
    """The square of scores as a Plotly figure: queries downwards, keys to the right."""
    palette = theme.palette()
    picture = view.picture
    levels = picture.some.astype(int) + picture.every.astype(int)
    side = range(0, picture.length, picture.block_size)
    spans = [f"{first:,} to {min(first + picture.block_size, picture.length) - 1:,}" for first in side]
    ends = [-0.5, len(spans) - 0.5]
    layout = charts.frame(HEIGHT, right=12)
    axis = {
        "range": ends,
        "tickvals": ends,
        "ticktext": ["0", f"{view.sequence_length:,}"],
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": 11, "color": palette["faint"]},
        "fixedrange": True,
        "constrain": "domain",
        "showline": True,
        "linecolor": palette["line"],
        "mirror": True,
        "tickangle": 0,
    }
    title = {"font": {"size": 11.5, "color": palette["soft"]}, "standoff": 4}
    return {
        "data": [
            {
                "type": "heatmap",
                "z": [[int(level) or None for level in row] for row in levels],
                "zmin": 1,
                "zmax": 2,
                "colorscale": [[0.0, _faded(palette[token], SHADES["some"])], [1.0, palette[token]]],
                "showscale": False,
                "xgap": 0.6,
                "ygap": 0.6,
                "hoverongaps": False,
                "text": [
                    [
                        f"queries {rows}<br>keys {columns}<br>{WORDS[level]}"
                        for columns, level in zip(spans, row, strict=True)
                    ]
                    for rows, row in zip(spans, levels, strict=True)
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        ],
        "layout": {
            **layout,
            "xaxis": {**axis, "title": {"text": "key", **title}},
            "yaxis": {**axis, "range": ends[::-1], "scaleanchor": "x", "title": {"text": "query", **title}},
            "showlegend": False,
        },
    }


def _faded(colour: str, strength: float) -> str:
    """A colour ``#rrggbb`` that lets the ground through."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{strength})"
