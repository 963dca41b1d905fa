"""What the probes found, drawn: reach, attention's cost, gradients by depth, load by expert.

Every number is one that the job stored, or a formula's value that it stored beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from pages.widgets import charts, chrome, figures, theme
from planner.units import digits_text

Values = Mapping[str, Any]

PLACEMENTS = {
    "pre": "before",
    "post": "on the output",
    "sandwich": "before and on the output",
    "after_residual": "after the addition",
}
"""Where the norms of a layer stand, in words."""
WAYS = {
    "eager": ("plain PyTorch", "faint", "dash"),
    "sdpa": ("SDPA with a mask", "ink", "solid"),
    "recomputed": ("plain, computed twice", "ink", "solid"),
    "block_sparse": ("block-sparse", "accent", "solid"),
}
"""Ways of computing attention: name, colour and line."""
MASK_WIDTH = 200
"""Pixels of the picture of a mask, its marks included: about as many as it is high."""
STAGES = {"initial": "At the initialization", "trained": "After training"}


def draw(kind: str, values: Values, key: str) -> None:
    """Everything that one result shows."""
    DRAWINGS[kind](values, key)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are figures; cells are HTML."""
    heading = "".join(f"<th>{chrome.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><td>{row[0]}</td>" + "".join(f'<td class="fig">{cell}</td>' for cell in row[1:]) + "</tr>" for row in rows
    )
    chrome.html(
        f'<div class="pl-scroll"><table class="pl-table"><thead><tr>{heading}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def said(good: bool, text: str) -> None:
    """A verdict in its colour."""
    chrome.html(f'<p class="pl-note {"pl-good" if good else "pl-bad"}">{chrome.escape(text)}</p>')


# --- reach ---


def reach(values: Values, key: str) -> None:
    """Gradients by depth and position with the predicted edge, the table of depths, and each mixer's mask."""
    depths = values["depths"]
    names = [str(depth["depth"]) for depth in depths]
    with chrome.panel(
        "Gradient of one position's stream", f"position {values['position']:,}, back to every input, by depth",
        key=f"{key}-gradient",
    ):  # fmt: skip
        if values["differing"]:
            said(False, f"Predicted and measured positions differ after {', '.join(map(str, values['differing']))}.")
        else:
            said(True, "At every depth gradients arrive from just the positions that were predicted.")
        edge = charts.Curve(
            "predicted edge", [depth["farthest_position"] for depth in depths], names, "accent", "dot", 2.0  # type: ignore[arg-type]
        )  # fmt: skip
        cells = charts.Grid(
            [depth["log10_norms"] for depth in depths], list(range(values["sequence_length"])), names, "attention",
            "log10 of the norm",
        )  # fmt: skip
        drawn = charts.grid(
            cells, x=charts.Axis("position"), y=charts.Axis("layers"), height=110 + 15 * len(depths), over=[edge]
        )
        charts.show(drawn, key=f"{key}-profile", alt="Norm of the gradient by position and depth")
        chrome.note("Empty: no gradient at all. Dotted: the farthest position that the planner's composition reaches.")
    left, right = st.columns([6, 5])
    with left, chrome.panel("Reach", "positions back, itself included", key=f"{key}-depths"):
        rows = [
            [
                f"{depth['depth']:,}", f"{depth['predicted']:,}", f"{depth['measured']:,}",
                f"{depth['measured_count']:,}", _same(depth), _designed(depth["designed"]),
            ]
            for depth in depths
        ]  # fmt: skip
        table(("layers", "predicted", "measured", "seen", "same", "designed"), rows)
        longest = figures.context(values["designed_length"])
        chrome.note(
            "Seen: how many positions in all. Same: whether predicted and measured name the same ones. Designed: the "
            f"formula for the whole design, not measured; looked for up to {longest} positions."
        )
    with right, chrome.panel("Who sees whom", "in one layer of each kind", key=f"{key}-masks"):
        for place, mask in enumerate(values["masks"]):
            _mask(mask, values["sequence_length"], f"{key}-mask-{place}")


def _same(depth: Values) -> str:
    if depth["equal"]:
        return '<span class="pl-good">yes</span>'
    return f'<span class="pl-bad">{depth["missing"]} missing, {depth["beyond"]} beyond</span>'


def _designed(farthest: int | None) -> str:
    return "all" if farthest is None else f"{farthest:,}"


def _mask(mask: Values, length: int, key: str) -> None:
    cells, side = mask["cells"]["percent"], mask["cells"]["positions_a_cell"]
    places = [row * side for row in range(len(cells))]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(width=MASK_WIDTH):
            grid = charts.Grid(cells[::-1], places, [str(place) for place in places[::-1]], "ink", "%", (0, 100))
            drawn = charts.grid(grid, x=charts.Axis("input"), y=charts.Axis("output"), height=190, scale=False)
            charts.show(drawn, key=key, alt=f"Pairs of positions that depend on each other: {mask['label']}")
        with st.container(width="stretch"):
            what = "of the score matrix" if mask["scored"] else "of all pairs depend"
            chrome.html(
                f"<b>{chrome.escape(mask['label'])}</b>"
                f'<p class="pl-note">{_layers(mask["layers"])}</p>'
                f'<p class="pl-note"><b class="pl-figures">{figures.percent(mask["measured_density"], 2)}</b> {what}: '
                f"{mask['measured_pairs']:,} of {length:,} × {length:,} counted, {mask['predicted_pairs']:,} "
                "predicted</p>"
            )


def _layers(indices: Sequence[int]) -> str:
    shown = ", ".join(str(index) for index in indices[:6])
    more = f" and {len(indices) - 6} more" if len(indices) > 6 else ""
    return f"layer{'s' if len(indices) > 1 else ''} {shown}{more}"


# --- attention's cost ---


def attention_cost(values: Values, key: str) -> None:
    """Time and memory against the context, where they cross, and the table."""
    contexts = values["contexts"]
    about = f"layer {values['layer']} · {values['mixer']} · {values['describe']} · {values['precision']}"
    with chrome.panel("Where one way becomes faster", about, key=f"{key}-crossovers"):
        rows = [
            [
                " and ".join(_way(found[side])[0] for side in ("first", "second")),
                "–" if found["context"] is None else f"{figures.count(found['context']).exact}",
                "–" if found["context"] is None else f"{found['low']:,} to {found['high']:,}",
                _faster(found),
            ]
            for found in values["crossovers"]
        ]
        table(("", "crossover, positions", "between", "faster from there on"), rows)
        ways = {found.get("how") for found in values["crossovers"] if found.get("how")}
        for how in sorted(ways):
            chrome.note(f"Found by {how}. Between: on either side the whole interval of the ratio is.")
        if values["loaded"]:
            chrome.note("Other work ran beside it: ways were compared turn by turn, but their times are too long.")
        for way, reason in values["left_out"].items():
            chrome.note(f"{_way(way)[0]}: {reason}.")
    left, right = st.columns(2)
    marks = [
        charts.Mark(found["context"], f"{figures.count(found['context']).exact}")
        for found in values["crossovers"]
        if found["context"] is not None
    ]
    with left, chrome.panel("Time", "one layer, forward and backward; band: 95% interval", key=f"{key}-time"):
        drawn = charts.lines(
            [_cost_curve(contexts, way, "median_seconds", "low_seconds", "high_seconds") for way in values["ways"]],
            x=charts.Axis("context, tokens", log=2), y=charts.Axis("seconds", log=10), height=290, marks=marks,
        )  # fmt: skip
        charts.show(drawn, key=f"{key}-seconds", alt="Seconds of one attention layer by context, a line a way")
    with right, chrome.panel("Peak memory", "allocated beyond weights and input", key=f"{key}-memory"):
        drawn = charts.lines(
            [_cost_curve(contexts, way, "peak_bytes") for way in values["ways"]],
            x=charts.Axis("context, tokens", log=2), y=charts.Axis("GiB", log=2), height=290,
        )  # fmt: skip
        charts.show(drawn, key=f"{key}-peak", alt="Peak memory of one attention layer by context, a line a way")
    with chrome.panel("Contexts", "median of the repetitions, 95% interval, peak", key=f"{key}-table"):
        table(
            ("context", "needed scores", "needed blocks", *(_way(way)[0] for way in values["ways"])),
            [
                [
                    f"{entry['context']:,}",
                    figures.percent(entry["density"]),
                    figures.percent(entry["block_density"]),
                    *(_cost_cell(entry["ways"].get(way)) for way in values["ways"]),
                ]
                for entry in contexts
            ],
        )


def _way(way: str) -> tuple[str, str, str]:
    return WAYS.get(way, (way.replace("_", " "), "soft", "dot"))


def _faster(found: Values) -> str:
    if found["faster"] is None:
        return "not told apart"
    faster = _way(found["faster"])[0]
    return faster if found["since"] is None else f"{faster}, at {found['since']:,} already"


def _cost_curve(contexts: Sequence[Values], way: str, name: str, low: str = "", high: str = "") -> charts.Curve:
    measured = [entry for entry in contexts if way in entry["ways"]]
    label, colour, dash = _way(way)
    values = [entry["ways"][way][name] for entry in measured]
    is_memory = name == "peak_bytes"
    return charts.Curve(
        label,
        [entry["context"] for entry in measured],
        charts.gibibytes(values) if is_memory else values,
        colour,
        dash,
        2.0,
        [str(figures.memory(value) if is_memory else figures.duration(value)) for value in values],
        low=[entry["ways"][way][low] for entry in measured] if low else None,
        high=[entry["ways"][way][high] for entry in measured] if high else None,
        points=True,
    )


def _cost_cell(measured: Values | None) -> str:
    if measured is None:
        return "–"
    low, high = (figures.duration(measured[name]) for name in ("low_seconds", "high_seconds"))
    return (
        f"{figures.duration(measured['median_seconds'])} "
        f'<span class="pl-soft">{low} to {high} · {figures.memory(measured["peak_bytes"])}</span>'
    )


# --- gradient norms ---


def gradient_norms(values: Values, key: str) -> None:
    """A line a placement, before and after training, and what the placements came to."""
    shown = {"stream": "the stream", "parameters": "each layer's parameters"}
    name = st.segmented_control(
        "Gradient with respect to", list(shown), default="stream", key=f"{key}-of", format_func=shown.__getitem__
    )
    name = name or "stream"
    stages = [stage for stage in STAGES if any(entry[stage] for entry in values["placements"])]
    for stage, column in zip(stages, st.columns(len(stages)), strict=True):
        note = "median of the seeds; band: least to greatest"
        title = STAGES[stage] if stage == "initial" else f"After {values['steps']:,} steps"
        with column, chrome.panel(title, note, key=f"{key}-{stage}"):
            curves = [
                _norm_curve(index, entry, stage, name)
                for index, entry in enumerate(values["placements"])
                if entry[stage] is not None
            ]
            x = charts.Axis("layers passed" if name == "stream" else "layer")
            drawn = charts.lines(curves, x=x, y=charts.Axis("norm of the gradient", log=10), height=320)
            charts.show(drawn, key=f"{key}-{stage}-{name}", alt=f"Norm of the gradient by depth, {title.lower()}")
    with chrome.panel("Norms in each place", f"{values['seeds']} seeds each, otherwise the same", key=f"{key}-places"):
        rows = [
            [
                f"{chrome.escape(_place(entry['placement']))}"
                + (" <b>· as designed</b>" if entry["placement"] in values["designed"] else ""),
                *(_over(entry[stage], name) for stage in stages),
                "–" if entry["bits_per_byte"] is None else digits_text(entry["bits_per_byte"], 4),
                f"{entry['parameters']:,}",
                f"{entry['diverged']:,}" if entry["diverged"] else "none",
            ]
            for entry in values["placements"]
        ]
        heads = [f"first over last, {STAGES[stage].lower()}" for stage in stages]
        table(("norms", *heads, "bits per byte", "parameters", "diverged"), rows)
        for placement, reason in values["skipped"].items():
            chrome.note(f"Left out: {_place(placement)}. {reason}")


def _place(placement: str) -> str:
    return f"{placement.replace('_', ' ')}: {PLACEMENTS.get(placement, '')}"


def _over(stage: Values | None, name: str) -> str:
    value = None if stage is None else stage[name]["first_over_last"]
    if value is None:
        return "–"
    return digits_text(value, 3) if value >= 1e-3 else f"{value:.1e}"


def _norm_curve(index: int, entry: Values, stage: str, name: str) -> charts.Curve:
    norms, variant = entry[stage][name], theme.VARIANTS[index]
    return charts.Curve(
        entry["placement"].replace("_", " "), list(range(len(norms["median"]))), norms["median"], variant.token,
        variant.dash, 2.0, [digits_text(value, 3) for value in norms["median"]], low=norms["low"], high=norms["high"],
    )  # fmt: skip


# --- router load ---


def router_load(values: Values, key: str) -> None:
    """Load by layer and expert, how uneven it is beside chance, and the table."""
    stages = {entry["stage"]: entry["layers"] for entry in values["stages"]}
    for stage, column in zip(stages, st.columns(len(stages)), strict=True):
        layers = stages[stage]
        with column, chrome.panel(_stage(stage, values), "tokens over an even load", key=f"{key}-{stage}"):
            most = max(layer["max_over_mean"] for found in stages.values() for layer in found)
            experts = max(len(layer["relative"]) for layer in layers)
            cells = charts.Grid(
                [layer["relative"] for layer in layers], list(range(experts)),
                [str(layer["layer"]) for layer in layers], "experts", "× even", (0, most),
            )  # fmt: skip
            height = 120 + 22 * len(layers)
            drawn = charts.grid(cells, x=charts.Axis("expert"), y=charts.Axis("layer"), height=height)
            charts.show(drawn, key=f"{key}-{stage}-load", alt=f"Load of each expert by layer, {stage}")
    with chrome.panel("How uneven", f"{values['tokens']:,} held-out tokens", key=f"{key}-variation"):
        if len(next(iter(stages.values()))) > 1:
            lines = {"initial": ("faint", "dash"), "trained": ("experts", "solid")}
            curves = [
                _load_curve(_stage(stage, values).lower(), layers, "variation", *lines[stage])
                for stage, layers in stages.items()
            ]
            first = stages[next(iter(stages))]
            curves.append(_load_curve("by chance", first, "chance_variation", "ink", "dot"))
            places = [layer["layer"] for layer in first][:: max(1, len(first) // 12)]
            drawn = charts.lines(
                curves, x=charts.Axis("layer", ticks=places), y=charts.Axis("deviation over the mean"), height=240
            )
            charts.show(drawn, key=f"{key}-curves", alt="Deviation of the load over its mean, by layer")
        rows = [
            [
                f"{chrome.escape(_stage(stage, values))}, layer {layer['layer']}",
                f"{digits_text(layer['max_over_mean'], 3)} ×", digits_text(layer["variation"], 3),
                digits_text(layer["chance_variation"], 3), figures.percent(layer["entropy"]),
                f"{layer['idle']:,} of {len(layer['counts']):,}",
            ]
            for stage, layers in stages.items()
            for layer in layers
        ]  # fmt: skip
        table(("", "fullest over mean", "deviation over mean", "by chance", "entropy, of even", "never chosen"), rows)


def _stage(stage: str, values: Values) -> str:
    if stage == "initial":
        return STAGES[stage]
    return f"After {values['steps']:,} steps" if values["steps"] is not None else "As the prototype was trained"


def _load_curve(label: str, layers: Sequence[Values], name: str, colour: str, dash: str) -> charts.Curve:
    measured = [layer[name] for layer in layers]
    return charts.Curve(
        label, [layer["layer"] for layer in layers], measured, colour, dash, 1.9,
        [digits_text(value, 3) for value in measured], points=True,
    )  # fmt: skip


DRAWINGS = {
    "reach": reach,
    "attention_cost": attention_cost,
    "gradient_norms": gradient_norms,
    "router_load": router_load,
}
"""How the result of each probe is drawn."""
