"""The same specification with other values in its numeric fields: SymPy symbols, or arrays of candidates.

Only structure stays: which components, which flags, which optional fields are present. ``model_construct`` makes the
models without validation, so the formulas of the components run unchanged on what is put into the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from planner.quantities import Quantity
from planner.spec import ArchitectureSpec

SPEC_SYMBOLS = {
    "vocab_size": "V",
    "hidden_size": "h",
    "embedding_size": "e",
    "num_positions": "P",
    "offset": "o",
    "repeats": "L",
}
"""Short names of the fields outside the components."""

Substitution = Callable[[str, str, int], Quantity]
"""From a field's path, its symbol and its value to what is put in its place."""


def substitute(
    part: Any, change: Substitution, path: str = "", suffix: str = "", within: frozenset[str] | None = None
) -> Any:
    """``part`` with every integer field replaced by what ``change(path, symbol, value)`` gives.

    ``within`` has the paths of what is changed and of all that holds it; the rest is taken over as it is.
    """
    if isinstance(part, BaseModel):
        symbols = {**SPEC_SYMBOLS, **getattr(type(part), "symbols", {})}
        values = {}
        for name in type(part).model_fields:
            value = getattr(part, name)
            where = f"{path}.{name}" if path else name
            if within is not None and where not in within:
                values[name] = value
            elif isinstance(value, int) and not isinstance(value, bool):
                values[name] = change(where, symbols.get(name, name) + suffix, value)
            else:
                values[name] = substitute(value, change, where, suffix, within)
        return type(part).model_construct(**values)
    if isinstance(part, tuple):
        several = len(part) > 1
        places = [f"{path}[{index}]" for index in range(len(part))]
        return tuple(
            substitute(item, change, where, f"{suffix}_{index}" if several else suffix, within)
            if within is None or where in within
            else item
            for index, (where, item) in enumerate(zip(places, part, strict=True))
        )
    return part


def _holders(paths: Iterable[str]) -> frozenset[str]:
    """The paths, and those of all that holds them: ``a[0].b`` is held by ``a[0]``, which is held by ``a``."""
    held = set()
    for path in paths:
        held.add(path)
        for index, letter in enumerate(path):
            if letter in ".[":
                held.add(path[:index])
    return frozenset(held)


def symbolic(part: Any) -> tuple[Any, dict[Any, int]]:
    """``part`` with a positive integer symbol in each numeric field, and the value that each symbol stands for.

    Symbols of list entries carry their index where a list has several (``f_1`` in the second group). Where two fields
    have the same short name (``k``: a convolution's kernel, the experts a token), the second carries the name of the
    part that it belongs to (``k_channel``).
    """
    changed, values, _ = symbolic_fields(part)
    return changed, values


def symbolic_fields(part: Any) -> tuple[Any, dict[Any, int], dict[Any, str]]:
    """The same, and the path of the field that each symbol stands for."""
    import sympy

    values: dict[Any, int] = {}
    fields: dict[Any, str] = {}

    def change(path: str, symbol: str, value: int) -> Any:
        if value == 0:
            return value  # what is not there has no symbol, and the symbols are positive
        made = sympy.Symbol(symbol, integer=True, positive=True)
        if made in fields:
            parent = path.split(".")[-2].partition("_")[0] if "." in path else "2"
            made = sympy.Symbol(f"{symbol}_{parent}", integer=True, positive=True)
        if made in fields:
            raise ValueError(f"the symbol {made} stands for both {fields[made]} and {path}")
        values[made] = value
        fields[made] = path
        return made

    return substitute(part, change), values, fields


def candidates(spec: ArchitectureSpec, fields: dict[str, Any]) -> ArchitectureSpec:
    """``spec`` with ``float64`` arrays in the fields that ``fields`` names by path; all arrays of one shape.

    Of more than a few thousand candidates :func:`evaluate` takes a block at a time, which is several times as fast.
    """
    unused = set(fields)

    def change(path: str, symbol: str, value: int) -> Quantity:
        if path in fields:
            unused.discard(path)
            return fields[path]
        return value

    changed: ArchitectureSpec = substitute(spec, change, within=_holders(fields))
    if unused:
        raise ValueError(f"no such numeric fields: {', '.join(sorted(unused))}")
    return changed


BLOCK = 8192
"""Candidates a block: an array of them is 64 KiB, so the few that a formula has at a time stay in the L2 cache of a
core, and the allocator hands the same memory out again instead of returning it to the system."""


def evaluate(
    spec: ArchitectureSpec,
    fields: Mapping[str, np.ndarray],
    formulas: Mapping[str, Callable[[ArchitectureSpec], Quantity]],
    block: int = BLOCK,
) -> dict[str, np.ndarray]:
    """Quantities of many candidates, block by block: one ``float64`` array of shape (candidates,) a formula.

    ``fields`` has an array of shape (candidates,) for each field that varies, by path; a formula takes the
    specification whose fields hold one block of them. Raises ``TypeError`` for arrays of another type, and
    ``ValueError`` where shapes differ or a path names no numeric field.
    """
    shapes = {values.shape for values in fields.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"the fields need arrays of one length, not of shapes {sorted(shapes)}")
    for path, values in fields.items():
        if values.dtype != np.float64:
            raise TypeError(f"{path} must be float64, not {values.dtype}: integer arrays overflow")
    (length,) = next(iter(shapes))
    results = {name: np.empty(length) for name in formulas}
    made, held = None, {}
    for start in range(0, length, block):
        stop = min(start + block, length)
        if made is None or stop - start < block:
            # One specification serves all whole blocks: what its fields hold is written over.
            held = {path: np.empty(stop - start) for path in fields}
            made = candidates(spec, held)
        for path, values in fields.items():
            held[path][:] = values[start:stop]
        for name, formula in formulas.items():
            results[name][start:stop] = formula(made)
    return results
