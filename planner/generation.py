"""A plan to let trained prototypes go on with a prompt, and whether they can: asked before it is sent and when it runs.

The texts stand side by side: one of each prototype, and with a draft one more, of the first prototype with the draft's
proposals (speculative decoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints

from planner.errors import PlannerError, Problem, UnsupportedPlan
from planner.plans import Plan
from planner.spec import ArchitectureSpec, LearnedPositions
from planner.vocabulary import Vocabulary

MOST_PROTOTYPES = 4
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class GeneratePlan(Plan):
    """How stored prototypes go on with a prompt."""

    prototypes: tuple[JobId, ...] = Field(min_length=1, max_length=MOST_PROTOTYPES)
    """Jobs whose checkpoints generate, side by side."""
    draft: JobId | None = None
    """A smaller prototype that proposes tokens to the first one, in one more text."""
    prompt: str = Field(min_length=1, max_length=20_000)
    max_new_tokens: int = Field(default=200, gt=0, le=4096)
    temperature: float = Field(default=0.8, ge=0, le=100)
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = Field(default=None, gt=0)
    """Only so many of the likeliest tokens."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the fewest likeliest tokens that have this probability together."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Only tokens with this share of the likeliest one's probability or more."""
    seed: int = Field(default=0, ge=0)
    draft_tokens: int = Field(default=4, gt=0, le=16)
    """Tokens that the draft proposes at a time."""

    @property
    def texts(self) -> tuple[tuple[str, str | None], ...]:
        """What is written: the prototype of each text, and its draft."""
        plain = tuple((prototype, None) for prototype in self.prototypes)
        return plain if self.draft is None else (*plain, (self.prototypes[0], self.draft))


@dataclass(frozen=True, slots=True)
class Writer:
    """A trained prototype, as far as a prompt is concerned."""

    name: str
    spec: ArchitectureSpec
    vocabulary: Vocabulary


def read_prompt(plan: GeneratePlan, writers: Sequence[Writer], draft: Writer | None) -> list[int]:
    """The prompt's tokens, which all can read.

    Raises
    ------
    UnsupportedPlan
        naming ``prototypes`` or ``draft`` where their vocabularies differ, ``prompt`` where it has no tokens or more
        than a model has positions, and ``max_new_tokens`` where only both together are too many.
    """
    first = writers[0]
    problems = [
        Problem(
            path,
            f"{other.name} reads {other.vocabulary.what}, and {first.name} {first.vocabulary.what}: one prompt is not "
            "for both.",
            "Choose prototypes that were trained on the same kind of data.",
            "other_vocabulary",
        )
        for path, other in [*(("prototypes", writer) for writer in writers[1:]), *([("draft", draft)] if draft else [])]
        if other.vocabulary.name != first.vocabulary.name
    ]
    tokens: list[int] = []
    try:
        tokens = first.vocabulary.encode(plan.prompt)
    except PlannerError as refused:
        problems.extend(refused.problems)
    for writer in (*writers, *([draft] if draft else ())):
        positions = writer.spec.positions
        if not isinstance(positions, LearnedPositions):
            continue
        most = positions.num_positions
        if len(tokens) >= most:
            problems.append(
                Problem(
                    "prompt",
                    f"It has {len(tokens):,} tokens, and {writer.name} knows {most:,} positions.",
                    f"Shorten it to at most {most - 1:,}.",
                    "prompt_too_long",
                )
            )
        elif len(tokens) + plan.max_new_tokens > most:
            problems.append(
                Problem(
                    "max_new_tokens",
                    f"With a prompt of {len(tokens):,} tokens {writer.name} has positions for {most - len(tokens):,}.",
                    f"Choose at most {most - len(tokens):,}, or a shorter prompt.",
                    "too_many_positions",
                )
            )
    if problems:
        raise UnsupportedPlan(problems)
    return tokens
