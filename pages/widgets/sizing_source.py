"""For what context, batch and types the sizing page sizes a design."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from pages.widgets import design_source, edits, figures
from pages.widgets.address import View
from pages.widgets.draft import Draft, Settings
from planner.cache import formats_for
from planner.serving import WEIGHT_FORMATS

CONTEXTS = tuple(2**exponent for exponent in range(10, 21))
BATCHES = tuple(2**exponent for exponent in range(0, 11))
BLOCKS = tuple(2**exponent for exponent in range(0, 9))
PAGES = {"window": "freed behind windows", "context": "kept for the whole context"}


def take_settings(view: View, draft: Draft) -> None:
    """Give the draft the settings that the view holds; a value that cannot be is brought back to its default."""
    serving, training = draft.settings.serving, draft.settings.training
    view.choice("weights", WEIGHT_FORMATS)
    view.choice("cache", formats_for(draft.spec))
    view.choice("pages", PAGES)
    for name, known in (("context", CONTEXTS), ("length", CONTEXTS), ("batch", BATCHES), ("block", BLOCKS)):
        view.choice(name, _with(known, view.defaults[name]))
    draft.settings = Settings(
        edits.revalued(
            serving,
            {
                "context_length": int(view["context"]),
                "batch_size": int(view["batch"]),
                "weight_format": view["weights"],
                "cache_dtype": view["cache"],
                "cache_block_size": int(view["block"]),
                "windowed_pages": view["pages"],
            },
        ),
        edits.revalued(training, {"sequence_length": int(view["length"])}),
        draft.settings.share,
    )


def _with(known: tuple[int, ...], own: str) -> list[str]:
    """The usual values, and the draft's own among them."""
    return [str(value) for value in sorted({*known, int(own)})]


def form(view: View, draft: Draft) -> None:
    """What is sized, and for what."""
    with st.container(border=True, key="panel-sizing-settings", gap="small"):
        row = st.columns([1.7, 1.25, 1, 0.75, 0.75, 1.25], gap="small", vertical_alignment="top")
        with row[0]:
            design_source.choice(view, draft)
        fields: list[tuple[int, str, str, list[str], Callable[[str], str], str]] = [
            (1, "context", "Context", _with(CONTEXTS, view.defaults["context"]), _length, "slider"),
            (2, "batch", "Sequences", _with(BATCHES, view.defaults["batch"]), lambda text: f"{int(text):,}", "slider"),
            (3, "weights", "Weights in", list(WEIGHT_FORMATS), str, "box"),
            (4, "cache", "Cache in", list(formats_for(draft.spec)), str, "box"),
            (5, "length", "Training sequence", _with(CONTEXTS, view.defaults["length"]), _length, "slider"),
        ]
        for place, name, label, options, text, kind in fields:
            if kind == "slider":
                row[place].select_slider(label, options, key=view.key(name), format_func=text)
            else:
                row[place].selectbox(label, options, key=view.key(name), format_func=text)


def blocks_form(view: View) -> None:
    """How the engine pages the cache: tokens a block, and what becomes of blocks behind a window."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="sizing-blocks"):
        st.selectbox(
            "Tokens a block",
            _with(BLOCKS, view.defaults["block"]),
            key=view.key("block"),
            width=160,
            help="vLLM has 16, SGLang 1 and TensorRT-LLM 32 unless told otherwise",
        )
        st.selectbox("Blocks of windowed layers", list(PAGES), key=view.key("pages"), format_func=PAGES.__getitem__,
                     width=260)  # fmt: skip


def _length(text: str) -> str:
    return figures.context(int(text))
