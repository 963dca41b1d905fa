"""Compare: two to eight designs side by side, predicted and measured; the address is the view."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import streamlit as st

from db.engine import Store
from db.records import Revision
from pages.widgets import (
    charts,
    chrome,
    comparison_tables,
    exports,
    figures,
    layer_strip,
    measured,
    nearest,
    theme,
    words,
)
from pages.widgets.labels import distinct
from planner import ArchitectureSpec, PlannerError, SpecDiff, cache_bytes, diff, parse_spec
from planner.comparison import (
    ComparisonRow,
    ComparisonSettings,
    Difference,
    Spread,
    compare_specs,
    difference,
    held_equal,
)

MOST = 8
X_AXES = {"step": "step", "tokens": "tokens", "flops": "training FLOPs"}
MEASURED = (
    ("Validation", "bits_per_byte", "bits"),
    ("Accuracy on the task", "accuracy", "ratio"),
    ("Training loss, last", "loss", "ratio"),
    ("Tokens a second", "tokens_per_second", "ratio"),
)


def main() -> None:
    store = chrome.get_store()
    revisions = chosen_revisions(store)
    baseline = min(read_number("baseline", 0), max(0, len(revisions) - 1))
    differences_only = st.query_params.get("differences") == "1"
    subtitle = f"{len(revisions)} designs · baseline: {theme.VARIANTS[baseline].letter} · the address holds this view"
    actions = chrome.header("Compare", subtitle if len(revisions) > 1 else "choose two to eight designs")
    picker(store, revisions)
    if len(revisions) < 2:
        chrome.empty_state(
            "Nothing to compare yet" if not revisions else "One design is chosen",
            "Choose at least two designs above. Those that you save in the Studio are listed there.",
            page="pages/studio.py",
            action="Open the Studio",
        )
        return
    try:
        specs = [
            parse_spec({**revision.spec, "name": name})
            for revision, name in zip(revisions, names_of(store, revisions), strict=True)
        ]
    except PlannerError as refused:
        chrome.error(refused)
        return
    names = [spec.name for spec in specs]
    with actions:
        if st.toggle("Differences only", value=differences_only, key="differences-only") != differences_only:
            set_parameter("differences", None if differences_only else "1")
        if st.button("Draft a decision", type="primary"):
            results = store_results(store, revisions)
            query = {"decision": "new", "revisions": ",".join(str(r.id) for r in revisions), "results": results}
            st.switch_page("pages/decisions.py", query_params={name: value for name, value in query.items() if value})
    shapes(specs, names, baseline)
    settings = ComparisonSettings(context_length=read_number("context", 32_768))
    with chrome.guard():
        rows = numbers(tuple(spec.to_json() for spec in specs), settings, baseline)
        # Beyond three designs the table needs the whole width.
        left, right = st.columns([3, 2]) if len(specs) <= 3 else (st.container(), st.container())
        with left, chrome.panel("Numbers", "only what differs" if differences_only else "predicted", key="numbers"):
            top = [row for row in rows if row.group != "component"]
            table = comparison_tables.numbers_html(top, names, baseline, differences_only)
            chrome.html(f'<div style="overflow-x:auto">{table}</div>')
            for row_note in sorted({note for row in rows for note in row.notes}):
                chrome.note(row_note)
            tagged = {chrome.variant_tag(index): spec for index, spec in enumerate(specs)}
            nearest.table(tagged, ("inference_memory", "training_memory"), key="compare")
        with right:
            cache_figure = cache_over_context(specs)
            with chrome.panel("Cache over context", "GiB, bf16, one sequence", key="cache"):
                charts.show(cache_figure, key="cache-chart", alt="Cache of each design over the context length")
            with chrome.panel("Parameters by component", key="components"):
                components(rows, names)
        changed_fields(specs, settings, baseline)
        parts = [("Numbers", comparison_tables.numbers_html(rows, names, baseline, False))]
        plots: list[tuple[str, Any]] = [("Cache over context, GiB", cache_figure)]
        wanted = [int(part) for part in st.query_params.get("results", "").split(",") if part.isdigit()]
        measured_part(store, revisions, specs, names, baseline, wanted, parts, plots)
        export(rows, names, baseline, parts, plots)


# --- what is compared ---


def read_number(name: str, default: int) -> int:
    """A number of the address; the default where it is none."""
    text = st.query_params.get(name, "")
    return int(text) if text.isdigit() else default


def set_parameter(name: str, value: str | None) -> None:
    """Change the address, and with it the view."""
    if value is None:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = value
    st.rerun()


def chosen_revisions(store: Store) -> list[Revision]:
    """The revisions that the address names, directly or by their results."""
    found: dict[int, Revision] = {}
    for part in st.query_params.get("revisions", "").split(","):
        if part.isdigit():
            with chrome.guard():
                found.setdefault(int(part), store.designs.revision(int(part)))
    for part in st.query_params.get("results", "").split(","):
        if part.isdigit():
            with chrome.guard():
                revision = store.designs.revision(store.results.get(int(part)).revision_id)
                found.setdefault(revision.id, revision)
    return list(found.values())[:MOST]


def names_of(store: Store, revisions: Sequence[Revision]) -> list[str]:
    """A name each; the revision's number where a design stands there twice."""
    designs = [store.designs.get(revision.design_id).name for revision in revisions]
    return [
        f"{name} r{revision.number}" if designs.count(name) > 1 else name
        for name, revision in zip(designs, revisions, strict=True)
    ]


def store_results(store: Store, revisions: Sequence[Revision]) -> str:
    """Ids of the newest prototype and benchmark of each design, for a decision to cite."""
    found = []
    for revision in revisions:
        for kind in ("prototype", "benchmark"):
            found += [
                str(result.id) for result in store.results.list(content_hash=revision.content_hash, kind=kind, limit=1)
            ]
    return ",".join(found)


def picker(store: Store, revisions: Sequence[Revision]) -> None:
    """Choose designs (or older revisions of them) and the baseline; what is chosen goes into the address."""
    with st.expander("Designs and settings", expanded=len(revisions) < 2):
        entries: dict[int, str] = {}
        for design in store.designs.list():
            for revision in store.designs.revisions(design.id)[::-1]:
                entries[revision.id] = f"{design.name} · revision {revision.number}"
        for revision in revisions:  # an archived design may still be looked at
            entries.setdefault(revision.id, f"{revision.name} · revision {revision.number}")
        if not entries:
            chrome.note("No design is saved yet.")
            return
        entries = distinct(entries)
        now = [revision.id for revision in revisions]
        chosen = st.multiselect(
            "Designs, two to eight", list(entries), default=now, format_func=entries.__getitem__, max_selections=MOST,
            placeholder="Choose designs",
            key=f"compare-{'-'.join(map(str, now))}",
        )  # fmt: skip
        if chosen != now:
            st.query_params.pop("results", None)
            set_parameter("revisions", ",".join(map(str, chosen)) or None)
        if len(revisions) > 1:
            left, right = st.columns(2)
            letters = range(len(revisions))
            was = min(read_number("baseline", 0), len(revisions) - 1)
            baseline = left.selectbox(
                "Baseline", letters, index=was, format_func=lambda i: f"{theme.VARIANTS[i].letter} · {entries[now[i]]}"
            )
            if baseline != was:
                set_parameter("baseline", str(baseline))
            context = right.select_slider(
                "Context", [2**power for power in range(10, 21)], value=_power(read_number("context", 32_768)),
                format_func=figures.context,
            )  # fmt: skip
            if context != _power(read_number("context", 32_768)):
                set_parameter("context", str(context))


def _power(value: int) -> int:
    """The power of two that a context of the address stands for."""
    return min((2**power for power in range(10, 21)), key=lambda power: abs(power - value))


# --- what is shown ---


@st.cache_data(max_entries=64, show_spinner=False)
def numbers(specs: tuple[str, ...], settings: ComparisonSettings, baseline: int) -> list[ComparisonRow]:
    """The predicted rows, kept by the specifications' own text."""
    import json

    return compare_specs([parse_spec(json.loads(text)) for text in specs], settings, baseline)


def shapes(specs: Sequence[ArchitectureSpec], names: Sequence[str], baseline: int) -> None:
    """The layer strips side by side."""
    with chrome.panel("Shapes", "depth from left to right: sequence mixer above, channel mixer below", key="shapes"):
        for start in range(0, len(specs), 4):
            for index, cell in zip(range(start, min(start + 4, len(specs))), st.columns(4), strict=False):
                with cell:
                    chrome.html(
                        f"{layer_strip.static(specs[index])}<div style='margin-top:6px'>{chrome.variant_tag(index)} "
                        f"{chrome.escape(names[index])}"
                        f"{' <span class=pl-soft>baseline</span>' if index == baseline else ''}</div>"
                    )


def cache_over_context(specs: Sequence[ArchitectureSpec]) -> dict[str, Any]:
    """Cache of every design, a curve each with its own line style."""
    contexts = [2**power for power in range(10, 18)]
    drawn = []
    for index, spec in enumerate(specs):
        held = [cache_bytes(spec, context) for context in contexts]
        variant = theme.VARIANTS[index]
        drawn.append(
            charts.Curve(
                variant.letter,
                contexts,
                [size_ / 2**30 for size_ in held],
                variant.token,
                variant.dash,
                2.0,
                [str(figures.memory(size_)) for size_ in held],
            )
        )
    return charts.lines(drawn, x=charts.Axis("tokens", log=2), y=charts.Axis("GiB", log=2), height=270)


def changed_fields(specs: Sequence[ArchitectureSpec], settings: ComparisonSettings, baseline: int) -> None:
    """Of each design what its changed fields did to the baseline, alone and together."""
    for index, spec in enumerate(specs):
        if index == baseline:
            continue
        title = f"What changed in {theme.VARIANTS[index].letter}"
        note = f"each field alone in the baseline; {figures.context(settings.context_length)} cached"
        with chrome.panel(title, note, key=f"changed-{index}"):
            found = differing(specs[baseline].to_json(), spec.to_json(), settings)
            if found.identical:
                chrome.note("Nothing but the name may differ.")
            else:
                table = comparison_tables.changes_html(found)
                chrome.html(f'<div style="overflow-x:auto">{table}</div>')


@st.cache_data(show_spinner=False, max_entries=64)
def differing(before: str, after: str, settings: ComparisonSettings) -> SpecDiff:
    """:func:`planner.diff`, computed once a pair."""
    import json

    first, second = (parse_spec(json.loads(text)) for text in (before, after))
    lengths = {"sequence_length": settings.sequence_length, "context_length": settings.context_length}
    return diff(first, second, **lengths)


def components(rows: Sequence[ComparisonRow], names: Sequence[str]) -> None:
    """Bars by component, the designs below each other."""
    parts = [row for row in rows if row.group == "component"]
    entries = []
    for index in range(len(names)):
        for row in parts:
            value = row.values[index]
            if value:
                kind = row.quantity.replace(" ", "_")
                label = f"{theme.VARIANTS[index].letter} · {words.kind_label(kind)}"
                token = theme.component_token(kind)
                figure = figures.count(value)
                entries.append(charts.Bar(label, value, token, str(figure), figure.exact))
    charts.show(
        charts.bars(entries, x=charts.Axis("parameters"), row_height=21),
        key="component-bars",
        alt="Parameters by component",
    )


def measured_part(
    store: Store,
    revisions: Sequence[Revision],
    specs: Sequence[ArchitectureSpec],
    names: Sequence[str],
    baseline: int,
    results: Sequence[int],
    parts: list[tuple[str, str]],
    plots: list[tuple[str, Any]],
) -> None:
    """Prototypes over their seeds with verdicts, their curves, and benchmarks."""
    found, plans = measured.of_revisions(store, revisions, results)
    if not any(item.prototypes or item.benchmark for item in found):
        with chrome.panel("Measured", key="measured"):
            chrome.empty_state(
                "Nothing measured yet", "Send a prototype or a benchmark of each design; three seeds allow a verdict.",
                page="pages/jobs.py", action="Open jobs",
            )  # fmt: skip
        return
    if plans:
        prototypes(store, found, specs, names, baseline, parts, plots)
        if len(plans) > 1:
            chrome.note(f"Prototypes under {len(plans) - 1} other plan(s) are left out: only equal plans are compared.")
    if any(item.benchmark for item in found):
        with chrome.panel("Benchmarks", "median with its 95% interval", key="benchmarks"):
            content = benchmark_html([item.benchmark for item in found], names)
            chrome.html(content)
            parts.append(("Benchmarks", content))


def prototypes(
    store: Store,
    found: Sequence[measured.Measured],
    specs: Sequence[ArchitectureSpec],
    names: Sequence[str],
    baseline: int,
    parts: list[tuple[str, str]],
    plots: list[tuple[str, Any]],
) -> None:
    groups = [item.prototypes for item in found]
    lines = []
    for title, name, unit in MEASURED:
        spreads = [group.spread(name) if group else None for group in groups]
        if not any(spreads):
            continue  # text has no accuracy, a task no bits per byte
        lines.append((title, unit, spreads, [verdict(spreads[baseline], spread) for spread in spreads]))
    with chrome.panel("Prototypes", "mean ± deviation over seeds, against the baseline", key="prototypes"):
        content = comparison_tables.measured_html(lines, names, baseline)
        chrome.html(f'<div style="overflow-x:auto">{content}</div>')
        parts.append(("Prototypes", content))
        equal = held_equal(
            {
                "parameters": [group.first("parameters") if group else None for group in groups],
                "training FLOPs": [group.first("training_flops") if group else None for group in groups],
                "tokens": [group.first("tokens") if group else None for group in groups],
                "learning-rate rule": [group.first("learning_rate_rule") if group else None for group in groups],
            }
        )
        for item in equal:
            mark = "pl-good" if item.equal else "pl-warn"
            said = f"{item.what} {'held equal' if item.equal else 'not equal'}: {item.detail}"
            chrome.html(f'<p class="pl-note"><span class="{mark}">{chrome.escape(said)}</span></p>')
            parts.append((said, ""))
    with chrome.panel("Training curves", "the mean over seeds", key="training-curves"):
        left, right = st.columns(2)
        x_now = st.query_params.get("x", "step")
        x_now = x_now if x_now in X_AXES else "step"
        series = left.segmented_control(
            "Series",
            ["loss", "bits_per_byte", "accuracy"],
            default="loss",
            key="series",
            format_func=lambda s: s.replace("_", " ").capitalize(),
        )
        chosen = right.segmented_control(
            "Over", list(X_AXES), default=x_now, key="x-axis", format_func=lambda name: X_AXES[name]
        )
        x_axis = chosen or x_now
        if x_axis != x_now:
            set_parameter("x", x_axis)
        figure = training_curves(store, groups, series or "loss", x_axis)
        if not figure["data"]:
            chrome.note("These prototypes said no such series.")
            return
        charts.show(figure, key=f"training-{series}-{x_axis}", alt="Training curves of the designs")
        plots.append((f"{series or 'loss'} over {X_AXES[x_axis]}", figure))


def verdict(reference: Spread | None, other: Spread | None) -> Difference | None:
    """The verdict where both were measured."""
    return difference(reference, other) if reference and other else None


def training_curves(
    store: Store, groups: Sequence[measured.Prototypes | None], series: str, x_axis: str
) -> dict[str, Any]:
    """A curve a seed, thin, and in front the mean of each design."""
    drawn = []
    for index, group in enumerate(groups):
        if group is None:
            continue
        factor = 1.0
        steps_total = group.plan.get("steps") or 1
        if x_axis == "tokens":
            factor = (group.first("tokens") or 0) / steps_total
        elif x_axis == "flops":
            factor = (group.first("training_flops") or 0) / steps_total
        variant = theme.VARIANTS[index]
        by_step: dict[int, list[float]] = {}
        for result in group.results:
            points = store.jobs.metrics(result.job_id, [series])
            for point in points:
                by_step.setdefault(point.step, []).append(point.value)
            if points and len(group.results) > 1:
                xs, ys = [point.step * factor for point in points], [point.value for point in points]
                drawn.append(charts.Curve("", xs, ys, variant.token, "solid", 0.7, opacity=0.3))
        if by_step:
            whole = [(step, values) for step, values in sorted(by_step.items()) if len(values) == len(group.results)]
            xs = [step * factor for step, _ in whole]
            ys = [Spread(tuple(values)).mean for _, values in whole]
            drawn.append(charts.Curve(variant.letter, xs, ys, variant.token, variant.dash, 2.2))
    unit = {"bits_per_byte": "bits per byte", "accuracy": "share of held-out answers"}.get(series, "nats a token")
    return charts.lines(drawn, x=charts.Axis(X_AXES[x_axis]), y=charts.Axis(unit), height=320)


def benchmark_html(results: Sequence[Any], names: Sequence[str]) -> str:
    """Phases down, designs across."""
    phases = list(
        dict.fromkeys(itertools.chain.from_iterable((r.values.get("timings") or {}) for r in results if r is not None))
    )
    head = "".join(f"<th>{chrome.variant_tag(index)} {chrome.escape(name)}</th>" for index, name in enumerate(names))
    body = []
    for phase in phases:
        cells = []
        for result in results:
            timing = (result.values.get("timings") or {}).get(phase) if result is not None else None
            if timing is None:
                cells.append('<td class="fig pl-soft">–</td>')
                continue
            low, high = figures.duration(timing["low_seconds"]), figures.duration(timing["high_seconds"])
            cells.append(
                f'<td class="fig">{figures.duration(timing["median_seconds"])}<br>'
                f'<span class="pl-soft">{low} to {high}</span></td>'
            )
        body.append(f"<tr><td>{chrome.status_glyph('measured')} {chrome.escape(phase)}</td>{''.join(cells)}</tr>")
    return f'<table class="pl-table"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def export(
    rows: Sequence[ComparisonRow],
    names: Sequence[str],
    baseline: int,
    parts: Sequence[tuple[str, str]],
    plots: Sequence[tuple[str, Any]],
) -> None:
    """The comparison as CSV and as one HTML file."""
    row = st.container(horizontal=True, key="export")
    row.download_button(
        "CSV", comparison_tables.as_csv(rows, names), "comparison.csv", "text/csv", key="export-csv", on_click="ignore"
    )
    title = f"Comparison: {', '.join(names)}"
    note = f"Baseline: {names[baseline]}."
    row.download_button(
        "Page, self-contained",
        lambda: exports.comparison_html(title, [note], parts, plots),
        "comparison.html",
        "text/html",
        key="export-html",
        on_click="ignore",
    )


main()
