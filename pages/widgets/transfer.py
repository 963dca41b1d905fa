"""A design in and out: presets, a pasted or dropped config.json or specification, YAML and JSON to take away."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st
import yaml

from pages.widgets import chrome, figures
from pages.widgets.draft import Draft, Settings, opened
from planner import ArchitectureSpec, InvalidSpec, PlannerError, Problem, parse_spec, size

LARGEST_FILE_BYTES = 2_000_000


def read(text: str) -> ArchitectureSpec:
    """A specification from the text of a specification (YAML or JSON) or of a Hugging Face ``config.json``.

    Raises ``PlannerError`` that names the field.
    """
    if len(text) > LARGEST_FILE_BYTES:
        raise InvalidSpec.of("This is far larger than any configuration.", remedy="Paste the config.json alone.")
    try:
        data: Any = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise InvalidSpec.of(
            f"This is no JSON: {error.msg}.", path=f"line {error.lineno}", remedy="Mend it there.", code="no_json"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else ""
        raise InvalidSpec.of(
            "This is neither JSON nor YAML.", path=where, remedy="Mend it there.", code="no_yaml"
        ) from error
    except RecursionError as error:
        raise InvalidSpec.of(
            "This is nested too deeply to be a configuration.", remedy="Paste the config.json."
        ) from error
    if isinstance(data, dict) and "layer_groups" not in data and ("model_type" in data or "architectures" in data):
        from planner import from_huggingface

        return from_huggingface(data)
    return parse_spec(data)


def marked_lines(text: str, problems: tuple[Problem, ...]) -> list[tuple[int, str, Problem]]:
    """The lines of the pasted text that the problems are about: number from 1, the line, the problem."""
    lines = text.splitlines()
    found = []
    for problem in problems:
        if problem.path.startswith("line "):
            number = int(problem.path.removeprefix("line "))
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


@st.dialog("Open a design", width="large")
def open_dialog(draft: Draft) -> None:
    """Start from a preset, or from a pasted or dropped configuration."""
    preset, pasted = st.tabs(["Presets", "Paste or drop"])
    with preset:
        _presets(draft)
    with pasted:
        dropped = st.file_uploader("A config.json, or a specification as YAML or JSON", type=["json", "yaml", "yml"])
        text = st.text_area(
            "Or its text",
            height=220,
            key="import-text",
            placeholder='{"model_type": "llama", "hidden_size": 4096, …}',
        )
        if dropped is not None:
            try:
                text = dropped.getvalue().decode("utf-8")
            except UnicodeDecodeError:
                chrome.error("This file is not text in UTF-8.")
                return
        if text.strip():
            try:
                spec = read(text)
            except PlannerError as error:
                _refusal(text, error)
            else:
                total = size(spec).parameters.total
                chrome.note(f"{spec.name}: {figures.count(total).exact} parameters in {spec.num_layers:,} layers.")
                if st.button("Open it", type="primary"):
                    _replace(draft, spec)


def _presets(draft: Draft) -> None:
    names = preset_names()
    if not names:
        chrome.empty_state("No presets here", "Paste a config.json instead.", key="no-presets")
        return
    from planner import load

    chosen = st.selectbox("Published architectures", names, index=None, placeholder="Choose one, or type to search")
    if chosen is None:
        return
    with chrome.guard():
        spec = load(chosen)
        total = size(spec).parameters.total
        chrome.note(f"{spec.name}: {figures.count(total).exact} parameters in {spec.num_layers:,} layers.")
        if st.button("Open the preset", type="primary"):
            _replace(draft, spec)


def preset_names() -> list[str]:
    """The names that ``planner.load`` knows presets by."""
    from planner.paths import ASSETS

    return sorted(path.stem for path in (ASSETS / "presets").glob("*.yaml"))


def _replace(draft: Draft, spec: ArchitectureSpec) -> None:
    """Open ``spec`` as a new, unsaved design. What was edited before stays one undo away."""
    fresh = opened(spec)
    fresh.past = [*draft.past, draft.spec]
    fresh.settings = Settings(draft.settings.serving, draft.settings.training, draft.settings.share)
    fresh.generation = draft.generation + 1
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
