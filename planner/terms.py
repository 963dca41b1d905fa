"""What an opened number is made of: terms with their formulas, statuses and bounds, as pages and scripts read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planner.uncertainty import Status, Uncertainty


@dataclass(frozen=True, slots=True)
class SymbolValue:
    """What a symbol of a formula stands for."""

    symbol: str
    value: int
    field: str
    """Path of the field, or of the plan's field."""


@dataclass(frozen=True, slots=True)
class Term:
    """A number and what it is the sum of."""

    name: str
    value: int | float
    formula: Any
    """A SymPy expression; the values of ``symbols`` put into it give ``value``."""
    unit: str
    status: Status
    """That of the least sure of its children."""
    source: str
    symbols: tuple[SymbolValue, ...]
    """Of the formula's symbols, in alphabetical order."""
    path: str = ""
    """The block that it belongs to, such as ``layer_groups[0].layers[0].sequence_mixer``."""
    times: int = 1
    """Layers that the number stands for together."""
    children: tuple[Term, ...] = ()
    uncertainty: Uncertainty | None = None
    """Between which values the truth lies and on what ground; ``None`` where it is exact."""

    @property
    def text(self) -> str:
        """The formula on one line: ``2·d·h·(n_kv + n_q)``."""
        import sympy

        return plain_text(str(sympy.factor_terms(self.formula)))

    @property
    def latex(self) -> str:
        """The formula for a page that sets mathematics."""
        import sympy

        return str(sympy.latex(sympy.factor_terms(self.formula)))

    @property
    def substitution(self) -> str:
        """The formula with numbers in place of its symbols: ``2·128·4,096·(8 + 32)``."""
        import sympy

        numbers = {entry.symbol: f"{entry.value:,}" for entry in self.symbols}
        written = str(sympy.factor_terms(self.formula))
        # In the text, as SymPy itself would merge two symbols that have the same value.
        return plain_text(re.sub(r"[A-Za-z]\w*", lambda match: numbers.get(match.group(), match.group()), written))

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain data."""
        own = self.uncertainty
        return {
            "name": self.name,
            "value": self.value,
            "formula": str(self.formula),
            "unit": self.unit,
            "status": self.status,
            "uncertainty": None if own is None else {"low": own.low, "high": own.high, "ground": own.ground},
            "source": self.source,
            "path": self.path,
            "times": self.times,
            "symbols": {entry.symbol: entry.value for entry in self.symbols},
            "children": [child.to_dict() for child in self.children],
        }

    def walk(self) -> Iterator[Term]:
        """This term and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain_text(expression: str) -> str:
    """SymPy's notation as people write it: ``·`` for products and raised exponents."""
    raised = re.sub(r"\*\*(\d+)", lambda match: match.group(1).translate(_SUPERSCRIPTS), expression)
    return raised.replace("*", "·")
