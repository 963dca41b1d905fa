"""Gallery: every known architecture as a shape with its numbers. Filters, order and baseline live in the address."""

from __future__ import annotations

import streamlit as st

from pages.widgets import chrome, figures, gallery_cards, words
from pages.widgets.address import View
from pages.widgets.labels import distinct
from planner.overview import ListNumbers
from planner.presets import preset, preset_ids

CONTEXTS = tuple(str(2**exponent) for exponent in range(10, 21))
SIZES = {
    "": (0.0, float("inf")),
    "under-1b": (0.0, 1e9),
    "1b-4b": (1e9, 4e9),
    "4b-10b": (4e9, 1e10),
    "10b-40b": (1e10, 4e10),
    "over-40b": (4e10, float("inf")),
}
SIZE_LABELS = {
    "": "Any size",
    "under-1b": "Under 1 B",
    "1b-4b": "1 to 4 B",
    "4b-10b": "4 to 10 B",
    "10b-40b": "10 to 40 B",
    "over-40b": "Over 40 B",
}
EXPERTS = {"": "Dense and MoE", "dense": "Dense", "moe": "MoE"}
ORDERS = {"down": "Most first", "up": "Least first"}
LOOKS = {"shapes": "Shapes", "table": "Table"}
DEFAULTS = {
    "q": "",
    "mixer": "",
    "experts": "",
    "size": "",
    "sort": "parameters",
    "order": "up",
    "baseline": "",
    "context": "32768",
    "view": "shapes",
}
ACROSS = 3


def main() -> None:
    """Draw the page from the address."""
    view = View("gallery", DEFAULTS)
    context = int(view.choice("context", CONTEXTS))
    known = {name: gallery_cards.numbers_of(name, context) for name in preset_ids()}
    actions = chrome.header("Gallery", f"{len(known):,} known architectures, each sized to the last parameter")
    with actions:
        view.choice("view", LOOKS)
        st.segmented_control(
            "View", list(LOOKS), key=view.key("view"), format_func=LOOKS.__getitem__, required=True,
            label_visibility="collapsed",
        )  # fmt: skip
    gallery_cards.dress()
    filters(view, known, context)
    names = [name for name in known if passes(view, name, known[name])]
    sort = view["sort"]
    names.sort(
        key=lambda name: preset(name).title.lower() if sort == "name" else getattr(known[name], sort),
        reverse=(view["order"] == "down") and sort != "name",
    )
    view.write()
    if not names:
        chrome.empty_state("No architecture passes", "Loosen a filter, or clear them all.", key="none-passes")
        with st.container(horizontal_alignment="center", key="clear"):
            st.button("Clear the filters", on_click=view.reset, key="clear-filters")
        return
    if len(names) < len(known):
        chrome.note(f"{len(names):,} of {len(known):,} shown.")
    baseline = view["baseline"]
    if view["view"] == "table":
        with chrome.panel("Numbers", "exact values on hover", key="gallery-table"):
            chrome.html(gallery_cards.table_html(names, context, baseline))
        return
    reference = known[baseline] if baseline else None
    for start in range(0, len(names), ACROSS):
        for name, place in zip(names[start : start + ACROSS], st.columns(ACROSS, gap="small"), strict=False):
            with place:
                gallery_cards.card(name, context, reference, name == baseline)


def mixers(known: dict[str, ListNumbers]) -> dict[str, str]:
    """The kinds of sequence mixer that occur, and the mixed cases that people ask for."""
    kinds = sorted({kind for numbers in known.values() for kind in numbers.sequence_kinds})
    return {
        "": "Any mixer",
        **{kind: words.kind_label(kind) for kind in kinds},
        "window": "With windows",
        "hybrid": "Hybrid: several kinds",
    }


def filters(view: View, known: dict[str, ListNumbers], context: int) -> None:
    """The row of filters; each widget's value is the address's."""
    kinds = mixers(known)
    sorts = {"name": "Name", **{column.name: column.label for column in gallery_cards.columns(context)}}
    baselines = {"": "No baseline", **distinct({name: preset(name).title for name in known})}
    for name, options in (("mixer", kinds), ("experts", EXPERTS), ("size", SIZES), ("sort", sorts), ("order", ORDERS),
                          ("baseline", baselines)):  # fmt: skip
        view.choice(name, options)
    by_name = view["sort"] == "name"
    with st.container(border=True, key="panel-filters", gap="small"):
        row = st.columns([1.5, 1.2, 1, 1], gap="small", vertical_alignment="top")
        row[0].text_input("Search", key=view.key("q"), placeholder="a name, a maker, a kind")
        row[1].selectbox("Mixer", list(kinds), key=view.key("mixer"), format_func=kinds.__getitem__)
        row[2].selectbox("Experts", list(EXPERTS), key=view.key("experts"), format_func=EXPERTS.__getitem__)
        row[3].selectbox("Size", list(SIZES), key=view.key("size"), format_func=SIZE_LABELS.__getitem__)
        row = st.columns([1.2, 1, 1.3, 1.6], gap="small", vertical_alignment="top")
        row[0].selectbox("Sort by", list(sorts), key=view.key("sort"), format_func=sorts.__getitem__)
        row[1].selectbox(
            "Order",
            list(ORDERS),
            key=view.key("order"),
            format_func=ORDERS.__getitem__,
            disabled=by_name,
        )
        row[2].selectbox("Baseline", list(baselines), key=view.key("baseline"), format_func=baselines.__getitem__)
        row[3].select_slider(
            "Context of the cache",
            CONTEXTS,
            key=view.key("context"),
            format_func=lambda text: figures.context(int(text)),
        )


def passes(view: View, name: str, numbers: ListNumbers) -> bool:
    """Whether a preset is shown."""
    known = preset(name)
    low, high = SIZES[view["size"]]
    mixer, experts = view["mixer"], view["experts"]
    said = " ".join((name, known.title, known.source, known.note or "", gallery_cards.shape_words(known))).lower()
    return (
        low <= numbers.parameters < high
        and (experts == "" or (experts == "moe") == ("moe" in numbers.channel_kinds))
        and (
            mixer == ""
            or mixer in numbers.sequence_kinds
            or (mixer == "window" and numbers.windowed)
            or (mixer == "hybrid" and len(numbers.sequence_kinds) > 1)
        )
        and all(word in said for word in view["q"].lower().split())
    )


main()
