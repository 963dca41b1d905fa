"""Decisions: what was chosen and why, in the form of MADR, with the numbers it rests on and the value each had then."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from db.engine import Store
from db.errors import Conflict, StoreError
from db.records import Decision, DecisionStatus, Evidence, Option
from pages.widgets import chrome, evidence, job_view
from pages.widgets.labels import distinct
from pages.widgets.plan_form import label_of

STATUSES = [str(status) for status in DecisionStatus if status is not DecisionStatus.SUPERSEDED]


def main() -> None:
    store = chrome.get_store()
    chosen = st.query_params.get("decision")
    if chosen == "new":
        editor(store, None)
    elif chosen is not None:
        try:
            decision = store.decisions.get(int(chosen))
        except (ValueError, StoreError) as reason:
            chrome.header("Decisions")
            chrome.error(f"No such decision: {chosen}." if isinstance(reason, ValueError) else reason)
            if st.button("Show all decisions"):
                open_decision(None)
            return
        if "edit" in st.query_params:
            editor(store, decision)
        else:
            view(store, decision)
    else:
        listing(store)


def open_decision(decision: str | None, edit: bool = False) -> None:
    """Show one decision, its form, or the list."""
    st.query_params.clear()
    if decision is not None:
        st.query_params["decision"] = decision
        if edit:
            st.query_params["edit"] = "1"
    st.rerun()


def listing(store: Store) -> None:
    decisions = store.decisions.list()
    with chrome.header("Decisions", f"{len(decisions)} recorded" if decisions else "none recorded yet"):
        if st.button("New decision", type="primary"):
            open_decision("new")
    if not decisions:
        chrome.empty_state(
            "No decision yet",
            "Compare designs, then draft one from the comparison: it cites the numbers it rests on.",
            page="pages/compare.py",
            action="Open compare",
        )
        return
    with chrome.panel("All decisions", "the newest first", key="decisions"):
        for decision in decisions:
            number, title, status, when = st.columns([1, 7, 2, 2], vertical_alignment="center")
            with number:
                chrome.html(f'<span class="pl-soft">{decision.number:04d}</span>')
            if title.button(decision.title, key=f"open-{decision.id}", type="tertiary"):
                open_decision(str(decision.id))
            with status:
                chrome.html(status_html(decision))
            with when:
                chrome.html(f'<span class="pl-soft">{job_view.moment(decision.updated_at)}</span>')


def status_html(decision: Decision) -> str:
    """The status in its colour."""
    colour = {"accepted": "pl-good", "rejected": "pl-bad", "proposed": "pl-warn"}.get(decision.status, "pl-soft")
    return f'<span class="{colour}">{decision.status}</span>'


# --- one decision ---


def view(store: Store, decision: Decision) -> None:
    with chrome.header(decision.title, f"decision {decision.number} · {decision.status}"):
        if st.button("All decisions"):
            open_decision(None)
        st.download_button(
            "Markdown",
            as_markdown(decision),
            f"{decision.number:04d}-decision.md",
            "text/markdown",
            key="markdown",
            on_click="ignore",
        )
        if st.button("Edit", type="primary"):
            open_decision(str(decision.id), edit=True)
    if decision.superseded_by is not None:
        chrome.note(f"Superseded by decision {store.decisions.get(decision.superseded_by).number}.")
    for title, text in (
        ("Context and problem", decision.context),
        ("Outcome", decision.outcome),
        ("Consequences", decision.consequences),
    ):
        if text:
            with chrome.panel(title, key=f"view-{title.lower()}"):
                st.text(text)
    if decision.drivers:
        with chrome.panel("Decision drivers", key="view-drivers"):
            st.text("\n".join(f"• {driver}" for driver in decision.drivers))
    if decision.options:
        with chrome.panel("Options considered", key="view-options"):
            for option in decision.options:
                st.text(
                    "\n".join([option.title, *(f"  + {g}" for g in option.good), *(f"  − {b}" for b in option.bad)])
                )
    with chrome.panel("Evidence", "the value then, and now", key="view-evidence"):
        if decision.evidence:
            evidence_table(store, decision.evidence)
        else:
            chrome.note("Cites no evidence yet: edit the decision to add some.")
    others = [other for other in store.decisions.list() if other.id != decision.id]
    if others and decision.status is not DecisionStatus.SUPERSEDED:
        with st.popover("Superseded by…"):
            by = st.selectbox("Decision", others, format_func=lambda d: f"{d.number}: {d.title}", key="supersede-by")
            if st.button("Mark as superseded"):
                with chrome.guard():
                    store.decisions.supersede(decision.id, by.id)
                    st.rerun()


def evidence_table(store: Store, items: Sequence[Evidence]) -> None:
    """Each cited number with its value when it was cited and its value now."""
    rows = []
    for item in items:
        try:
            now = evidence.today(store, item)
        except (StoreError, ValueError):
            now = None
        changed = "" if now == item.value else ' class="pl-warn"'
        rows.append(
            f"<tr><td>{chrome.escape(item.label or f'{item.kind} {item.reference_id}')}</td>"
            f'<td style="text-align:left">{chrome.escape(item.quantity)}</td>'
            f'<td class="fig" title="{item.value:,}">{chrome.escape(evidence.text(item.value, item.unit))}</td>'
            f'<td class="fig"><span{changed}>{chrome.escape(evidence.text(now, item.unit))}</span></td></tr>'
        )
    head = '<tr><th>from</th><th style="text-align:left">quantity</th><th>then</th><th>now</th></tr>'
    chrome.html(f'<table class="pl-table"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>')


def as_markdown(decision: Decision) -> str:
    """The record as a MADR file."""
    parts = [
        f"# {decision.number}. {decision.title}",
        f"Status: {decision.status}",
        f"Date: {decision.updated_at:%Y-%m-%d}",
    ]
    if decision.context:
        parts += ["## Context and Problem Statement", decision.context]
    if decision.drivers:
        parts += ["## Decision Drivers", "\n".join(f"* {driver}" for driver in decision.drivers)]
    if decision.options:
        parts += ["## Considered Options", "\n".join(f"* {option.title}" for option in decision.options)]
    if decision.outcome:
        parts += ["## Decision Outcome", decision.outcome]
    if decision.consequences:
        parts += ["### Consequences", decision.consequences]
    for option in decision.options:
        if option.good or option.bad:
            lines = [*(f"* Good, because {g}" for g in option.good), *(f"* Bad, because {b}" for b in option.bad)]
            parts += [f"### {option.title}", "\n".join(lines)]
    if decision.evidence:
        lines = ["| from | quantity | value | unit |", "|---|---|---:|---|"]
        lines += [f"| {e.label or e.kind} | {e.quantity} | {e.value:,} | {e.unit} |" for e in decision.evidence]
        parts += ["## Evidence", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


# --- the form ---


def editor(store: Store, decision: Decision | None) -> None:
    """The form. What was typed stays when saving fails, also when somebody else saved first."""
    title = "New decision" if decision is None else f"Edit decision {decision.number}"
    key = f"decision-{decision.id if decision else 'new'}"
    version_key = f"{key}-version"
    with chrome.header(title, "in the form of MADR"):
        if st.button("Back"):
            open_decision(str(decision.id) if decision else None)
        save = st.button("Save", type="primary")
    cited = cited_evidence(store, decision, key)
    left, right = st.columns([3, 2])
    with left, chrome.panel("Record", key="record"):
        fields = {
            "title": st.text_input("Title", value=decision.title if decision else "", key=f"{key}-title"),
            "status": st.selectbox(
                "Status",
                STATUSES,
                index=STATUSES.index(decision.status) if decision and decision.status in STATUSES else 0,
                key=f"{key}-status",
            ),
            "context": st.text_area("Context and problem", decision.context if decision else "", key=f"{key}-context"),
            "drivers": lines_of(
                st.text_area(
                    "Decision drivers, one a line",
                    "\n".join(decision.drivers) if decision else "",
                    key=f"{key}-drivers",
                )
            ),
            "options": read_options(
                st.text_area(
                    "Options; below each, + for it and - against it, one a line",
                    write_options(decision.options) if decision else "",
                    height=150,
                    key=f"{key}-options",
                    placeholder="8 KV heads\n+ a quarter of the cache\n- slightly higher loss",
                )
            ),
            "outcome": st.text_area("Outcome", decision.outcome if decision else "", key=f"{key}-outcome"),
            "consequences": st.text_area(
                "Consequences", decision.consequences if decision else "", key=f"{key}-consequences"
            ),
        }
        messages = st.container()
    with right, chrome.panel("Evidence", "kept with the value it has now", key="evidence"):
        choose_evidence(store, cited, key)
    if decision is not None:
        st.session_state.setdefault(version_key, decision.version)
    if not save:
        return
    with messages:
        if not str(fields["title"]).strip():
            chrome.field_error("A decision needs a title: say what was decided in one line.")
            return
        try:
            if decision is None:
                saved = store.decisions.create(**fields, evidence=cited)  # type: ignore[arg-type]
            else:
                expected = st.session_state[version_key]
                saved = store.decisions.update(decision.id, expected_version=expected, **fields, evidence=cited)  # type: ignore[arg-type]
        except Conflict as reason:
            chrome.error(f"{reason}. Your text is still here: look at theirs in another tab, then save again.")
            st.session_state[version_key] = store.decisions.get(decision.id).version if decision else 1
            return
        except StoreError as reason:
            chrome.error(reason)
            return
    for name in [name for name in st.session_state if str(name).startswith(key)]:
        del st.session_state[name]
    open_decision(str(saved.id))


def lines_of(text: str) -> tuple[str, ...]:
    """The lines that say something."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_options(text: str) -> tuple[Option, ...]:
    """Options from text: a title a line, ``+`` and ``-`` lines below belong to it."""
    options: list[Option] = []
    for line in lines_of(text):
        sign, rest = line[0], line[1:].strip()
        if sign in "+-−" and options and rest:
            last = options[-1]
            good, bad = ((*last.good, rest), last.bad) if sign == "+" else (last.good, (*last.bad, rest))
            options[-1] = Option(last.title, good, bad)
        else:
            options.append(Option(line))
    return tuple(options)


def write_options(options: Sequence[Option]) -> str:
    """The text that ``read_options`` reads."""
    return "\n".join(
        line
        for option in options
        for line in (option.title, *(f"+ {g}" for g in option.good), *(f"- {b}" for b in option.bad))
    )


def cited_evidence(store: Store, decision: Decision | None, key: str) -> list[Evidence]:
    """The draft's evidence: the decision's own, or the parameters and cache of the revisions that the address names."""
    name = f"{key}-evidence"
    if name not in st.session_state:
        cited = list(decision.evidence) if decision else []
        for part in st.query_params.get("revisions", "").split(",") if decision is None else ():
            if part.isdigit():
                with chrome.guard():
                    revision = store.designs.revision(int(part))
                    label = f"{revision.name} r{revision.number}"
                    numbers = [
                        n for n in evidence.of_revision(revision) if n.quantity.startswith(("parameters", "cache"))
                    ]
                    cited += [Evidence("revision", revision.id, n.quantity, n.value, n.unit, label) for n in numbers]
        for part in st.query_params.get("results", "").split(",") if decision is None else ():
            if part.isdigit():
                with chrome.guard():
                    result = store.results.get(int(part))
                    numbers = evidence.of_result(result)
                    wanted = [
                        n for n in numbers if "bits per byte" in n.quantity or n.quantity.endswith("median seconds")
                    ]
                    cited += [
                        Evidence("result", result.id, n.quantity, n.value, n.unit, result.name)
                        for n in wanted or numbers[:1]
                    ]
        st.session_state[name] = cited
    cited_now: list[Evidence] = st.session_state[name]
    return cited_now


def choose_evidence(store: Store, cited: list[Evidence], key: str) -> None:
    """The cited numbers, each removable, and a way to add one."""
    for index, item in enumerate(list(cited)):
        text, remove = st.columns([6, 1], vertical_alignment="center")
        with text:
            chrome.html(
                f'<div>{chrome.escape(item.quantity)} <b class="pl-figures">'
                f"{chrome.escape(evidence.text(item.value, item.unit))}</b><br>"
                f'<span class="pl-soft">{chrome.escape(item.label)}</span></div>'
            )
        if remove.button("✕", key=f"{key}-remove-{index}", help="Remove"):
            cited.pop(index)
            st.rerun()
    kind = st.segmented_control("Add from", ["design", "result"], default="design", key=f"{key}-from")
    if kind == "result":
        results = store.results.list(limit=200)
        if not results:
            chrome.note("No results are stored yet.")
            return
        titles = distinct({result.id: f"{result.name} · {label_of(result.kind)}" for result in results})
        wanted = st.selectbox("Result", list(titles), format_func=titles.__getitem__, key=f"{key}-result")
        result = next(result for result in results if result.id == wanted)
        numbers, reference, label = evidence.of_result(result), result.id, result.name
    else:
        designs = store.designs.list()
        if not designs:
            chrome.note("No designs are saved yet.")
            return
        names = distinct({design.id: design.name for design in designs})
        chosen = st.selectbox("Design", list(names), format_func=names.__getitem__, key=f"{key}-design")
        design = next(design for design in designs if design.id == chosen)
        revisions = store.designs.revisions(design.id)[::-1]
        revision = st.selectbox("Revision", revisions, format_func=lambda r: f"revision {r.number}", key=f"{key}-rev")
        numbers, reference, label = evidence.of_revision(revision), revision.id, f"{design.name} r{revision.number}"
    if not numbers:
        chrome.note("It has no number to cite.")
        return
    number = st.selectbox(  # the quantities of one source have a name each
        "Number", numbers, format_func=lambda n: f"{n.quantity}: {evidence.text(n.value, n.unit)}", key=f"{key}-number"
    )
    if st.button("Cite it", key=f"{key}-cite"):
        kind_name = "result" if kind == "result" else "revision"
        cited.append(Evidence(kind_name, reference, number.quantity, number.value, number.unit, label))
        st.rerun()


main()
