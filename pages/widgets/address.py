"""A view that lives in the address: widgets keep their values in the session, and the address says them all.

::

    view = address.View("gallery", {"sort": "parameters", "order": "down", "q": ""})   # names and what is left out
    st.selectbox("Sort by", SORTS, key=view.key("sort"))
    ...
    view.write()                                                                       # at the end of the run

Values are text. What an address says is taken when it is new (a link, a reload, Back), and it stays as it is: written
anew it would be a second entry in the browser's history, and Back would lead from it to the page again. What a widget
says after that is written back, and so is the default of what an address has wrong. :meth:`View.choice` keeps a value
among those that exist, so that no address can break the page.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import streamlit as st

LAG_SECONDS = 3.0
"""How long an address that was left may still come with the browser's requests."""


def asked(page: str) -> dict[str, str]:
    """The query parameters that hold for ``page``.

    The browser sends a change that follows another closely before it has taken the new address: an address that was
    left a moment ago is no wish to go back, and what was written since holds.
    """
    now = dict(st.query_params)
    since = time.monotonic() - LAG_SECONDS
    left: list[tuple[float, dict[str, str]]] = st.session_state.get(f"{page}-left", [])
    written: dict[str, str] | None = st.session_state.get(f"{page}-address")
    if written is not None and any(now == address for when, address in left if when >= since):
        # What comes from there says that more may be on its way.
        st.session_state[f"{page}-left"] = [
            (time.monotonic() if address == now else when, address) for when, address in left
        ]
        return written
    return now


class View:
    """The named values of one page."""

    def __init__(self, page: str, defaults: Mapping[str, str], kept: Iterable[str] = ()) -> None:
        """``kept`` names query parameters that the page reads itself and that stay in the address as they are."""
        self.page, self.defaults, self.kept = page, dict(defaults), tuple(kept)
        query = asked(page)
        self.fresh = query != st.session_state.get(self._written)
        """Whether the address is a wish: not what this page wrote last."""
        for name, default in self.defaults.items():
            if self.fresh or self.key(name) not in st.session_state:
                st.session_state[self.key(name)] = query.get(name, default)
        st.session_state[self._written] = query

    @property
    def _written(self) -> str:
        return f"{self.page}-address"

    def key(self, name: str) -> str:
        """The key of the widget that holds ``name``."""
        return f"{self.page}-{name}"

    def __getitem__(self, name: str) -> str:
        return str(st.session_state[self.key(name)] or "")

    def set(self, name: str, value: str) -> None:
        """Give ``name`` a value; before its widget is drawn, or in a handler."""
        st.session_state[self.key(name)] = value

    def choice(self, name: str, options: Iterable[str]) -> str:
        """The value of ``name``, brought back to its default where it is none of ``options``."""
        known = list(options)
        if self[name] not in known:
            self.set(name, self.defaults[name])
        return self[name]

    def reset(self) -> None:
        """Bring everything back to its default: for a handler."""
        for name, default in self.defaults.items():
            self.set(name, default)

    def go(self, **kept: str | None) -> None:
        """Put what was just asked for into the address, even where that is new: for a handler, or before a rerun."""
        self.fresh = False
        self.write(**kept)

    def write(self, **kept: str | None) -> None:
        """Put the view into the address, unless that is new and right; defaults are left out.

        ``kept`` replaces parameters that the page reads.
        """
        before = asked(self.page)
        if self.fresh and all(before.get(name, self[name]) == self[name] for name in self.defaults):
            return
        query = {name: value for name, value in before.items() if name in self.kept}
        for name, value in kept.items():
            query.pop(name, None)
            if value is not None:
                query[name] = value
        query |= {name: self[name] for name, default in self.defaults.items() if self[name] != default}
        if query != before:
            now = time.monotonic()
            left = st.session_state.get(f"{self.page}-left", [])
            recent = [entry for entry in left if entry[0] >= now - LAG_SECONDS and entry[1] != query]
            st.session_state[f"{self.page}-left"] = [*recent, (now, before)]
        if dict(st.query_params) != query:
            st.query_params.from_dict(query)
        st.session_state[self._written] = query
