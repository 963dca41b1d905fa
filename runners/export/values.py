"""What is known of an expression before it runs: the values that it takes over all parts of one specification."""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from planner.components.strict import Strict
from runners.export.source import Key, resolve_expression, value_of

LARGEST_PRODUCT = 10_000
"""Combinations of values up to which an expression over several parts is followed."""
CHOICES = {
    Key("runners.kernels.choice", "takes_triton"): False,
    Key("runners.models.expert_matmul", "_is_grouped"): False,
    Key("runners.models.block_sparse", "takes_blocks"): False,
}
"""Which kernel computes: in what is written out, the plain one."""


SOMETHING = object()
"""A value of which nothing is known but that it is there."""


@dataclass(frozen=True)
class Instance:
    """An object of one of the runners' own data classes, whose fields are known by the calls that make them."""

    key: Key


@dataclass(frozen=True)
class Known:
    """Values of an expression, one for each object that ``root`` stands for; without a root, a single one."""

    root: Hashable | None
    items: tuple[Any, ...]

    def map(self, change: Callable[[Any], Any]) -> Known:
        """The same objects, seen through a function."""
        return Known(self.root, tuple(change(item) for item in self.items))

    @property
    def is_structural(self) -> bool:
        """Whether the values are of those that code may be chosen by: flags, names and what is absent; no numbers."""
        return all(item is None or isinstance(item, (bool, str)) for item in self.items)

    @property
    def constant(self) -> ast.Constant | None:
        """The one value as code, where there is one."""
        if not self.items or not self.is_structural or any(item != self.items[0] for item in self.items):
            return None
        return ast.Constant(self.items[0])

    @property
    def truth(self) -> bool | None:
        """Whether all values are true, or all false."""
        if not self.items or not self.is_structural:
            return None
        truths = {bool(item) for item in self.items}
        return truths.pop() if len(truths) == 1 else None


def combined(first: Known, second: Known, change: Callable[[Any, Any], Any]) -> Known | None:
    """A function of two: object by object where both stand for the same ones."""
    if first.root is not None and first.root == second.root:
        return Known(first.root, tuple(itertools.starmap(change, zip(first.items, second.items, strict=True))))
    if len(first.items) * len(second.items) > LARGEST_PRODUCT:
        return None
    pairs = itertools.product(first.items, second.items)
    root = second.root if first.root is None else first.root if second.root is None else object()
    return Known(root, tuple(itertools.starmap(change, pairs)))


@dataclass
class Facts:
    """What was found out about the whole program."""

    instances: dict[type, tuple[Any, ...]]
    """The parts of the specification by class."""
    strings: frozenset[str] = frozenset()
    """Names of options that occur in the specification or in code that runs."""
    parameters: dict[Key, dict[str, ast.Constant]] = field(default_factory=dict)
    """Of functions, classes and data classes: parameters that are one constant at every call."""
    signatures: dict[Key, list[str]] = field(default_factory=dict)
    attributes: dict[Key, dict[str, Known]] = field(default_factory=dict)
    """Of modules: attributes that are set once."""
    returns: dict[Key, ast.Constant] = field(default_factory=dict)
    """Of functions: the constant that each gives at every call."""
    erased: dict[Key, frozenset[str]] = field(default_factory=dict)
    """Of modules: attributes that are one constant, read by nobody else."""

    def of_class(self, cls: type) -> tuple[Any, ...]:
        """The parts of the specification that are of a class."""
        return tuple(item for kind, items in self.instances.items() if issubclass(kind, cls) for item in items)


def classes_in(annotation: Any) -> list[type]:
    """The specification's classes that an annotation names."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Strict) else []
    return [cls for argument in get_args(annotation) for cls in classes_in(argument)]


def names_in(annotation: Any) -> list[str]:
    """The strings that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [name for name in get_args(annotation) if isinstance(name, str)]
    return [name for argument in get_args(annotation) for name in names_in(argument)]


def typed(where: str, annotation: ast.expr | None, root: Hashable, facts: Facts) -> Known | None:
    """What a parameter's or field's annotation says of it."""
    if annotation is None:
        return None
    parts: list[ast.expr] = [annotation]
    while any(isinstance(part, ast.BinOp) for part in parts):
        parts = [
            side for part in parts for side in ((part.left, part.right) if isinstance(part, ast.BinOp) else (part,))
        ]
    items: list[Any] = []
    for part in parts:
        if isinstance(part, ast.Constant) and part.value is None:
            items.append(None)
            continue
        key = resolve_expression(where, part)
        if not isinstance(key, Key):
            return None
        made = value_of(key)
        names = names_in(made)
        if classes_in(made):
            items += [item for cls in classes_in(made) for item in facts.of_class(cls)]
        elif names:
            items += [name for name in names if name in facts.strings]
        elif isinstance(made, type) and hasattr(made, "__dataclass_fields__"):
            items.append(Instance(key))
        else:
            return None
    return Known(root, tuple(items))


@dataclass
class Scope:
    """Where an expression stands."""

    where: str
    owner: Key | None
    """The class, in a member of one of the runners'."""
    facts: Facts
    locals: set[str] = field(default_factory=set)
    known: dict[str, Known] = field(default_factory=dict)

    def evaluate(self, node: ast.expr) -> Known | None:
        """The values of an expression; ``None`` where they are not known."""
        match node:
            case ast.Constant(value=value):
                return Known(None, (value,))
            case ast.Tuple(elts=elements):
                parts = [self.evaluate(element) for element in elements]
                if any(part is None or part.root is not None for part in parts):
                    return None
                return Known(None, (tuple(part.items[0] for part in parts if part is not None),))
            case ast.Name(id=name):
                return self.known.get(name) if name in self.locals else self._global(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._compared(left, op, right)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.evaluate(operand)
                return inner.map(operator.not_) if inner is not None and inner.is_structural else None
            case ast.BoolOp(op=op, values=[first, *rest]):
                return self._joined(op, first, rest)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return self._both(left, right, operator.or_)
            case ast.Call():
                return self._called(node)
        return None

    def _both(self, left: ast.expr, right: ast.expr, change: Callable[[Any, Any], Any]) -> Known | None:
        first, second = self.evaluate(left), self.evaluate(right)
        if first is None or second is None:
            return None
        try:
            return combined(first, second, change)
        except TypeError:
            return None

    def _global(self, node: ast.expr) -> Known | None:
        key = resolve_expression(self.where, node)
        if isinstance(key, Key) and key.module.startswith("planner"):
            return Known(None, (value_of(key),))
        return None

    def _attribute(self, node: ast.Attribute) -> Known | None:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and self.owner is not None:
            return self.facts.attributes.get(self.owner, {}).get(node.attr)
        base = self.evaluate(node.value)
        if base is None:
            return None if isinstance(node.value, ast.Name) and node.value.id in self.locals else self._global(node)
        if len(base.items) == 1 and isinstance(base.items[0], Instance):
            return self.field_of(base.items[0].key, node.attr)
        if not all(isinstance(item, Strict) for item in base.items):
            return None
        try:
            return base.map(operator.attrgetter(node.attr))
        except AttributeError:
            return None

    def field_of(self, key: Key, name: str) -> Known | None:
        """A field of one of the runners' data classes."""
        constant = self.facts.parameters.get(key, {}).get(name)
        if constant is not None:
            return Known(None, (constant.value,))
        made = value_of(key)
        annotation = ast.parse(made.__annotations__.get(name, "None"), mode="eval").body
        return typed(key.module, annotation, (key, name), self.facts) if name in made.__annotations__ else None

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Known | None:
        first, second = self.evaluate(left), self.evaluate(right)
        if first is None or second is None:
            return None
        match op:
            case ast.Is() | ast.IsNot():
                if all(item is not None for item in second.items):
                    return None
                return combined(first, second, operator.is_ if isinstance(op, ast.Is) else operator.is_not)
            case ast.Eq() | ast.NotEq() if first.is_structural and second.is_structural:
                return combined(first, second, operator.eq if isinstance(op, ast.Eq) else operator.ne)
            case ast.In() | ast.NotIn() if first.is_structural and all(isinstance(x, tuple) for x in second.items):
                contained = combined(first, second, lambda item, held: item in held)
                return contained if isinstance(op, ast.In) or contained is None else contained.map(operator.not_)
        return None

    def _joined(self, op: ast.boolop, first: ast.expr, rest: list[ast.expr]) -> Known | None:
        result = self.evaluate(first)
        for other in rest:
            following = self.evaluate(other)
            if result is None or following is None or not result.is_structural or not following.is_structural:
                return None
            both = (lambda a, b: a and b) if isinstance(op, ast.And) else (lambda a, b: a or b)
            result = combined(result, following, both)
        return result

    def _called(self, node: ast.Call) -> Known | None:
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
            given, kinds = self.evaluate(node.args[0]), self.evaluate(node.args[1])
            named = classes_in(kinds.items[0]) if kinds is not None and len(kinds.items) == 1 else []
            if named and not any(self.facts.of_class(cls) for cls in named):
                return Known(None, (False,))
            if given is None or kinds is None or any(isinstance(item, Instance) for item in given.items):
                return None
            return combined(given, kinds, isinstance)
        if isinstance(node.func, ast.Name) and node.func.id not in self.locals:
            key = resolve_expression(self.where, node.func)
            if isinstance(key, Key) and key in CHOICES:
                return Known(None, (CHOICES[key],))
            if isinstance(key, Key) and key in self.facts.returns:
                return Known(None, (self.facts.returns[key].value,))
            made = value_of(key) if isinstance(key, Key) else None
            if isinstance(key, Key) and isinstance(made, type):
                return Known(None, (Instance(key) if hasattr(made, "__dataclass_fields__") else SOMETHING,))
        if ast.unparse(node.func).startswith("nn."):
            return Known(None, (SOMETHING,))
        if isinstance(node.func, ast.Attribute) and not node.args and not node.keywords:
            base = self.evaluate(node.func.value)
            if base is not None and base.items and all(isinstance(item, Strict) for item in base.items):
                name = node.func.attr
                listed = base.map(lambda item: _listed(getattr(item, name)()))
                return listed if all(isinstance(item, tuple) for item in listed.items) else None
        return None

    def elements(self, node: ast.expr) -> Known | None:
        """What a loop over an expression goes through."""
        held = self.evaluate(node)
        if held is None or not all(isinstance(item, tuple) for item in held.items):
            return None
        return Known(object(), tuple(element for item in held.items for element in item))


def _listed(made: Any) -> Any:
    return tuple(made) if isinstance(made, Iterable) and not isinstance(made, str) else made
