"""A comparison as one HTML file that needs nothing else: its tables, its curves, its colours."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from pages.widgets import chrome, theme

_STYLE = """
body{margin:24px auto;max-width:1180px;padding:0 20px;background:var(--ground);color:var(--ink);
font:14px/1.5 Inter,system-ui,sans-serif} h1{font-size:21px} h2{font-size:15px;margin-top:28px}
table{border-collapse:collapse;width:100%;font-size:13px} td,th{padding:6px 8px;text-align:right;
border-bottom:1px solid var(--line)} td:first-child,th:first-child{text-align:left} .pl-soft{color:var(--soft)}
.pl-tag{color:#fff;border-radius:5px;padding:0 6px} p{color:var(--soft)}
"""


def comparison_html(
    title: str, notes: Sequence[str], parts: Sequence[tuple[str, str]], plots: Sequence[tuple[str, Any]]
) -> str:
    """The page. ``parts`` are headings with HTML of our own; ``plots`` headings with figures as plain data."""
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    colours = "".join(f"--{name}:{colour};" for name, colour in theme.palette_of("light").items())
    body = [f"<h1>{chrome.escape(title)}</h1>"]
    body += [f"<p>{chrome.escape(note)}</p>" for note in notes]
    body += [f"<h2>{chrome.escape(heading)}</h2>{content}" for heading, content in parts]
    for heading, figure in plots:
        drawn = go.Figure(figure).to_html(include_plotlyjs=False, full_html=False, config={"displayModeBar": False})
        body.append(f"<h2>{chrome.escape(heading)}</h2>{drawn}")
    body.append(f"<p>Exported from Plumbline on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC.</p>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{chrome.escape(title)}</title>'
        f"<style>:root{{{colours}}}{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body>{''.join(body)}</body></html>"
    )
