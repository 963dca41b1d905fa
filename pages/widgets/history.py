"""Undo that survives a reload: the steps of recent drafts, kept by this process for a browser and the address it is at.

A reload begins a new session, which finds its design in the address and its steps here. They are kept in memory alone:
a server that was started again knows the designs, and no steps. Without a cookie that tells browsers apart nothing is
kept, so that nobody walks back over another's edits.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from planner import ArchitectureSpec

if TYPE_CHECKING:
    from pages.widgets.draft import Draft

KEPT = 500
"""Drafts whose steps are kept; the one that was left alone longest goes first."""
_COOKIE = "_streamlit_xsrf"

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Steps:
    """How a draft came to be what it is."""

    spec: ArchitectureSpec
    past: tuple[ArchitectureSpec, ...]
    future: tuple[ArchitectureSpec, ...]
    saved: ArchitectureSpec | None


_steps: OrderedDict[Key, Steps] = OrderedDict()
_lock = threading.Lock()


def browser() -> str:
    """What tells this browser from others, the same after a reload; empty where nothing does.

    Streamlit's cookie is ``2|mask|token xor mask|time``, and the mask is new with every page that is loaded.
    """
    try:
        version, mask, masked, when = str(st.context.cookies.get(_COOKIE, "")).split("|")
        covered, cover = bytes.fromhex(masked), bytes.fromhex(mask)
    except ValueError:
        return ""
    if not cover:
        return ""
    token = bytes(each ^ cover[index % len(cover)] for index, each in enumerate(covered))
    return hashlib.sha256(f"{version}|{token.hex()}|{when}".encode()).hexdigest()


def keep(draft: Draft, address: Mapping[str, str]) -> None:
    """Remember the steps of a draft that stands at ``address``."""
    who = browser()
    if not who:
        return
    key = (who, tuple(sorted(address.items())))
    with _lock:
        _steps.pop(key, None)
        if draft.past or draft.future:
            _steps[key] = Steps(draft.spec, tuple(draft.past), tuple(draft.future), draft.saved)
        while len(_steps) > KEPT:
            _steps.popitem(last=False)


def restore(draft: Draft, address: Mapping[str, str]) -> None:
    """Give a draft that was read from ``address`` the steps that led there, if this browser took them."""
    who = browser()
    with _lock:
        found = _steps.get((who, tuple(sorted(address.items())))) if who else None
    if found is not None and found.spec == draft.spec:
        draft.past, draft.future, draft.saved = list(found.past), list(found.future), found.saved
