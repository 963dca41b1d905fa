"""What formulas are made of: arithmetic that reads numbers, arrays and symbols alike.

Every formula of the planner is written once, on the fields of a component. The fields may hold

* **numbers** (``int`` or ``float``): the sizing of one specification, exact integers throughout;
* **NumPy arrays** (``float64``): many candidates in one pass;
* **SymPy expressions**: the formula that is shown to the reader.

Plain ``+ - *`` work on all three. What does not (minimum, maximum, division that rounds) is here. Formulas branch on
structure (which component, a flag, an absent field), never on the value of a numeric field: a symbol has no truth
value, so such a branch fails at once when the symbolic reading is taken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Quantity = Any
"""An ``int``, a ``float``, a ``float64`` array or a SymPy expression."""


def _kind(*values: Quantity) -> str:
    """Which of the three readings the values ask for: ``number``, ``array`` or ``symbol``."""
    reading = "number"
    for value in values:
        if isinstance(value, (int, float)):
            continue
        if isinstance(value, np.ndarray):
            if value.dtype != np.float64:
                # int64 wraps around silently at 9.2e18, which 6ND of a large training run exceeds.
                raise TypeError(f"arrays in formulas must be float64, not {value.dtype}: integer arrays overflow")
            reading = "array"
        elif isinstance(value, np.generic):
            reading = "array"
        else:
            return "symbol"
    return reading


def smallest(first: Quantity, second: Quantity) -> Quantity:
    """The lesser of two quantities."""
    match _kind(first, second):
        case "number":
            return min(first, second)
        case "array":
            return np.minimum(first, second)
    import sympy

    return sympy.Min(first, second)


def largest(first: Quantity, second: Quantity) -> Quantity:
    """The greater of two quantities."""
    match _kind(first, second):
        case "number":
            return max(first, second)
        case "array":
            return np.maximum(first, second)
    import sympy

    return sympy.Max(first, second)


def floor_divide(dividend: Quantity, divisor: Quantity) -> Quantity:
    """Quotient rounded down."""
    match _kind(dividend, divisor):
        case "number":
            return dividend // divisor
        case "array":
            return np.floor(dividend / divisor)
    return _rounding("floor")(dividend / _expression(divisor))


def ceiling_divide(dividend: Quantity, divisor: Quantity) -> Quantity:
    """Quotient rounded up: how many chunks of ``divisor`` hold ``dividend``."""
    match _kind(dividend, divisor):
        case "number":
            return -(-dividend // divisor)
        case "array":
            return np.ceil(dividend / divisor)
    return _rounding("ceiling")(dividend / _expression(divisor))


def _expression(quantity: Quantity) -> Any:
    import sympy

    return sympy.sympify(quantity)


@functools.cache
def _rounding(name: str) -> Any:
    """SymPy's ``floor`` or ``ceiling``, which takes what it rounds for whole only where that has no fraction.

    SymPy itself (1.14) takes every quotient of an even maximum or minimum by twice an odd number for whole, and drops
    the rounding: ``floor(Max(0, 2*n)/6)`` becomes ``Max(0, 2*n)/6``. As values are put into a formula one by one, that
    would depend on their order. Under the same name it prints the same.
    """
    import sympy

    plain = getattr(sympy, name)

    def evaluate(cls: Any, argument: Any) -> Any:
        if argument.is_number:
            return plain(argument)
        has_fraction = argument.has(sympy.Pow) or any(part.q != 1 for part in argument.atoms(sympy.Rational))
        return argument if argument.is_integer and not has_fraction else None

    return type(name, (plain,), {"eval": classmethod(evaluate)})


def rounded_up(quantity: Quantity, multiple: Quantity) -> Quantity:
    """The least multiple of ``multiple`` that holds ``quantity``."""
    return ceiling_divide(quantity, multiple) * multiple


def exact_divide(dividend: Quantity, divisor: Quantity) -> Quantity:
    """A quotient known to have no remainder, kept an integer in the number reading."""
    if _kind(dividend, divisor) == "number":
        quotient = dividend // divisor
        if quotient * divisor != dividend:
            raise ArithmeticError(f"{dividend} is not divisible by {divisor}")
        return quotient
    if _kind(dividend, divisor) == "array":
        return dividend / divisor
    import sympy

    return dividend / sympy.sympify(divisor)


def product(values: tuple[Quantity, ...]) -> Quantity:
    """Product of a shape: the number of elements of a tensor."""
    if not values:
        return 1
    result: Quantity = values[0]  # not 1 times it, which would copy an array
    for value in values[1:]:
        result = result * value
    return result


def tabulated(name: str, function: Callable[..., int], *quantities: Quantity) -> Quantity:
    """``function``, which is no arithmetic but looks whole numbers up, read on all three kinds of quantity.

    Arrays are read entry by entry, each distinct one once. As a symbol it is a function under ``name`` that has its
    value as soon as every argument has one.
    """
    match _kind(*quantities):
        case "number":
            return function(*quantities)
        case "array":
            shape = np.broadcast_shapes(*(np.shape(each) for each in quantities))
            columns = [np.asarray(each, dtype=np.float64) for each in quantities]
            codes = np.zeros(math.prod(shape), dtype=np.int64)
            for column in columns:
                if column.size > 1:  # what does not vary distinguishes nothing
                    known, code = np.unique(np.broadcast_to(column, shape).ravel(), return_inverse=True)
                    _, codes = np.unique(codes * len(known) + code, return_inverse=True)
            first = np.unique(codes, return_index=True)[1]
            rows = zip(*(np.broadcast_to(column, shape).ravel()[first] for column in columns), strict=True)
            values = np.array([function(*(int(entry) for entry in row)) for row in rows], dtype=np.float64)
            return values[codes].reshape(shape)
    return _table(name, function)(*quantities)


@functools.cache
def _table(name: str, function: Callable[..., int]) -> Any:
    import sympy

    def evaluate(cls: Any, *arguments: Any) -> Any:
        if all(argument.is_Integer for argument in arguments):
            return sympy.Integer(function(*(int(argument) for argument in arguments)))
        return None

    return type(name, (sympy.Function,), {"eval": classmethod(evaluate), "is_integer": True})
