"""The frame of every page: header, panels, empty states, errors at their field, and the store.

A page reads::

    from pages.widgets import chrome

    with chrome.header("Jobs", "3 running"):          # actions stand at the right, the main one type="primary"
        if st.button("New job", type="primary"): ...
    store = chrome.get_store()                         # ends the page with one line if the store cannot be opened
    with chrome.panel("Running", "newest first", key="running"):
        chrome.empty_state("No jobs yet", "Prototype a design in the Studio.", page="pages/studio.py", action="Studio")

``app.py`` calls :func:`dress` once a run, before the page.
"""

from __future__ import annotations

import contextlib
import html as _html
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.errors import StreamlitPageNotFoundError
from streamlit.runtime.pages_manager import PagesManager

from pages.widgets import theme
from planner import PlannerError, Problem

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from db.engine import Store

_log = logging.getLogger("plumbline.pages")


def dress() -> None:
    """Give the page its stylesheet and the brand above the navigation."""
    st.html(f"<style>{theme.stylesheet()}</style>")
    st.logo(str(theme.ASSETS / "theme-bob.svg"), size="large", icon_image=str(theme.ASSETS / "theme-bob.svg"))


def escape(text: object) -> str:
    """Text made safe inside HTML."""
    return _html.escape(str(text), quote=True)


def html(body: str) -> None:
    """Show HTML made of our own tags and :func:`escape`\\ d text. Streamlit sanitizes it; scripts never run."""
    st.html(body)


def _run_inside_app() -> None:
    """Start the run again if Streamlit ran the page alone.

    It does so when the first visitor of a server asks for a page by its address: as long as ``app.py`` has not run, it
    takes the folder ``pages`` for its older kind of navigation. There is no setting against it, only this flag.
    """
    if PagesManager.uses_pages_directory:
        PagesManager.uses_pages_directory = False
        st.rerun()


def header(title: str, subtitle: str = "", key: str = "header") -> DeltaGenerator:
    """The page's title and what it is about; gives the container at the right in which actions are put."""
    _run_inside_app()
    with st.container(key=f"plumb-{key}", horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(width="stretch"):
            html(f'<header class="pl-head"><h1>{escape(title)}</h1><span>{escape(subtitle)}</span></header>')
        return st.container(
            key=f"plumb-{key}-actions",
            horizontal=True,
            horizontal_alignment="right",
            vertical_alignment="center",
            gap="small",
            width="content",
        )


@contextlib.contextmanager
def panel(title: str, note: str = "", *, key: str, height: Any = "content") -> Iterator[DeltaGenerator]:
    """A framed part of a page with a heading, and a faint note beside it. ``key`` is unique on the page.

    ``height="stretch"`` makes panels in neighbouring columns equally tall.
    """
    container = st.container(border=True, key=f"panel-{key}", height=height, gap="small")
    with container:
        heading(title, note)
        yield container


def heading(title: str, note: str = "") -> None:
    """A heading as panels have it."""
    faint = f"<span>{escape(note)}</span>" if note else ""
    html(f'<h2 class="pl-heading">{escape(title)}{faint}</h2>')


def note(text: str) -> None:
    """A soft line of explanation."""
    html(f'<p class="pl-note">{escape(text)}</p>')


def empty_state(
    title: str, what_next: str, *, page: str | None = None, action: str = "", key: str | None = None
) -> None:
    """Say that there is nothing yet and what to do next; ``page`` is linked to under the name ``action``."""
    with st.container(key=f"empty-{key or title.lower().replace(' ', '-')}", horizontal_alignment="center"):
        html(f'<div class="pl-empty"><b>{escape(title)}</b><p>{escape(what_next)}</p></div>')
        if page is not None:
            link(page.removeprefix("pages/").removesuffix(".py"), action or "Open")


def field_error(problem: Problem | str) -> None:
    """What is wrong with the field just above, and the remedy."""
    if isinstance(problem, Problem):
        text, remedy = problem.message, problem.remedy
    else:
        text, remedy = problem, ""
    html(f'<p class="pl-field-error" role="alert">{escape(text)} <span>{escape(remedy)}</span></p>')


def error(reason: Exception | str, *, path: str = "") -> None:
    """What could not be done, in one block: every problem with its field and remedy."""
    problems: Iterable[Problem] = ()
    if isinstance(reason, PlannerError):
        problems = reason.problems
    if problems:
        items = "".join(
            f"<li>{f'<code>{escape(p.path)}</code> ' if p.path else ''}{escape(p.message)} "
            f"<span>{escape(p.remedy)}</span></li>"
            for p in problems
        )
        html(f'<ul class="pl-problems" role="alert">{items}</ul>')
        return
    where = f"<code>{escape(path)}</code> " if path else ""
    html(f'<div class="pl-problems" role="alert">{where}{escape(reason)}</div>')


@st.cache_resource(show_spinner=False)
def _open_store() -> Store:
    from db.engine import open_store

    return open_store()


def get_store() -> Store:
    """The store of this process, opened once. If it cannot be opened the page ends with one line that says why."""
    from db.errors import StoreError

    try:
        return _open_store()
    except StoreError as reason:
        _log.warning("the store cannot be opened: %s", reason)
        error(reason)
        st.stop()


def store_if_open() -> Store | None:
    """The store, or ``None`` where it cannot be opened: for what a page shows besides, and does well without."""
    from db.errors import StoreError

    try:
        return _open_store()
    except StoreError as reason:
        _log.warning("the store cannot be opened: %s", reason)
        return None


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """What goes wrong in the store or the planner inside becomes one line on the page, and the page goes on."""
    from db.errors import StoreError

    try:
        yield
    except (StoreError, PlannerError) as reason:
        _log.info("refused: %s", reason)
        error(reason)


def worker_banner(store: Store) -> None:
    """Say that no worker takes jobs, and how to start one; nothing where one is alive."""
    from runners.engines.client import worker_status

    with guard():
        status = worker_status(store)
        if not status.alive:
            html(
                '<div class="pl-banner" role="status"><b>No worker is running.</b> Jobs wait in the queue until one '
                f"is started: {_commands(status.how_to_start)}</div>"
            )


def _commands(text: str) -> str:
    """HTML of ``make app starts one; alone: …``, the commands in it set as such."""
    ways = []
    for way in text.split("; "):
        before, colon, command = way.rpartition(": ")
        if not colon:
            command, _, after = way.partition(" starts")
            ways.append(f"<code>{escape(command)}</code>{escape(f' starts{after}' if after else '')}")
        else:
            ways.append(f"{escape(before)}{colon}<code>{escape(command)}</code>")
    return "; ".join(ways)


def page_exists(name: str) -> bool:
    """Whether ``pages/<name>.py`` is there, so that it can be linked to."""
    return (theme.ASSETS.parent / "pages" / f"{name}.py").exists()


def link(page: str, label: str, **query: str) -> None:
    """A link to ``pages/<page>.py`` with query parameters; nothing where the navigation does not have that page."""
    with contextlib.suppress(StreamlitPageNotFoundError):
        st.page_link(f"pages/{page}.py", label=label, query_params=query or None)


def status_glyph(status: str) -> str:
    """HTML of the mark that says how a number came about: exact, measured, modelled, approximated, unsupported."""
    words = escape(theme.STATUS_WORDS.get(status, status))
    return f'<i class="pl-status {escape(status)}" title="{words}" role="img" aria-label="{words}"></i>'


def variant_tag(index: int) -> str:
    """HTML of the letter that a design under comparison is known by."""
    variant = theme.VARIANTS[index]
    return f'<b class="pl-tag" style="background:var(--{variant.token})">{variant.letter}</b>'


def swatch(token: str, label: str) -> str:
    """HTML of a small square in a token's colour and what it stands for."""
    return f'<span class="pl-swatch"><i style="background:var(--{escape(token)})"></i>{escape(label)}</span>'


_STATE_TONES = {"succeeded": "pl-good", "failed": "pl-bad", "running": "pl-warn"}


def state_tag(state: str) -> str:
    """HTML of a job's state in its tone."""
    return f'<span class="{_STATE_TONES.get(str(state), "pl-soft")}">{escape(state)}</span>'
