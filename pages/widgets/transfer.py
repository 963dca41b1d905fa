"""A design in and out: presets, a pasted or dropped config.json or specification, YAML and JSON to take away."""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from pages.widgets import chrome, figures, layer_strip
from pages.widgets.draft import Draft, Settings, opened
from planner import ArchitectureSpec, InvalidSpec, PlannerError, Problem, size
from planner.presets import Loaded, preset, preset_ids, read_text

LARGEST_FILE_BYTES = 2_000_000


def read(text: str) -> Loaded:
    """A specification from the text of a specification (YAML or JSON) or of a Hugging Face ``config.json``.

    With what was left out of it. Raises ``PlannerError`` that names the field.
    """
    if len(text) > LARGEST_FILE_BYTES:
        raise InvalidSpec.of("This is far larger than any configuration.", remedy="Paste the config.json alone.")
    return read_text(text)


def left_out_html(sentences: Sequence[str]) -> str:
    """What an import left out, as a list; empty where there is nothing."""
    if not sentences:
        return ""
    items = "".join(f"<li>{chrome.escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="pl-list pl-left-out" aria-label="Left out">{items}</ul>'


def marked_lines(text: str, problems: tuple[Problem, ...]) -> list[tuple[int, str, Problem]]:
    """The lines of the pasted text that the problems are about: number from 1, the line, the problem."""
    lines = text.splitlines()
    found = []
    for problem in problems:
        broken = re.search(r"\bline (\d+)\b", problem.remedy) if not problem.path else None
        if broken is not None:
            number = int(broken.group(1))
            found.append((number, lines[number - 1] if number <= len(lines) else "", problem))
            continue
        leaf = problem.path.rsplit(".", 1)[-1].split("[")[0]
        for number, line in enumerate(lines, start=1):
            plain = line.strip().lstrip("{, -")
            if leaf and plain.startswith((f'"{leaf}"', f"{leaf}:")):
                found.append((number, line, problem))
                break
    return found


def _refusal(text: str, error: PlannerError) -> None:
    chrome.error(error)
    marked = marked_lines(text, error.problems)
    if marked:
        rows = "".join(
            f"<div><span>{number}</span><code>{chrome.escape(line.strip()[:160])}</code>"
            f"<em>{chrome.escape(problem.message)}</em></div>"
            for number, line, problem in marked
        )
        chrome.html(f'<div class="pl-source">{rows}</div>')


def dropped_or_pasted(key: str, *, height: int) -> Loaded | None:
    """A field for a dropped file and one for its text; what they hold. A refusal stands below them, with its field."""
    dropped = st.file_uploader(
        "A config.json, or a specification as YAML or JSON",
        type=["json", "yaml", "yml"],
        max_upload_size=2,
        key=f"{key}-file",
    )
    text = st.text_area(
        "Or its text",
        height=height,
        key=f"{key}-text",
        placeholder='{"model_type": "llama", "hidden_size": 4096, …}',
    )
    if dropped is not None:
        try:
            text = dropped.getvalue().decode("utf-8")
        except UnicodeDecodeError:
            chrome.error("This file is not text in UTF-8.")
            return None
    if text.strip():
        try:
            return read(text)
        except PlannerError as error:
            _refusal(text, error)
    return None


@st.dialog("Open a design", width="large")
def open_dialog(draft: Draft) -> None:
    """Start from a preset, or from a pasted or dropped configuration."""
    preset, pasted = st.tabs(["Presets", "Paste or drop"])
    with preset:
        _presets(draft)
    with pasted:
        loaded = dropped_or_pasted("import", height=220)
        if loaded is not None:
            spec = loaded.spec
            total = size(spec).parameters.total
            chrome.note(f"{spec.name}: {figures.count(total).exact} parameters in {spec.num_layers:,} layers.")
            if loaded.left_out:
                chrome.html(left_out_html(loaded.left_out))
            if st.button("Open it", type="primary"):
                _replace(draft, spec)


def _presets(draft: Draft) -> None:
    chosen = st.selectbox(
        "Published architectures", preset_ids(), index=None, placeholder="Choose one, or type to search"
    )
    if chosen is None:
        return
    with chrome.guard():
        found = preset(chosen)
        total = size(found.spec).parameters.total
        chrome.html(layer_strip.static(found.spec, height=36, label=found.title))
        chrome.note(f"{found.title}: {figures.count(total).exact} parameters in {found.spec.num_layers:,} layers.")
        chrome.note(f"Source: {found.source}")
        if found.note:
            chrome.note(found.note)
        if found.left_out:
            chrome.html(left_out_html(found.left_out))
        if st.button("Open the preset", type="primary"):
            _replace(draft, found.spec)


def _replace(draft: Draft, spec: ArchitectureSpec) -> None:
    """Open ``spec`` as a new, unsaved design. What was edited before stays one undo away."""
    fresh = opened(spec)
    fresh.past = [*draft.past, draft.spec]
    fresh.settings = Settings(draft.settings.serving, draft.settings.training, draft.settings.share)
    fresh.generation = draft.generation + 1
    fresh.address, fresh.left = draft.address, draft.left  # else the old address would be taken for a wish
    st.session_state["draft"] = fresh
    st.rerun()


def export_menu(draft: Draft) -> None:
    """Buttons that take the draft away as YAML, JSON or a Hugging Face configuration."""
    stem = "".join(letter if letter.isalnum() else "-" for letter in draft.spec.name.lower()).strip("-") or "design"
    st.download_button(
        "YAML", draft.spec.to_yaml(), f"{stem}.yaml", "application/yaml", on_click="ignore", width="stretch"
    )
    st.download_button(
        "JSON", draft.spec.to_json(), f"{stem}.json", "application/json", on_click="ignore", width="stretch"
    )
