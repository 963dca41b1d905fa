"""What a definition says of how it is called: parameters, their defaults, and a constant that it always gives."""

from __future__ import annotations

import ast

from runners.export.fold import is_documented, parameters_of


def _init_of(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)


def _fields_in(node: ast.ClassDef) -> list[ast.AnnAssign]:
    is_data = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return [statement for statement in node.body if is_data and isinstance(statement, ast.AnnAssign)]


def returned_by(node: ast.stmt) -> ast.Constant | None:
    """The constant that a function always gives."""
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return None
    body = node.body[1:] if is_documented(node.body[0]) else node.body
    if len(body) != 1 or not isinstance(body[0], ast.Return) or not isinstance(body[0].value, ast.Constant):
        return None
    return body[0].value


def signature_of(node: ast.stmt) -> list[str] | None:
    """Names of the parameters with which something is called."""
    if isinstance(node, ast.ClassDef):
        init = _init_of(node)
        if init is None:
            fields = [ast.unparse(statement.target) for statement in _fields_in(node)]
            return fields or None
        return [argument.arg for argument in init.args.args[1:]]
    if isinstance(node, ast.FunctionDef):
        is_plain = not (node.args.vararg or node.args.kwarg or node.args.kwonlyargs)
        return [argument.arg for argument in parameters_of(node)] if is_plain else None
    return None


def defaults_of(node: ast.stmt) -> dict[str, ast.expr]:
    """Defaults of those parameters."""
    function = node
    if isinstance(node, ast.ClassDef):
        init = _init_of(node)
        if init is None:
            return {ast.unparse(s.target): s.value for s in _fields_in(node) if s.value is not None}
        function = init
    if not isinstance(function, ast.FunctionDef) or not function.args.defaults:
        return {}
    named = function.args.args[-len(function.args.defaults) :]
    return {argument.arg: default for argument, default in zip(named, function.args.defaults, strict=True)}
