"""Speculative decoding: a draft proposes ``k`` tokens, and one pass of the model keeps those that it agrees with.

A proposal is kept with probability ``acceptance``, independently, so that a pass yields (1 − aᵏ⁺¹)/(1 − a) tokens
(Leviathan et al. 2022, arXiv:2211.17192, equation 1). The draft is a preset with a cache of its own, or ``ngram``:
proposals looked up in the text, which cost nothing.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass

from planner.errors import UnsupportedPlan
from planner.presets import load, preset_ids
from planner.spec import ArchitectureSpec

NGRAM = "ngram"
MOST_PROPOSED = 64
LIKE = "Write it like llama-3.2-1b:k=4:acceptance=0.7, or ngram:k=4:acceptance=0.4."
_LARGEST_PADDING = 1024
"""Rows by which vocabularies of one tokenizer may differ: engines pad them to round numbers."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """What proposes, how much, and how much of it is kept."""

    draft: ArchitectureSpec | None
    """``None``: proposals cost nothing."""
    proposed: int
    acceptance: float

    @property
    def tokens_a_pass(self) -> float:
        """Expected tokens that a pass of the large model yields: at least 1, at most ``proposed + 1``."""
        return sum(self.acceptance**index for index in range(self.proposed + 1))


def _refuse(message: str, remedy: str = LIKE) -> UnsupportedPlan:
    error = UnsupportedPlan.of(message, path="speculative", remedy=remedy, code="unsupported_speculative")
    assert isinstance(error, UnsupportedPlan)
    return error


def speculation(text: str | None) -> Speculation | None:
    """What a plan's ``speculative`` says; ``None`` where it says nothing.

    Raises
    ------
    UnsupportedPlan
        where it is no ``DRAFT:k=…:acceptance=…``, or there is no such draft.
    """
    return None if text is None else _parse(text)


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> Speculation:
    name, *settings = text.split(":")
    given: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in ("k", "acceptance") or key in given:
            raise _refuse(f"{setting!r} is no setting of a draft.")
        given[key] = value
    if set(given) != {"k", "acceptance"}:
        raise _refuse(f"{text!r} does not say how many tokens are proposed (k) and which share is kept (acceptance).")
    try:
        proposed, acceptance = int(given["k"]), float(given["acceptance"])
    except ValueError:
        raise _refuse(f"{text!r} has no numbers where they are wanted.") from None
    if not 1 <= proposed <= MOST_PROPOSED:
        raise _refuse(f"{proposed:,} proposed tokens are not modelled.", f"Choose k from 1 to {MOST_PROPOSED}.")
    if not 0 <= acceptance <= 1:
        raise _refuse(f"{acceptance} is no share.", "Choose an acceptance from 0 to 1.")
    if name == NGRAM:
        return Speculation(None, proposed, acceptance)
    if name not in preset_ids():
        near = difflib.get_close_matches(name, preset_ids(), n=3, cutoff=0.4)
        raise _refuse(f"There is no preset {name!r}.", f"Choose {' or '.join(near)}." if near else LIKE)
    return Speculation(load(name), proposed, acceptance)


def check_draft(spec: ArchitectureSpec, found: Speculation | None) -> None:
    """Refuse a draft that speaks another vocabulary."""
    if found is None or found.draft is None:
        return
    if abs(found.draft.vocab_size - spec.vocab_size) > _LARGEST_PADDING:
        raise _refuse(
            f"The draft has {found.draft.vocab_size:,} tokens and the model {spec.vocab_size:,}, so one cannot propose "
            "to the other.",
            "Choose a draft of the same family.",
        )
