"""Small browser components: a JavaScript and a CSS file beside this one, no build step, no iframe.

The script's default export draws ``data`` into ``parentElement`` and reports by ``setTriggerValue``; the CSS reads the
tokens of :mod:`pages.widgets.theme`. Names and text from people go through ``textContent`` alone.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st
from streamlit.components.v2.get_bidi_component_manager import get_bidi_component_manager

_HERE = pathlib.Path(__file__).parent
Handler = Callable[[Any], None]


class BrowserComponent:
    """A component drawn by ``<name>.js`` and ``<name>.css``; registered with whichever runtime shows it."""

    def __init__(self, name: str) -> None:
        self.name = f"plumbline_{name}"
        self._script = (_HERE / f"{name}.js").read_text()
        self._style = (_HERE / "browser_base.css").read_text() + (_HERE / f"{name}.css").read_text()
        self._manager: object = None
        self._renderer: Callable[..., Any] | None = None

    def mount(self, data: Mapping[str, Any], key: str, handlers: Mapping[str, Handler]) -> None:
        """Draw ``data``. A trigger's handler gets its value and runs before the script does, as widget callbacks do.

        ``key`` keeps the element in the browser from run to run, so that only what changed is drawn anew.
        """
        manager = get_bidi_component_manager()
        if self._renderer is None or self._manager is not manager:
            self._renderer = st.components.v2.component(self.name, css=self._style, js=self._script)
            self._manager = manager
        callbacks: dict[str, Any] = {
            f"on_{name}_change": _reader(key, name, handler) for name, handler in handlers.items()
        }
        self._renderer(data=dict(data), key=key, **callbacks)


def _reader(key: str, trigger: str, handler: Handler) -> Callable[[], None]:
    def read() -> None:
        value = st.session_state[key].get(trigger)
        if value is not None:
            handler(value)

    return read
