"""Texts that prototypes write, side by side: every token shaded by its probability, with its details on hover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.widgets import chrome, figures, theme

if TYPE_CHECKING:
    from db.records import GeneratedToken

SHADES = ((0.5, "s0", "≥ 50%"), (0.2, "s1", "≥ 20%"), (0.05, "s2", "≥ 5%"), (0.01, "s3", "≥ 1%"), (0.0, "s4", "less"))
"""The least probability of each shade, its class, and what the legend calls it."""
MOST_WITH_DETAILS = 1500
"""Tokens of one text that have their details on hover; those before them are plain."""


def shade(probability: float) -> str:
    """The class of a token of that probability: none for the likely ones."""
    return next(name for least, name, _ in SHADES if probability >= least)


def legend() -> None:
    """What the shades mean."""
    marks = "".join(f'<span class="pl-token {name}">{words}</span>' for _, name, words in SHADES)
    chrome.html(
        f'<p class="pl-note pl-shades">Shaded by the probability that the model itself gave the token: {marks} · '
        "point at a token for its alternatives</p>"
    )


def details(values: Mapping[str, Any]) -> str:
    """A token's probability and the likeliest alternatives, a line each."""
    lines = [f"{values['label']}  {figures.percent(values['probability'])}"]
    if values["sampling_probability"] != values["probability"]:
        lines.append(f"drawn at {figures.percent(values['sampling_probability'])}")
    if values["is_proposed"] is not None:
        lines.append("proposed by the draft" if values["is_proposed"] else "the model's own")
    lines.append("")
    lines.extend(f"{label}  {figures.percent(probability)}" for label, probability in values["alternatives"])
    return "\n".join(lines)


def token_html(values: Mapping[str, Any]) -> str:
    """One token. A byte that does not end its character is a dot; a line break shows its mark."""
    piece = values["piece"]
    shown = chrome.escape(piece).replace("\n", "<i>↵</i>\n") if piece else "<i>·</i>"
    proposed = " proposed" if values["is_proposed"] else ""
    # A line break within an attribute would end a token's details early.
    tip = chrome.escape(details(values)).replace("\n", "&#10;")
    return f'<span class="pl-token {shade(values["probability"])}{proposed}" data-tip="{tip}">{shown}</span>'


def text_html(prompt: str, separator: str, tokens: Sequence[GeneratedToken]) -> str:
    """The prompt, and what was written behind it."""
    plain = "".join(token.values["piece"] for token in tokens[:-MOST_WITH_DETAILS])
    detailed = "".join(token_html(token.values) for token in tokens[-MOST_WITH_DETAILS:])
    before = chrome.escape(prompt.rstrip() if separator else prompt)
    return f'<div class="pl-written"><span class="pl-prompt">{before}</span>{chrome.escape(plain)}{detailed}</div>'


def facts_html(token: Mapping[str, Any] | None, count: int, result: Mapping[str, Any]) -> str:
    """Speed and log-probability of a text so far; how a draft did, once it is known."""
    if token is None:
        return ""
    facts = [
        (f"{token['tokens_per_second']:,.0f}", "tokens a second"),
        (f"{token['log_probability']:,.1f}", "nats of log-probability"),
        (f"{count:,}", "tokens"),
    ]
    if result.get("tokens_per_pass") is not None:
        facts.append((f"{result['tokens_per_pass']:.2f}", "tokens a pass"))
    if result.get("acceptance_rate") is not None:
        facts.append((figures.percent(result["acceptance_rate"], 0), "of the proposals taken"))
    return "".join(f"<span><b>{value}</b> {chrome.escape(words)}</span>" for value, words in facts)


def columns(
    titles: Sequence[tuple[str, str]],
    prompt: str,
    separator: str,
    tokens: Sequence[GeneratedToken],
    results: Sequence[Mapping[str, Any]],
) -> None:
    """A column a text: its name and what it is, what was written, how fast and how likely."""
    by_text: dict[int, list[GeneratedToken]] = {index: [] for index in range(len(titles))}
    for token in tokens:
        by_text.setdefault(token.text, []).append(token)
    for index, ((name, what), place) in enumerate(zip(titles, st.columns(len(titles)), strict=True)):
        own = by_text[index]
        found = results[index] if index < len(results) else {}
        last = own[-1].values if own else None
        with place:
            chrome.html(
                f'<div class="pl-writer" style="--shade:var(--{theme.VARIANTS[index].token})">'
                f"<div>{chrome.variant_tag(index)} <b>{chrome.escape(name)}</b> "
                f'<span class="pl-soft">{chrome.escape(what)}</span></div>'
                f"{text_html(prompt, separator, own)}"
                f'<div class="pl-written-facts">{facts_html(last, len(own), found)}</div></div>'
            )
