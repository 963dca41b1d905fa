"""The definitions that one specification's model needs, found and rewritten until nothing more can be left out."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_origin

import torch

from planner.components.strict import Strict
from planner.spec import ArchitectureSpec
from runners.export.fold import (
    Folder,
    assigned,
    called,
    is_documented,
    is_self,
    key_of,
    narrowed,
    scope_of,
    without,
)
from runners.export.signatures import defaults_of, returned_by, signature_of
from runners.export.source import External, Key, canonical, is_comment, member, module, resolve_expression, value_of
from runners.export.values import Facts, Instance, Known, Scope, classes_in, names_in

BUILD = Key("runners.models", "build")
NUMBERS = {Key("planner.quantities", "smallest"): "min", Key("planner.quantities", "largest"): "max"}
"""The planner's functions of numbers, arrays and symbols, and Python's own of numbers alone."""
DECODER = Key("runners.models.decoder", "Decoder")
FRAMEWORK = frozenset({"forward", "backward", "new_cache", "reset_special", "reset_parameters"})
"""Methods that others than their own class call."""
KEPT = frozenset({"ModelCache", "ModelOutput"})
"""Data classes whose members are for those who use the model."""


@dataclass
class Unit:
    """One definition: a function, a class, a constant, or a member of a class of the specification."""

    key: Key
    owner: Key | None
    body: list[ast.stmt]


@dataclass
class Place:
    """A piece of a unit in which names mean the same: a function or method, or what stands around them."""

    unit: Unit
    scope: Scope
    nodes: list[ast.AST]
    function: ast.FunctionDef | None
    annotations: set[int]
    """Nodes that stand in annotations, by identity."""

    @property
    def class_key(self) -> Key | None:
        """The class that the piece is part of, where it is one of the runners'."""
        return self.unit.key if isinstance(self.unit.body[0], ast.ClassDef) else None

    @property
    def key(self) -> Key:
        """Under which the parameters of the function are known."""
        return self.unit.key if self.function is None else key_of(self.unit.key, self.class_key, self.function)


def _places(unit: Unit, facts: Facts) -> Iterator[Place]:
    functions: list[ast.FunctionDef] = []
    around: list[ast.AST] = []
    owner = unit.owner
    for statement in unit.body:
        if isinstance(statement, ast.FunctionDef):
            functions.append(statement)
        elif isinstance(statement, ast.ClassDef):
            owner = unit.key
            functions += [inner for inner in statement.body if isinstance(inner, ast.FunctionDef)]
            rest = [inner for inner in statement.body if not isinstance(inner, ast.FunctionDef)]
            around += [node for part in (*statement.bases, *statement.decorator_list, *rest) for node in ast.walk(part)]
        else:
            around += list(ast.walk(statement))
    yield Place(unit, Scope(unit.key.module, owner, facts), around, None, _annotated(around))
    for function in functions:
        nodes = list(ast.walk(function))
        yield Place(unit, scope_of(unit.key.module, owner, function, facts), nodes, function, _annotated(nodes))


def _annotated(nodes: list[ast.AST]) -> set[int]:
    found: set[int] = set()
    for node in nodes:
        for name in ("annotation", "returns"):
            annotation = getattr(node, name, None)
            if isinstance(annotation, ast.AST):
                found |= {id(inner) for inner in ast.walk(annotation)}
    return found


@dataclass
class Scan:
    """What a unit names and reads, as long as neither it nor what is known of that has changed."""

    needed: list[Key] = field(default_factory=list)
    named: set[Key] = field(default_factory=set)
    reads: set[tuple[type, str]] = field(default_factory=set)
    externals: set[External] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    """Names of attributes that are read, of anything but the specification."""


@dataclass
class Program:
    """What is written out."""

    spec: ArchitectureSpec
    templates: dict[Key, ast.FunctionDef]
    """Definitions that stand in place of those of the source."""
    imports: dict[str, Key]
    """What the names in templates mean."""
    facts: Facts
    dropped_calls: frozenset[Key]
    units: dict[Key, Unit] = field(default_factory=dict)
    live: list[Key] = field(default_factory=list)
    """The definitions that are needed, each after those that it names."""
    cached: dict[Key, list[Place]] = field(default_factory=dict)
    scans: dict[Key, Scan] = field(default_factory=dict)
    reads: dict[type, set[str]] = field(default_factory=dict)
    """Fields and members of the specification's classes that are read."""
    externals: set[External] = field(default_factory=set)

    def resolve(self, where: str, node: ast.expr) -> Key | External | None:
        """What a name means, in templates too."""
        if isinstance(node, ast.Name) and node.id in self.imports:
            return self.imports[node.id]
        return resolve_expression(where, node)

    def unit(self, key: Key) -> Unit:
        """The definition of a name, copied from its source when first asked for."""
        if key not in self.units:
            owner: Key | None = None
            if key in self.templates:
                body: list[ast.stmt] = [self.templates[key]]
            elif "." in key.name:
                owner = Key(key.module, key.name.partition(".")[0])
                found = member(value_of(owner), key.name.partition(".")[2])
                assert found is not None, key
                body = found[1]
            else:
                body = module(key.module).definitions[key.name]
            copied = copy.deepcopy(body)
            for statement in copied:
                if isinstance(statement, ast.FunctionDef):
                    statement.decorator_list = [
                        decorator for decorator in statement.decorator_list if "custom_op" not in ast.unparse(decorator)
                    ]
            self.units[key] = Unit(key, owner, copied)
        return self.units[key]

    # What is needed

    def find_live(self) -> None:
        """Follow names and reads from the function that builds the model."""
        self.live, self.reads, self.externals = [], {}, set()
        visited: set[Key] = set()

        def visit(key: Key) -> None:
            if key in visited or key in NUMBERS:
                return
            visited.add(key)
            scan = self.scan(key)
            for needed in scan.needed:
                visit(needed)
            for cls, name in scan.reads:
                self.reads.setdefault(cls, set()).add(name)
            self.externals |= scan.externals
            self.live.append(key)

        visit(BUILD)

    def scan(self, key: Key) -> Scan:
        """What a unit names and reads."""
        if key not in self.scans:
            scan = self.scans[key] = Scan()
            for place in self.places_of(self.unit(key)):
                for node in place.nodes:
                    if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
                        self._named(scan, place, node)
                    self._read(scan, place, node)
        return self.scans[key]

    def _named(self, scan: Scan, place: Place, node: ast.Name | ast.Attribute) -> None:
        base = node.value if isinstance(node, ast.Attribute) else node
        if isinstance(base, ast.Name) and base.id in place.scope.locals and id(node) not in place.annotations:
            return
        found = self.resolve(place.unit.key.module, node)
        if isinstance(found, External):
            if found.module.partition(".")[0] not in ("planner", "runners"):
                scan.externals.add(found)
        elif found is not None:
            made = value_of(found)
            is_part = isinstance(made, type) and issubclass(made, Strict)
            if not is_part and not (id(node) in place.annotations and is_alias(made)):
                scan.needed.append(canonical(found))
                scan.named.add(canonical(found))

    def _read(self, scan: Scan, place: Place, node: ast.AST) -> None:
        """Fields and members of the specification that an expression reads, and attributes of others."""
        names: list[str] = []
        base: Known | None = None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            scan.attributes.add(node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names, base = [node.attr], place.scope.evaluate(node.value)
            if base is None or not all(isinstance(item, Strict) for item in base.items):
                scan.attributes.add(node.attr)
            if base is None and _is_of_local(node, place.scope):
                # It may be a part of the specification.
                scan.reads |= {(cls, node.attr) for cls in self.facts.instances if node.attr in fields_of(cls)}
        elif isinstance(node, ast.MatchClass):
            key = self.resolve(place.unit.key.module, node.cls)
            made = value_of(key) if isinstance(key, Key) else None
            if isinstance(made, type) and issubclass(made, Strict):
                names, base = list(node.kwd_attrs), Known(None, self.facts.of_class(made))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            base = place.scope.evaluate(node.args[0])
            pattern = _pattern(node.args[1])
            held = {name for item in base.items for name in fields_of(type(item))} if base is not None else set()
            names = [name for name in held if re.fullmatch(pattern, name)]
        for cls in {type(item) for item in base.items} if base is not None else ():
            for name in names if cls in self.facts.instances else ():
                found = member(cls, name)
                if found is None:
                    continue
                scan.reads.add((cls, name))
                if name not in fields_of(cls):
                    scan.needed.append(found[0])
                    scan.named.add(found[0])

    # What is known

    def places_of(self, unit: Unit) -> list[Place]:
        """The pieces of a unit, as long as neither it nor what is known has changed."""
        if unit.key not in self.cached:
            self.cached[unit.key] = list(_places(unit, self.facts))
        return self.cached[unit.key]

    def find_facts(self) -> set[Key]:
        """Parameters and attributes that have one value, and names of options that occur; what is new of which."""
        strings = self.facts.strings
        before: tuple[dict[Key, Any], ...] = (
            *(self.facts.parameters, self.facts.attributes),
            *(self.facts.erased, self.facts.returns),
        )
        places = [place for key in self.live for place in self.places_of(self.unit(key))]
        self.facts.strings = frozenset(self._strings(places))
        self._find_parameters(places)
        self._find_attributes(places)
        self.facts.returns = {
            key: result for key in self.live if (result := returned_by(self.unit(key).body[0])) is not None
        }
        if strings != self.facts.strings:
            return set(self.live)
        after: tuple[dict[Key, Any], ...] = (
            *(self.facts.parameters, self.facts.attributes),
            *(self.facts.erased, self.facts.returns),
        )
        changed = {
            key
            for old, new in zip(before, after, strict=True)
            for key in old.keys() | new.keys()
            if _shown(old.get(key)) != _shown(new.get(key))
        }
        return {Key(key.module, key.name.partition(".")[0]) for key in changed} | changed

    def _strings(self, places: list[Place]) -> Iterator[str]:
        def inside(data: Any) -> Iterator[str]:
            if isinstance(data, str):
                yield data
            for inner in data.values() if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else ():
                yield from inside(inner)

        yield from inside(self.spec.model_dump())
        for place in places:
            compared = {
                id(inner)
                for node in place.nodes
                if isinstance(node, (ast.Compare, ast.MatchValue)) or (isinstance(node, ast.stmt) and _is_text(node))
                for inner in ast.walk(node)
            }
            for node in place.nodes:
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in compared:
                    yield node.value

    def _find_parameters(self, places: list[Place]) -> None:
        self.facts.signatures = dict(self._signatures())
        found: dict[Key, dict[str, list[ast.Constant | None]]] = {
            key: {name: [] for name in names} for key, names in self.facts.signatures.items()
        }

        def give_up(key: Key) -> None:
            found[key] = {name: [None] for name in found[key]}

        for key in self._public():
            if key in found:
                give_up(key)
        for place in places:
            settled: set[int] = set()
            for node in place.nodes:
                if not isinstance(node, ast.Call):
                    continue
                called_key = called(place.unit.key.module, place.scope, place.class_key, node)
                if called_key is not None:
                    settled.add(id(node.func))
                if called_key in found:
                    self._call(place, node, called_key, found[called_key])
                elif ast.unparse(node.func) == "replace":
                    base = place.scope.evaluate(node.args[0])
                    for item in base.items if base is not None else ():
                        for keyword in node.keywords:
                            if isinstance(item, Instance) and keyword.arg in found.get(item.key, {}):
                                found[item.key][str(keyword.arg)].append(None)
                elif ast.unparse(node.func) == "isinstance":
                    settled |= {id(inner) for inner in ast.walk(node.args[1])}
            # The bases of a class and the parameters of a type make nothing.
            is_head = place.function is None and (
                isinstance(place.unit.body[0], ast.ClassDef) or get_origin(value_of(place.unit.key)) is not None
            )
            for node in place.nodes:
                if id(node) in settled or id(node) in place.annotations or is_head:
                    continue
                # What is handed on is called by somebody else, with what is not known.
                if isinstance(node, ast.Name) and node.id not in place.scope.locals:
                    handed_on = self.resolve(place.unit.key.module, node)
                    if isinstance(handed_on, Key) and handed_on in found:
                        give_up(handed_on)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    for key in found:
                        if key.name.endswith(f".{node.attr}"):
                            give_up(key)
        parameters: dict[Key, dict[str, ast.Constant]] = {BUILD: {"kernels": ast.Constant("reference")}}
        if "kernels" not in found.get(BUILD, {}):
            parameters = {}
        for key, named in found.items():
            for name, values in named.items():
                first = values[0] if values else None
                if first is not None and all(value is not None and value.value == first.value for value in values):
                    parameters.setdefault(key, {})[name] = first
        self.facts.parameters = parameters

    def _signatures(self) -> Iterator[tuple[Key, list[str]]]:
        """Parameters of what can be called: functions, classes, and methods that no class overrides."""
        methods: dict[str, list[tuple[Key, ast.FunctionDef]]] = {}
        for key in self.live:
            node = self.unit(key).body[0]
            names = signature_of(node)
            if names is not None:
                yield key, names
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and not method.decorator_list:
                    methods.setdefault(method.name, []).append((key, method))
        for name, defined in methods.items():
            if name.startswith("__") or name in FRAMEWORK:
                continue
            for key, method in defined:
                cls = value_of(key)
                if key != DECODER and sum(_related(cls, value_of(other)) for other, _ in defined) == 1:
                    parameters = signature_of(method)
                    if parameters is not None:
                        yield Key(key.module, f"{key.name}.{name}"), parameters[1:]

    def _public(self) -> Iterator[Key]:
        """What users of the model make or get: the classes that its methods speak of."""
        for place in self.places_of(self.unit(DECODER)):
            for node in place.nodes:
                if isinstance(node, ast.Name) and id(node) in place.annotations:
                    key = self.resolve(DECODER.module, node)
                    if isinstance(key, Key):
                        yield key

    def _call(self, place: Place, node: ast.Call, key: Key, found: dict[str, list[ast.Constant | None]]) -> None:
        names = self.facts.signatures[key]
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if starred or any(keyword.arg is None for keyword in node.keywords):
            for name in names:
                found[name].append(None)
            return
        given: dict[str, ast.expr] = dict(zip(names, node.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        defaults = defaults_of(self.unit(key).body[0])
        for name in names:
            argument = given.get(name, defaults.get(name))
            is_own = isinstance(argument, ast.Name) and argument.id == name and place.key == key
            if is_own and place.function is not None and name in given:
                continue  # what it was given it hands to itself
            known = place.scope.evaluate(argument) if argument is not None else None
            found[name].append(None if known is None else known.constant)

    def _find_attributes(self, places: list[Place]) -> None:
        stored: dict[str, list[tuple[Key, Place, ast.expr | None]]] = {}
        elsewhere: set[str] = set()
        loaded: set[str] = set()
        for place in places:
            owner = place.unit.key if isinstance(place.unit.body[0], ast.ClassDef) else None
            for node in place.nodes:
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not is_self(node):
                    loaded.add(node.attr)
                elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and not is_self(node):
                    elsewhere.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    loaded.add(node.value)
                if not isinstance(node, ast.stmt) or owner is None or place.function is None:
                    continue
                if isinstance(node, (ast.AugAssign, ast.AnnAssign)) and is_self(node.target):
                    value = node.value if isinstance(node, ast.AnnAssign) else None
                    stored.setdefault(node.target.attr, []).append((owner, place, value))
                elif (pair := assigned(node)) is not None:
                    target, made = pair
                    parts = list(target.elts) if isinstance(target, ast.Tuple) else [target]
                    is_split = isinstance(target, ast.Tuple) and isinstance(made, ast.Tuple)
                    values = list(made.elts) if is_split and isinstance(made, ast.Tuple) else [made] * len(parts)
                    for part, held in zip(parts, values, strict=True):
                        if is_self(part):
                            single = None if isinstance(target, ast.Tuple) and not is_split else held
                            stored.setdefault(part.attr, []).append((owner, place, single))
        attributes: dict[Key, dict[str, Known]] = {}
        erased: dict[Key, set[str]] = {}
        classes = {key: value_of(key) for key in self.live if isinstance(self.unit(key).body[0], ast.ClassDef)}
        for name, entries in stored.items():
            if name in elsewhere:
                continue
            for key, cls in classes.items():
                own = [entry for entry in entries if _related(cls, classes[entry[0]])]
                evaluated = [by.scope.evaluate(stored_value) for _, by, stored_value in own if stored_value is not None]
                known = [found for found in evaluated if found is not None]
                if not own or len(known) != len(own):
                    continue
                if len(own) > 1:  # of a class whose subclasses each set it
                    items = tuple(item for found in known for item in found.items)
                    attributes.setdefault(key, {})[name] = Known((key, name), items)
                    continue
                attributes.setdefault(key, {})[name] = known[0]
                if isinstance(own[0][2], ast.Constant) and known[0].constant is not None and name not in loaded:
                    erased.setdefault(key, set()).add(name)
        self.facts.attributes = attributes
        self.facts.erased = {key: frozenset(names) for key, names in erased.items()}

    # Rewriting

    def fold(self, keys: Iterable[Key]) -> set[Key]:
        """Rewrite definitions by what is known; gives those that changed."""
        changed = set()
        for key in keys:
            unit = self.unit(key)
            before = [ast.dump(statement) for statement in unit.body]
            is_class = isinstance(unit.body[0], ast.ClassDef)
            folder = Folder(key, key if is_class else unit.owner, self.facts, self.dropped_calls)
            unit.body = [
                folder.visit(statement) if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else statement
                for statement in unit.body
            ]
            if before != [ast.dump(statement) for statement in unit.body]:
                changed.add(key)
        return changed

    def leave_out_unread(self) -> set[Key]:
        """Leave out attributes that nothing reads, and methods that nothing calls and that are for nobody else."""
        read = {name for key in self.live for name in self.scan(key).attributes}
        changed = set()
        for key in self.live:
            node = self.unit(key).body[0]
            if not isinstance(node, ast.ClassDef):
                continue
            before = ast.dump(node)
            made = value_of(key)
            is_framework = issubclass(made, (torch.nn.Module, torch.autograd.Function)) or key.name in KEPT
            node.body = [
                statement
                for statement in node.body
                if not isinstance(statement, ast.FunctionDef)
                or statement.name in read
                or statement.name.startswith("__")
                or (is_framework and not statement.name.startswith("_"))
            ]
            for inner in ast.walk(node):
                for name in ("body", "orelse"):
                    block = getattr(inner, name, None)
                    if isinstance(block, list) and any(_is_unread(statement, read) for statement in block):
                        kept = without(block, lambda statement: _is_unread(statement, read))
                        setattr(inner, name, kept or ([ast.Pass()] if name == "body" else []))
                    for statement in block if isinstance(block, list) else ():
                        narrowed(statement, lambda target: is_self(target) and target.attr not in read)
            if before != ast.dump(node):
                changed.add(key)
        return changed

    def shrink(self) -> None:
        """Find and rewrite until nothing changes: first what a change concerns, at last everything once more."""
        changed: set[Key] = set()
        is_whole = True
        while True:
            self.find_live()
            new = self.find_facts()
            concerned = [
                key for key in self.live if is_whole or key in changed or key in new or new & self.scan(key).named
            ]
            self._forget(concerned)
            changed = self.fold(concerned)
            self.find_live()
            changed |= self.leave_out_unread()
            self._forget(changed)
            if not changed and is_whole:
                break
            is_whole = not changed

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.cached.pop(key, None)
            self.scans.pop(key, None)


def _shown(facts: Any) -> Any:
    """Facts so that they compare by what they say."""
    if isinstance(facts, ast.AST):
        return ast.dump(facts)
    if isinstance(facts, dict):
        return {name: ast.dump(value) if isinstance(value, ast.AST) else value for name, value in facts.items()}
    return facts


def _is_of_local(node: ast.Attribute, scope: Scope) -> bool:
    """Whether an attribute is, in the end, one of a local name's."""
    root: ast.expr = node
    while isinstance(root, (ast.Attribute, ast.Call, ast.Subscript)):
        root = root.func if isinstance(root, ast.Call) else root.value
    return isinstance(root, ast.Name) and root.id in scope.locals and root.id != "self"


def _related(first: type, second: type) -> bool:
    return first in second.__mro__ or second in first.__mro__


def _is_text(statement: ast.stmt) -> bool:
    return is_comment(statement) or is_documented(statement)


def _is_unread(statement: ast.stmt, read: set[str]) -> bool:
    pair = assigned(statement)
    if pair is None or any(isinstance(inner, ast.Call) for inner in ast.walk(pair[1])):
        return False
    return is_self(pair[0]) and pair[0].attr not in read


def is_alias(made: Any) -> bool:
    """Whether an object is a name for what an annotation may say, in terms of the specification."""
    return made is Any or bool(names_in(made)) or (get_origin(made) is not None and bool(classes_in(made)))


def fields_of(cls: type) -> list[str]:
    """Names of the fields of a class of the specification."""
    return list(cls.model_fields) if issubclass(cls, Strict) else []


def _pattern(node: ast.expr) -> str:
    """A regular expression for the names that an expression makes."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in node.values)
    return ".*"
