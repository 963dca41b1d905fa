"""Tasks with a right answer, to train a prototype on in place of text: what each is, and what its difficulty counts.

The sequences themselves are made by ``runners/training/tasks.py``; what both need to know stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

TaskName = Literal[
    "multi_query_associative_recall",
    "selective_copying",
    "induction_heads",
    "in_context_ngram",
    "memorisation",
    "needle_at_depth",
    "sorting",
    "compression",
]

LEAST_RECALL_KEYS = 64
COPIED_SYMBOLS = 14
INDUCTION_SYMBOLS = 15
NGRAM_SYMBOLS = 8
FACT_SYMBOLS = 64
"""Tokens that the first half of a fact's key is drawn from, and as many others for its second half."""
FACT_VALUES = 16
HAYSTACK_SYMBOLS = 32
SORTED_NUMBERS = 64
COMPRESSED_SYMBOLS = 16


@dataclass(frozen=True, slots=True)
class Task:
    """One task. Its sizes are functions of the difficulty."""

    what: str
    difficulty: str
    """What the difficulty counts."""
    default: int
    least: int
    most: int
    vocab_size: Callable[[int], int]
    answers: Callable[[int], int]
    """How many tokens can be the answer: guessing evenly among them is right one time in so many."""
    shortest: Callable[[int], int]
    """The shortest sequence that holds the task."""
    source: str
    symbols: Callable[[int], tuple[str, ...]]
    """What each token is called, by its id: ``_`` is the blank, ``?`` asks for the answer."""


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{index + 1}" for index in range(count))


def recall_keys(pairs: int) -> int:
    """Tokens that are keys, and as many others that are values: at least twice those of one sequence."""
    return max(LEAST_RECALL_KEYS, 2 * pairs)


TASKS: dict[TaskName, Task] = {
    "multi_query_associative_recall": Task(
        what="Pairs of a key and a value, then each key again in any order with blanks between: answer its value.",
        difficulty="pairs",
        default=8,
        least=1,
        most=1024,
        vocab_size=lambda pairs: 1 + 2 * recall_keys(pairs),
        answers=recall_keys,
        shortest=lambda pairs: 3 * pairs,
        source="Arora et al. 2023, arXiv:2312.04927",
        symbols=lambda pairs: ("_", *_numbered("k", recall_keys(pairs)), *_numbered("v", recall_keys(pairs))),
    ),
    "selective_copying": Task(
        what="Symbols among blanks at random places; at the end, write the symbols in their order.",
        difficulty="symbols to copy",
        default=16,
        least=1,
        most=4096,
        vocab_size=lambda _: COPIED_SYMBOLS + 2,
        answers=lambda _: COPIED_SYMBOLS,
        shortest=lambda symbols: 2 * symbols,
        source="Gu & Dao 2023, arXiv:2312.00752, section 4.1.1",
        symbols=lambda _: ("_", "?", *_numbered("s", COPIED_SYMBOLS)),
    ),
    "induction_heads": Task(
        what="Special tokens stand once each among random ones; one comes again at the end: answer what followed it.",
        difficulty="special tokens",
        default=1,
        least=1,
        most=1024,
        vocab_size=lambda special: special + INDUCTION_SYMBOLS,
        answers=lambda _: INDUCTION_SYMBOLS,
        shortest=lambda special: 2 * special + 1,
        source="Gu & Dao 2023, arXiv:2312.00752, section 4.1.2",
        symbols=lambda special: (*_numbered("special", special), *_numbered("s", INDUCTION_SYMBOLS)),
    ),
    "in_context_ngram": Task(
        what="A Markov chain of the sequence's own: answer what has followed the last n − 1 tokens most often so far.",
        difficulty="n",
        default=2,
        least=2,
        most=4,
        vocab_size=lambda _: NGRAM_SYMBOLS,
        answers=lambda _: NGRAM_SYMBOLS,
        # So long that some n − 1 tokens must come again.
        shortest=lambda n: NGRAM_SYMBOLS ** (n - 1) + n - 1,
        source="Edelman et al. 2024, arXiv:2402.11004",
        symbols=lambda _: _numbered("s", NGRAM_SYMBOLS),
    ),
    "memorisation": Task(
        what="Facts that never change: two tokens, in any context, stand for a third.",
        difficulty="facts",
        default=256,
        least=1,
        most=FACT_SYMBOLS**2,
        vocab_size=lambda _: 1 + 2 * FACT_SYMBOLS + FACT_VALUES,
        answers=lambda _: FACT_VALUES,
        shortest=lambda _: 2,
        source="Poli et al. 2024, arXiv:2403.17844, with keys of two tokens",
        symbols=lambda _: (
            "_",
            *_numbered("x", FACT_SYMBOLS),
            *_numbered("y", FACT_SYMBOLS),
            *_numbered("v", FACT_VALUES),
        ),
    ),
    "needle_at_depth": Task(
        what="A marker and tokens behind it somewhere in random text; the marker again at the end: recite the tokens.",
        difficulty="tokens of the needle",
        default=4,
        least=1,
        most=1024,
        vocab_size=lambda _: 1 + HAYSTACK_SYMBOLS,
        answers=lambda _: HAYSTACK_SYMBOLS,
        shortest=lambda tokens: 2 * tokens + 1,
        source="Mohtashami & Jaggi 2023, arXiv:2305.16300; Hsieh et al. 2024, arXiv:2404.06654",
        symbols=lambda _: ("?", *_numbered("s", HAYSTACK_SYMBOLS)),
    ),
    "sorting": Task(
        what="Numbers, then a separator: write them in ascending order.",
        difficulty="numbers",
        default=8,
        least=2,
        most=1024,
        vocab_size=lambda _: 2 + SORTED_NUMBERS,
        answers=lambda _: SORTED_NUMBERS,
        shortest=lambda numbers: 2 * numbers + 1,
        source="Graves et al. 2014, arXiv:1410.5401, section 4.5, without priorities",
        symbols=lambda _: ("_", "?", *(str(number) for number in range(SORTED_NUMBERS))),
    ),
    "compression": Task(
        what="Symbols, then a marker; after it each place is asked for once in any order: answer the symbol there.",
        difficulty="symbols",
        default=16,
        least=2,
        most=1024,
        vocab_size=lambda symbols: 2 + COMPRESSED_SYMBOLS + symbols,
        answers=lambda _: COMPRESSED_SYMBOLS,
        shortest=lambda symbols: 2 * symbols + 1,
        source="Poli et al. 2024, arXiv:2403.17844, read back by place",
        symbols=lambda symbols: ("_", "?", *_numbered("s", COMPRESSED_SYMBOLS), *_numbered("@", symbols)),
    ),
}
