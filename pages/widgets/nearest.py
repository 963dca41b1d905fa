"""How far the planner was on the measured runs that are most like a design: a line beside its estimates.

::

    nearest.line(draft.spec, ("inference_memory", "training_memory"), device=None, key="studio")

The published runs are predicted once a process, in seconds, by a thread that no page waits for: until it is done the
line says so, and the page is drawn once more when it is. :func:`published` waits, for pages that are about the pairs.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cache, lru_cache
from urllib.parse import urlencode

import streamlit as st

from pages.widgets import chrome, figures
from planner import ArchitectureSpec
from planner.ledger import (
    COUNTED,
    MEASURED_AS,
    NearestCount,
    NearestError,
    Pair,
    nearest_count,
    nearest_error,
    published_counts,
    published_pairs,
)

_WAIT_SECONDS = 0.5


@cache
def _predicting() -> Future[tuple[Pair, ...]]:
    """The pairs of the published runs, begun by whoever asks first in this process."""
    found: Future[tuple[Pair, ...]] = Future()

    def predict() -> None:
        try:
            published_counts()
            pairs = published_pairs()
        except Exception as reason:
            found.set_exception(reason)
            return
        # What was made once is kept for good: the collector, whose passes an edit feels, need not look at it again.
        gc.collect()
        gc.freeze()
        found.set_result(pairs)

    threading.Thread(target=predict, name="published runs", daemon=True).start()
    return found


def published() -> tuple[Pair, ...]:
    """The pairs of the published runs, waited for."""
    return _predicting().result()


def line(spec: ArchitectureSpec, names: Sequence[str], device: str | None = None, *, key: str) -> None:
    """One line: the error of each estimate, and of what is counted the nearest known model.

    ``names`` are those of :mod:`planner.explain` and :mod:`planner.sensitivity`; ``device`` is the device's name where
    the estimates are of one. ``key`` is unique on the page.
    """
    with st.container(key=f"nearest-{key}", gap=None):
        if _predicting().done():
            chrome.html(_line_html(spec, tuple(names), device))
        else:
            _wait()


def table(specs: Mapping[str, ArchitectureSpec], names: Sequence[str], *, key: str) -> None:
    """The same for several designs: a row an estimate, each design by the HTML of its tag."""
    with st.container(key=f"nearest-{key}", gap=None):
        if not _predicting().done():
            _wait()
            return
        head = "".join(f"<th>{tag}</th>" for tag in specs)
        rows = "".join(
            f"<tr><td>{_link(quantity)}</td>"
            + "".join(f'<td class="fig">{_cell(_error(spec, quantity, None))}</td>' for spec in specs.values())
            + "</tr>"
            for quantity in _quantities(names)
        )
        chrome.html(
            f'<div class="pl-scroll"><table class="pl-table"><tr><th>Error on the nearest measured runs</th>{head}</tr>'
            f"{rows}</table></div>"
        )


def _cell(found: NearestError | None) -> str:
    """The median of one design's nearest runs, and below it whether they are near; the rest on hover."""
    if found is None:
        return "never measured"
    hover = _where(found) if found.is_near else f"{_why(found)}; {_where(found)}"
    near = "" if found.is_near else '<br><span class="pl-warn">no near run</span>'
    return (
        f'<span title="{hover}">{figures.percent(found.summary.median)}<br><span class="pl-soft">worst '
        f"{figures.percent(found.summary.worst)} of {found.summary.count:,}</span>{near}</span>"
    )


def own_line(spec: ArchitectureSpec, quantities: Sequence[str], device: str, pairs: Sequence[Pair]) -> None:
    """The same against pairs of stored results, by the quantities' own names; a line that says so where none is."""
    found = {each: nearest_error(pairs, spec, each, device) for each in quantities}
    parts = [f"{_link(name)}: {_words(error)}" for name, error in found.items() if error is not None]
    said = f"Nearest runs of this store · {' · '.join(parts)}." if parts else "No time here was predicted and measured."
    chrome.html(f'<p class="pl-note">{said}</p>')


@st.fragment(run_every=_WAIT_SECONDS)
def _wait() -> None:
    """Say that the line is on its way, and draw the page again once it can be written."""
    if _predicting().done():
        st.rerun()
    chrome.note("Nearest measured runs: predicting the published ones once, for a few seconds …")


def _quantities(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(MEASURED_AS[name] for name in names if name in MEASURED_AS))


@lru_cache(maxsize=512)
def _error(spec: ArchitectureSpec, quantity: str, device: str | None) -> NearestError | None:
    return nearest_error(published(), spec, quantity, device)


@lru_cache(maxsize=256)
def _line_html(spec: ArchitectureSpec, names: tuple[str, ...], device: str | None) -> str:
    parts = [f"{_link(each)}: {_words(_error(spec, each, device))}" for each in _quantities(names)]
    said = f"Nearest measured runs · {' · '.join(parts)}." if parts else ""
    if any(name in COUNTED for name in names):
        said = f"{said} {_counted(nearest_count(spec))}".lstrip()
    return f'<p class="pl-note">{said}</p>' if said else ""


def _link(quantity: str) -> str:
    query = urlencode({"quantity": quantity, "by": "component"})
    return f'<a href="ledger?{chrome.escape(query)}" target="_self">{chrome.escape(quantity)}</a>'


def _words(found: NearestError | None) -> str:
    """What is said of one quantity, with the rest on hover."""
    if found is None:
        return "never measured"
    errors = f"median error {figures.percent(found.summary.median)}, worst {figures.percent(found.summary.worst)}"
    runs = "1 run" if found.summary.count == 1 else f"{found.summary.count:,} runs"
    hover = f'<span title="{_where(found)}">'
    if found.is_near:
        return f"{hover}{runs}, {errors}</span>"
    return f'<b class="pl-warn">no near run</b> ({_why(found)}); {hover}the {runs} least unlike: {errors}</span>'


def _where(found: NearestError) -> str:
    """The devices of the runs, for the hover."""
    where = f"on {', '.join(found.devices[:3])}{' …' if len(found.devices) > 3 else ''}"
    if found.elsewhere:
        where += f"; {found.elsewhere} of {found.summary.count} not on this device"
    return chrome.escape(where)


def _why(found: NearestError) -> str:
    """Why none of the runs is near."""
    why = f"none has {_listed(found.missing)}" if found.missing else "none has its components near its size"
    return chrome.escape(why)


def _listed(kinds: Sequence[str]) -> str:
    return " or ".join(kind.replace("_", " ") for kind in kinds)


def _counted(found: NearestCount) -> str:
    known = found.preset
    alike = "the nearest known model" if found.is_alike else "no known model has just its components; the nearest"
    return chrome.escape(
        f"Parameters, FLOPs and cache are counted; {alike}, {known.title}, counts {found.counted:,} where "
        f"{known.published} are published."
    )
