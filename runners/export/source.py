"""The sources of the models as syntax trees: definitions by name, where names come from, and comments."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OWN = ("planner", "runners")
"""Packages whose definitions are written out; others are imported."""
COMMENT = "§"
"""How a comment begins that is kept as a statement, until the text is written."""


class Key(NamedTuple):
    """A definition: its module, and its name there (``Class.member`` for a member)."""

    module: str
    name: str


class External(NamedTuple):
    """What comes from another package: ``from module import name as bound``, or ``import module as bound``."""

    module: str
    name: str | None
    bound: str


@dataclass
class Module:
    """A module's top-level definitions, each with the text that documents it, and what it imports."""

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, External] = field(default_factory=dict)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def is_comment(statement: ast.stmt) -> bool:
    """Whether a statement stands for a comment."""
    text = ast.literal_eval(statement.value) if isinstance(statement, ast.Expr) and _is_text(statement) else ""
    return str(text).startswith(COMMENT)


def _comments(text: str) -> Iterator[tuple[int, int | None, str]]:
    """Line, column (``None`` behind code) and text of each comment that is no directive."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        directive = token.string.removeprefix("#").strip().startswith(("type:", "noqa", "fmt:"))
        if token.type == tokenize.COMMENT and not directive:
            line, column = token.start
            yield line, None if lines[line - 1][:column].strip() else column, token.string


def _keep_comments(tree: ast.Module, text: str) -> None:
    """Put comments into the tree as statements, each before the one that it stands at."""
    comments = list(_comments(text))

    def block(statements: list[ast.stmt], after: int) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for statement in statements:
            end = statement.end_lineno or statement.lineno
            is_simple = not hasattr(statement, "body") and not hasattr(statement, "cases")
            for line, column, said in comments:
                is_before = after < line < statement.lineno and column == statement.col_offset
                is_behind = is_simple and column is None and statement.lineno <= line <= end
                if is_before or is_behind:
                    kept.append(ast.Expr(ast.Constant(COMMENT + said)))
            kept.append(statement)
            after = end
        return kept

    for node in ast.walk(tree):
        if isinstance(node, ast.Module):
            continue
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list) and statements:
                setattr(node, name, block(statements, getattr(node, "lineno", statements[0].lineno - 1)))


@functools.cache
def module(name: str) -> Module:
    """The parsed module."""
    text = inspect.getsource(importlib.import_module(name))
    tree = ast.parse(text)
    _keep_comments(tree, text)
    made = Module(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name
                made.imports[bound] = External(alias.name, None, bound)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                bound = alias.asname or alias.name
                made.imports[bound] = External(node.module or "", alias.name, bound)
    defining: list[ast.stmt] | None = None
    for statement in tree.body:
        targets: list[str] = []
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            targets = [statement.name]
        elif isinstance(statement, ast.Assign):
            targets = [node.id for node in ast.walk(statement.targets[0]) if isinstance(node, ast.Name)]
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            targets = [statement.target.id]
        if targets:
            defining = [statement]
            for target in targets:
                made.definitions[target] = defining
        elif defining is not None and _is_text(statement):
            defining.append(statement)
            defining = None
        else:
            defining = None
    return made


def resolve(where: str, name: str) -> Key | External | None:
    """What a name means at the top level of a module; ``None``: one of Python's own."""
    here = module(where)
    if name in here.definitions:
        return Key(where, name)
    found = here.imports.get(name)
    if found is None:
        return None
    if found.module.partition(".")[0] not in OWN:
        return found
    if found.name is None:
        return found
    submodule = f"{found.module}.{found.name}"
    if submodule == found.module:
        return found
    return resolve(found.module, found.name)


def canonical(key: Key) -> Key:
    """Of several names that are assigned at once the first, under which all of them are written."""
    definitions = module(key.module).definitions
    made = definitions.get(key.name)
    return key if made is None else Key(key.module, next(n for n, other in definitions.items() if other is made))


def resolve_expression(where: str, node: ast.expr) -> Key | External | None:
    """What a name, or an attribute of an imported module of ours, means."""
    if isinstance(node, ast.Name):
        return resolve(where, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        base = resolve(where, node.value.id)
        if isinstance(base, External) and base.name is None and base.module.partition(".")[0] in OWN:
            return resolve(base.module, node.attr)
    return None


def value_of(key: Key) -> Any:
    """The object that a definition made."""
    made: Any = importlib.import_module(key.module)
    for name in key.name.split("."):
        made = getattr(made, name)
    return made


def member(cls: type, name: str) -> tuple[Key, list[ast.stmt]] | None:
    """Where a class of ours defines a member, itself or by a base, and the definition with its text."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in OWN:
            continue
        body = module(base.__module__).definitions[base.__name__][0]
        assert isinstance(body, ast.ClassDef)
        for index, statement in enumerate(body.body):
            named = statement.target if isinstance(statement, ast.AnnAssign) else None
            is_function = isinstance(statement, ast.FunctionDef) and statement.name == name
            if is_function or (isinstance(named, ast.Name) and named.id == name):
                documented = body.body[index + 1 : index + 2]
                text = [said for said in documented if not is_function and _is_text(said) and not is_comment(said)]
                return Key(base.__module__, f"{base.__name__}.{name}"), [statement, *text]
    return None
