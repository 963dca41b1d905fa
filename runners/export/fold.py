"""One definition as it is for one specification: branches that are never taken and what only they need are left out."""

from __future__ import annotations

import ast
import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from planner.components.strict import Strict
from runners.export.source import Key, is_comment, resolve_expression, value_of
from runners.export.values import Facts, Instance, Known, Scope, classes_in, typed

Function = ast.FunctionDef | ast.Lambda


def is_documented(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring."""
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text and not is_comment(statement)


def parameters_of(node: Function) -> list[ast.arg]:
    """All parameters of a function."""
    named = node.args
    return [*named.posonlyargs, *named.args, *named.kwonlyargs, *filter(None, (named.vararg, named.kwarg))]


def local_names(node: Function) -> set[str]:
    """Names that a function binds, in functions inside it too."""
    names = {argument.arg for argument in parameters_of(node)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
            names.add(inner.id)
        elif isinstance(inner, ast.FunctionDef) and inner is not node:
            names |= {inner.name} | {argument.arg for argument in parameters_of(inner)}
        elif isinstance(inner, ast.Lambda):
            names |= {argument.arg for argument in parameters_of(inner)}
        elif isinstance(inner, (ast.MatchAs, ast.MatchStar)) and inner.name is not None:
            names.add(inner.name)
    return names


def stores(node: ast.AST) -> Iterator[str]:
    """Each time that a name is bound by a statement."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
            yield inner.id
        elif isinstance(inner, (ast.MatchAs, ast.MatchStar)) and inner.name is not None:
            yield inner.name


def is_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether an expression is an attribute of ``self``."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def assigned(statement: ast.stmt) -> tuple[ast.expr, ast.expr] | None:
    """Target and value of a plain assignment to one target."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return statement.targets[0], statement.value
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return statement.target, statement.value
    return None


def scope_of(where: str, owner: Key | None, function: ast.FunctionDef, facts: Facts) -> Scope:
    """What is known inside a function: of parameters by annotation, of names that are assigned once by value."""
    scope = Scope(where, owner, facts, local_names(function))
    for argument in parameters_of(function):
        if argument.arg == "self" and owner is not None:
            made = value_of(owner)
            if issubclass(made, Strict):
                scope.known["self"] = Known((owner, "self"), facts.of_class(made))
            elif hasattr(made, "__dataclass_fields__"):
                scope.known["self"] = Known(None, (Instance(owner),))
            continue
        known = typed(where, argument.annotation, (where, owner, function.name, argument.arg), facts)
        if known is not None:
            scope.known[argument.arg] = known
    if "self" in scope.known:
        scope.owner = None
    bound = Counter([*stores(function), *(argument.arg for argument in parameters_of(function))])
    once = {name for name, count in bound.items() if count == 1}
    _learn(function, scope, once)
    return scope


def _learn(node: ast.AST, scope: Scope, once: set[str]) -> None:
    """Values of names that are bound once, in the order of the text."""

    def bind(target: ast.expr, known: Known | None) -> None:
        if known is None:
            return
        if isinstance(target, ast.Name) and target.id in once:
            scope.known[target.id] = known
        elif isinstance(target, ast.Tuple) and all(isinstance(item, tuple) for item in known.items):
            for index, element in enumerate(target.elts):
                if all(len(item) == len(target.elts) for item in known.items):
                    bind(element, known.map(operator.itemgetter(index)))

    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.stmt) and (pair := assigned(inner)) is not None:
            target, value = pair
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                for element, part in zip(target.elts, value.elts, strict=True):
                    bind(element, scope.evaluate(part))
            else:
                bind(target, scope.evaluate(value))
        elif isinstance(inner, ast.For):
            bind(inner.target, scope.elements(inner.iter))
        elif isinstance(inner, (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)):
            for generator in inner.generators:
                bind(generator.target, scope.elements(generator.iter))
        _learn(inner, scope, once)


class Folder(ast.NodeTransformer):
    """Rewrites one definition by what is known."""

    def __init__(self, key: Key, owner: Key | None, facts: Facts, dropped_calls: frozenset[Key]) -> None:
        self.key, self.owner, self.facts = key, owner, facts
        self.dropped_calls = dropped_calls
        self.scope = Scope(key.module, owner, facts)
        self.constants: dict[str, ast.Constant] = {}
        self.passing: set[str] = set()
        """Names that are bound more than once."""

    # Definitions

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        constants = self.facts.parameters.get(self.key, {})
        is_data = hasattr(value_of(self.key), "__dataclass_fields__")
        body: list[ast.stmt] = []
        skipping = False
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                skipping = is_data and statement.target.id in constants
            elif not is_documented(statement):
                skipping = False
            if not skipping:
                body.append(self.visit(statement) if isinstance(statement, ast.FunctionDef) else statement)
        node.body = body
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if self.scope.locals:  # a function inside a function shares what is known
            node.body = self._block(node.body)
            return node
        constants = self.facts.parameters.get(key_of(self.key, self.owner, node), {})
        _drop_parameters(node, constants)
        self.scope = scope_of(self.key.module, self.owner, node, self.facts)
        bound = list(stores(node))
        for name, value in constants.items():
            self.scope.locals.add(name)
            if name not in bound:
                self.scope.known[name] = Known(None, (value.value,))
        self.constants = {name: value for name, value in constants.items() if name not in bound}
        both = [*bound, *(argument.arg for argument in parameters_of(node))]
        self.passing = {name for name in bound if both.count(name) > 1}
        for statement in ast.walk(node):
            pair = assigned(statement) if isinstance(statement, ast.stmt) else None
            if pair is not None and isinstance(pair[0], ast.Name) and isinstance(pair[1], ast.Constant):
                value = pair[1]
                parameters = {argument.arg for argument in parameters_of(node)}
                is_single = bound.count(pair[0].id) == 1 and pair[0].id not in parameters
                if is_single and Known(None, (value.value,)).is_structural:
                    self.constants[pair[0].id] = value
        # A parameter that is bound anew begins as the constant.
        at = 1 if is_documented(node.body[0]) else 0
        for name in {name for name in constants if name in bound}:
            self.passing.add(name)
            node.body.insert(at, ast.Assign([ast.Name(name, ast.Store())], constants[name], lineno=0))
        node.body = self._block(node.body)
        while self._without_unread(node):
            pass
        self.scope, self.constants = Scope(self.key.module, self.owner, self.facts), {}
        return node

    def _without_unread(self, node: ast.FunctionDef) -> bool:
        """Leave out names that nothing reads, where making them does nothing else."""
        read = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load)}

        def is_unread(statement: ast.stmt) -> bool:
            if isinstance(statement, ast.AnnAssign) and statement.value is None:
                name = statement.target
                return isinstance(name, ast.Name) and list(stores(node)).count(name.id) == 1
            pair = assigned(statement)
            if pair is None or any(isinstance(inner, ast.Call) for inner in ast.walk(pair[1])):
                return False
            targets = pair[0].elts if isinstance(pair[0], ast.Tuple) else [pair[0]]
            return all(isinstance(target, ast.Name) and target.id not in read for target in targets)

        def is_unread_name(target: ast.expr) -> bool:
            return isinstance(target, ast.Name) and target.id not in read

        changed = False
        for inner in ast.walk(node):
            for name in ("body", "orelse"):
                block = getattr(inner, name, None)
                if isinstance(block, list) and any(is_unread(statement) for statement in block):
                    setattr(inner, name, without(block, is_unread) or ([ast.Pass()] if name == "body" else []))
                    changed = True
                for statement in block if isinstance(block, list) else ():
                    changed = narrowed(statement, is_unread_name) or changed
        return changed

    # Statements

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The statements that are left; a name that was just set to a constant is one until it may be set anew."""
        outer = dict(self.scope.known)
        kept: list[ast.stmt] = []
        for statement in statements:
            again = isinstance(statement, (ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef))
            bound = set(stores(statement)) & self.passing
            if again:
                self._forget(bound)
            made = self.visit(statement)
            self._forget(bound)
            parts = made if isinstance(made, list) else [made] if made is not None else []
            if not parts:
                _drop_comments(kept)
            kept += parts
            self._drop_overwritten(kept)
            pair = assigned(parts[-1]) if parts else None
            if pair is not None and isinstance(pair[0], ast.Name) and isinstance(pair[1], ast.Constant):
                self.scope.known[pair[0].id] = Known(None, (pair[1].value,))
            if kept and isinstance(kept[-1], (ast.Return, ast.Raise)):
                break
        _drop_comments(kept)
        self.scope.known = outer
        return kept

    @staticmethod
    def _drop_overwritten(kept: list[ast.stmt]) -> None:
        """Leave out a constant that a name was set to, where the last statement sets it anew and none reads it."""
        pair = assigned(kept[-1]) if kept else None
        if pair is None or not isinstance(pair[0], ast.Name):
            return
        name = pair[0].id
        if any(isinstance(inner, ast.Name) and inner.id == name for inner in ast.walk(pair[1])):
            return
        for index in range(len(kept) - 2, -1, -1):
            earlier = assigned(kept[index])
            if earlier is not None and isinstance(earlier[0], ast.Name) and earlier[0].id == name:
                if isinstance(earlier[1], ast.Constant):
                    del kept[index]
                return
            if any(isinstance(inner, ast.Name) and inner.id == name for inner in ast.walk(kept[index])):
                return

    def _forget(self, names: set[str]) -> None:
        for name in names:
            self.scope.known.pop(name, None)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | None:
        call = node.value
        if isinstance(call, ast.Call) and resolve_expression(self.key.module, call.func) in self.dropped_calls:
            return None
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | list[ast.stmt] | None:
        node.value = self.visit(node.value)
        node.targets = [self.visit(target) for target in node.targets]
        return self._assignment(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | list[ast.stmt] | None:
        if node.value is not None:
            node.value = self.visit(node.value)
        return self._assignment(node)

    def _assignment(self, node: ast.stmt) -> ast.stmt | list[ast.stmt] | None:
        pair = assigned(node)
        if pair is None:
            return node
        target, value = pair
        if isinstance(target, ast.Name) and isinstance(value, ast.Name) and target.id == value.id:
            return None
        if isinstance(target, ast.Name) and target.id in self.constants and isinstance(value, ast.Constant):
            return None
        erased = self.facts.erased.get(self.owner, frozenset()) if self.owner is not None else frozenset()
        if is_self(target) and isinstance(value, ast.Constant) and target.attr in erased:
            return None
        is_pair = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if is_pair and isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            parts = list(zip(target.elts, value.elts, strict=True))
            names = {ast.unparse(part) for part in target.elts}
            is_free = not names & {ast.unparse(inner) for inner in ast.walk(value) if isinstance(inner, ast.expr)}
            if is_free and any(isinstance(part, ast.Constant) for _, part in parts):
                return [ast.Assign([to], part, lineno=0) for to, part in parts]
        return node

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt] | None:
        node.test = self._test(node.test)
        truth = self._truth(node.test)
        if truth is not None:
            return self._block(node.body if truth else node.orelse)
        node.body = self._block(node.body)
        node.orelse = self._block(node.orelse)
        # What was asked already has been answered.
        while len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            if ast.dump(node.orelse[0].test) != ast.dump(node.test):
                break
            node.orelse = node.orelse[0].orelse
        if not node.body:
            if not node.orelse:
                return None
            node.test, node.body, node.orelse = ast.UnaryOp(ast.Not(), node.test), node.orelse, []
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        node.iter = self.visit(node.iter)
        node.body = self._block(node.body) or [ast.Pass()]
        return node

    def visit_While(self, node: ast.While) -> ast.While:
        node.test = self._test(node.test)
        node.body = self._block(node.body) or [ast.Pass()]
        return node

    def visit_With(self, node: ast.With) -> ast.With:
        node.items = [self.visit(item) for item in node.items]
        node.body = self._block(node.body) or [ast.Pass()]
        return node

    def visit_Match(self, node: ast.Match) -> ast.stmt | list[ast.stmt] | None:
        node.subject = self.visit(node.subject)
        known = self.scope.evaluate(node.subject)
        kept: list[ast.match_case] = []
        for case in node.cases:
            answer = self._matches(case.pattern, known)
            if answer is False:
                continue
            kept.append(case)
            if answer is True:
                break
        if len(kept) == 1 and known is not None and self._matches(kept[0].pattern, known) is True:
            return self._block(kept[0].body)
        for case in kept:
            case.body = self._block(case.body)
        node.cases = kept
        return node if kept else None

    def _matches(self, pattern: ast.pattern, known: Known | None) -> bool | None:
        """Whether a case is always, or never, the one; ``None``: it depends, or binds names."""
        match pattern:
            case ast.MatchClass(cls=cls):
                key = resolve_expression(self.key.module, cls)
                kind = value_of(key) if isinstance(key, Key) else None
                if isinstance(kind, type) and issubclass(kind, Strict) and not self.facts.of_class(kind):
                    return False
                if known is not None and isinstance(kind, type):
                    return None if any(isinstance(item, kind) for item in known.items) else False
            case ast.MatchSingleton(value=value) if known is not None:
                hits = {item is value for item in known.items}
                return hits.pop() if len(hits) == 1 else None
            case ast.MatchValue(value=ast.Constant(value=value)) if known is not None:
                hits = {item == value for item in known.items}
                return hits.pop() if len(hits) == 1 else None
        return None

    # Expressions

    def _truth(self, node: ast.expr) -> bool | None:
        known = self.scope.evaluate(node)
        return None if known is None else known.truth

    def _test(self, node: ast.expr) -> ast.expr:
        made = self.visit(node)
        assert isinstance(made, ast.expr)
        return made

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        is_and = isinstance(node.op, ast.And)
        kept: list[ast.expr] = []
        last = len(node.values) - 1
        for index, operand in enumerate(node.values):
            value = self.visit(operand)
            truth = self._truth(value)
            if truth is is_and and index < last:
                continue  # says nothing: the next one decides
            kept.append(value)
            if truth is (not is_and):
                break
        # What decides all by itself needs nothing evaluated before it.
        if len(kept) > 1 and self._truth(kept[-1]) is (not is_and) and all(map(_is_harmless, kept[:-1])):
            kept = kept[-1:]
        if len(kept) > 1 and self._truth(kept[-1]) is is_and and all(map(self._is_flag, kept)):
            kept = kept[:-1]
        node.values = kept
        return node if len(kept) > 1 else self._settled(kept[0])

    def _settled(self, node: ast.expr) -> ast.expr:
        """A question that has one answer as that answer."""
        known = self.scope.evaluate(node)
        answer = None if known is None else known.constant
        return node if answer is None or not isinstance(answer.value, bool) else answer

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        return self._settled(node)

    def _is_flag(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        node.test = self._test(node.test)
        truth = self._truth(node.test)
        made: ast.expr
        if truth is not None:
            made = self.visit(node.body if truth else node.orelse)
            return made
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self.constants:
            return copy.deepcopy(self.constants[node.id])
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.ctx, ast.Load):
            if is_self(node) and self.owner is not None:
                known = self.facts.attributes.get(self.owner, {}).get(node.attr)
                if known is not None and known.root is None and known.constant is not None:
                    return known.constant
            base = self.scope.evaluate(node.value)
            if base is not None and len(base.items) == 1 and isinstance(base.items[0], Instance):
                constant = self.facts.parameters.get(base.items[0].key, {}).get(node.attr)
                if constant is not None:
                    return copy.deepcopy(constant)
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if ast.unparse(node.func) == "isinstance":
            node.args[1] = self._present(node.args[1])
            return self._settled(node)
        key = called(self.key.module, self.scope, self.owner, node)
        if key in self.facts.returns and all(map(_is_harmless, node.args)):
            return copy.deepcopy(self.facts.returns[key])
        if key is None or not self.facts.parameters.get(key):
            return node
        constants, names = self.facts.parameters[key], self.facts.signatures[key]
        node.args = [argument for name, argument in zip(names, node.args, strict=False) if name not in constants]
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in constants]
        return node

    def _present(self, node: ast.expr) -> ast.expr:
        """Of classes joined by ``|`` those that the specification has parts of."""
        if not isinstance(node, ast.BinOp):
            return node
        kept = []
        for side in (self._present(node.left), self._present(node.right)):
            known = self.scope.evaluate(side)
            named = classes_in(known.items[0]) if known is not None and known.items else []
            if not named or any(self.facts.of_class(cls) for cls in named):
                kept.append(side)
        return ast.BinOp(kept[0], ast.BitOr(), kept[1]) if len(kept) == 2 else kept[0] if kept else node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        return node


def _drop_comments(kept: list[ast.stmt]) -> None:
    while kept and is_comment(kept[-1]):
        kept.pop()


def without(block: list[ast.stmt], is_dropped: Callable[[ast.stmt], bool]) -> list[ast.stmt]:
    """A block without some of its statements, and without the comments before them."""
    kept: list[ast.stmt] = []
    for statement in block:
        if is_dropped(statement):
            _drop_comments(kept)
        else:
            kept.append(statement)
    return kept


def narrowed(statement: ast.stmt, is_unread: Callable[[ast.expr], bool]) -> bool:
    """Take out of ``a, b = x, y`` what nothing reads, where making it does nothing else."""
    pair = assigned(statement)
    if pair is None or not isinstance(statement, ast.Assign):
        return False
    target, value = pair
    if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts)):
        return False
    kept = [
        (to, part)
        for to, part in zip(target.elts, value.elts, strict=True)
        if not (is_unread(to) and _is_harmless(part))
    ]
    if len(kept) == len(target.elts) or not kept:
        return False
    target.elts, value.elts = [to for to, _ in kept], [part for _, part in kept]
    if len(kept) == 1:
        statement.targets, statement.value = [kept[0][0]], kept[0][1]
    return True


def _is_harmless(node: ast.expr) -> bool:
    """Whether evaluating an expression does nothing else; a method without arguments is taken for a question."""

    def acts(inner: ast.AST) -> bool:
        if isinstance(inner, ast.Call):
            return bool(inner.args or inner.keywords) or not isinstance(inner.func, ast.Attribute)
        return isinstance(inner, (ast.Await, ast.NamedExpr, ast.Yield))

    return not any(map(acts, ast.walk(node)))


def key_of(unit: Key, owner: Key | None, function: ast.FunctionDef) -> Key:
    """Under which key the parameters of a function are known: the constructor's under its class."""
    if owner is None or unit != owner:
        return unit
    return owner if function.name == "__init__" else Key(owner.module, f"{owner.name}.{function.name}")


def _drop_parameters(node: ast.FunctionDef, constants: dict[str, Any]) -> None:
    if not constants:
        return
    named = node.args
    defaults: list[ast.expr | None] = [None] * (len(named.args) - len(named.defaults))
    pairs = list(zip(named.args, [*defaults, *named.defaults], strict=True))
    kept = [(argument, default) for argument, default in pairs if argument.arg not in constants]
    named.args = [argument for argument, _ in kept]
    named.defaults = [default for _, default in kept if default is not None]
    if not is_documented(node.body[0]):
        return
    # What a docstring says of what is no longer there.
    text = ast.get_docstring(node, clean=False) or ""
    said = [part for part in text.split("\n\n") if not any(f"``{name}``" in part for name in constants)]
    if said and said[0] == text.split("\n\n")[0]:
        node.body[0] = ast.Expr(ast.Constant("\n\n".join(said)))


def called(where: str, scope: Scope, owner: Key | None, node: ast.Call) -> Key | None:
    """The function or class that a call is of, where it is one of ours."""
    function = node.func
    if owner is not None and ast.unparse(function) == "super().__init__":
        base = value_of(owner).__mro__[1]
        return Key(base.__module__, base.__name__) if base.__module__.startswith("runners") else None
    if isinstance(function, ast.Name) and function.id in scope.locals:
        return None
    if is_self(function) and owner is not None:
        for cls in value_of(owner).__mro__:
            if function.attr in vars(cls):
                return Key(cls.__module__, f"{cls.__name__}.{function.attr}")
        return None
    key = resolve_expression(where, function)
    return key if isinstance(key, Key) else None
