"""The file: configuration classes, the model's definitions, the configuration itself, and a function that builds it."""

from __future__ import annotations

import ast
import copy
import importlib
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import torch

from planner.components import Component
from planner.components.strict import Strict
from planner.errors import UnsupportedPlan
from planner.sizing import size
from planner.spec import ArchitectureSpec
from runners.export.fold import local_names
from runners.export.program import BUILD, NUMBERS, Program, fields_of, is_alias
from runners.export.source import COMMENT, External, Key, member, value_of
from runners.export.values import Facts, classes_in, names_in

TWIN = Key("runners.models.decoder", "twin")
IN_FLOAT32 = Key("runners.models", "_keep_in_float32")
CONFIG = "CONFIG"


def export_pytorch(spec: ArchitectureSpec) -> str:
    """The source text of a Python file that needs PyTorch alone and holds the model of ``spec``.

    Its ``build()`` makes the model of :func:`runners.models.build` with reference kernels: the same names and shapes of
    tensors, the same initialization from a seed, the same logits, with a cache and without. It is written from the
    sources of that model: options that the specification does not use are left out, with all that only they need.

    Raises
    ------
    UnsupportedPlan
        where a field holds no plain number, or a component's module needs more than PyTorch.
    """
    facts = Facts({cls: tuple(items) for cls, items in _parts(spec).items()})
    program = _program(spec, facts)
    program.shrink()
    return _formatted(_Writer(program).text())


def _parts(spec: ArchitectureSpec) -> dict[type, list[Any]]:
    """The parts of a specification by class, each different one once."""
    found: dict[type, list[Any]] = {}

    def visit(part: Any, path: str) -> None:
        if isinstance(part, Strict):
            held = found.setdefault(type(part), [])
            if part not in held:
                held.append(part)
            for name in fields_of(type(part)):
                visit(getattr(part, name), f"{path}.{name}" if path else name)
        elif isinstance(part, (tuple, list)):
            for index, inner in enumerate(part):
                visit(inner, f"{path}[{index}]")
        elif not (part is None or isinstance(part, (bool, int, str)) or (type(part) is float and math.isfinite(part))):
            raise UnsupportedPlan.of(
                f"{part!r} is no plain number.",
                path=path,
                remedy="Export a specification in numbers.",
                code="not_a_number",
            )

    visit(spec, "")
    return found


def _program(spec: ArchitectureSpec, facts: Facts) -> Program:
    """The program before anything is left out. Two definitions that read the planner's lists are given anew."""
    imports: dict[str, Key] = {}
    entries: list[str] = []
    for cls in facts.instances:
        stem = cls.__module__.rpartition(".")[2]
        twins = importlib.import_module(f"runners.models.{stem}") if issubclass(cls, Component) else None
        made = getattr(twins, cls.__name__, None)
        if isinstance(made, type) and issubclass(made, torch.nn.Module) and stem != "norms":
            imports[f"_config_{cls.__name__}"] = Key(cls.__module__, cls.__name__)
            imports[f"_module_{cls.__name__}"] = Key(made.__module__, made.__name__)
            entries.append(f"_config_{cls.__name__}: _module_{cls.__name__}")
    names = _float32_names(spec)
    templates = {
        TWIN: f'''
def twin(component: Any, context: BuildContext) -> nn.Module:
    """The module of a component's configuration."""
    modules = {{{", ".join(entries)}}}
    return modules[type(component)](component, context)
''',
        IN_FLOAT32: f'''
def _keep_in_float32(model: Decoder) -> None:
    """Decay rates, skips and biases of time steps stay in full precision."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith({names!r}):
            tensor.data = tensor.data.float()
''',
    }
    parsed = {key: ast.parse(text).body[0] for key, text in templates.items()}
    functions = {key: node for key, node in parsed.items() if isinstance(node, ast.FunctionDef)}
    return Program(spec, functions, imports, facts, frozenset() if names else frozenset({IN_FLOAT32}))


def _float32_names(spec: ArchitectureSpec) -> tuple[str, ...]:
    """How the names of tensors end that stay in fp32, and of no others."""
    sized = size(spec)
    tensors = [*sized.tensors, *sized.buffers]
    kept = {tensor.name for tensor in tensors if tensor.dtype_class == "float32"}
    endings = tuple(sorted({f".{name.rpartition('.')[2]}" for name in kept}))
    others = [tensor.name for tensor in tensors if tensor.name not in kept and tensor.name.endswith(endings)]
    return endings if not others else tuple(sorted(kept))


class _Renamer(ast.NodeTransformer):
    """Names as they are in the file: of the specification's classes, and of what two modules both define."""

    def __init__(self, writer: _Writer, where: str) -> None:
        self.writer, self.where = writer, where
        self.locals: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        outer = self.locals
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            if argument.annotation is not None:
                argument.annotation = self.writer.annotation(self.where, argument.annotation, self)
        for variable in (node.args.vararg, node.args.kwarg):
            if variable is not None and variable.annotation is not None:
                variable.annotation = self.writer.annotation(self.where, variable.annotation, self)
        if node.returns is not None:
            node.returns = self.writer.annotation(self.where, node.returns, self)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.args.defaults = [self.visit(default) for default in node.args.defaults]
        self.locals = outer | local_names(node)
        node.body = [self.visit(statement) for statement in node.body]
        self.locals = outer
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = self.writer.annotation(self.where, node.annotation, self)
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def _renamed(self, node: ast.Name | ast.Attribute) -> ast.expr | None:
        found = self.writer.program.resolve(self.where, node)
        return ast.Name(self.writer.name(found), ast.Load()) if isinstance(found, Key) else None

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.locals:
            return node
        return self._renamed(node) or node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        base = node.value
        if not (isinstance(base, ast.Name) and base.id in self.locals):
            renamed = self._renamed(node)
            if renamed is not None:
                return renamed
        self.generic_visit(node)
        return node


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[Key, str] = {}
        taken: set[str] = {CONFIG, *(self._class_name(cls) for cls in program.facts.instances)}
        for key in program.live:
            if "." in key.name:
                continue
            for name in self._bound(key):
                known = name
                if name in taken:
                    stem = key.module.rpartition(".")[2]
                    known = f"{stem.upper()}_{name}" if name.isupper() else f"{name}_of_{stem}"
                self.names[Key(key.module, name)] = known
                taken.add(known)

    def _bound(self, key: Key) -> list[str]:
        """All names that a definition binds."""
        node = self.program.unit(key).body[0]
        if isinstance(node, ast.Assign):
            return [inner.id for inner in ast.walk(node.targets[0]) if isinstance(inner, ast.Name)]
        return [key.name]

    @staticmethod
    def _class_name(cls: type) -> str:
        return f"{cls.__name__}Config" if issubclass(cls, Component) else cls.__name__

    def name(self, key: Key) -> str:
        """What a definition is called in the file."""
        if key in NUMBERS:
            return NUMBERS[key]
        made = value_of(key)
        if isinstance(made, type) and issubclass(made, Strict):
            if made not in self.program.facts.instances:
                raise UnsupportedPlan.of(
                    f"The model's source needs {made.__name__}, of which the specification has none.",
                    remedy="Choose other components.",
                    code="not_in_the_specification",
                )
            return self._class_name(made)
        return self.names.get(key, key.name)

    def annotation(self, where: str, node: ast.expr, renamer: _Renamer) -> ast.expr:
        """An annotation in terms of what the file has."""
        if isinstance(node, ast.BinOp):
            sides = [self.annotation(where, side, renamer) for side in (node.left, node.right)]
            kept = [side for side in sides if not (isinstance(side, ast.Name) and side.id == "Never")]
            if len(kept) == 2 and ast.dump(kept[0]) == ast.dump(kept[1]):
                kept = kept[:1]
            return (
                ast.BinOp(kept[0], ast.BitOr(), kept[1])
                if len(kept) == 2
                else [*kept, ast.Name("Never", ast.Load())][0]
            )
        found = self.program.resolve(where, node) if isinstance(node, (ast.Name, ast.Attribute)) else None
        if isinstance(found, Key):
            made = value_of(found)
            if is_alias(made) or (isinstance(made, type) and issubclass(made, Strict)):
                return self._meant(made)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            return ast.Name("str", ast.Load())
        made_of: ast.expr = renamer.visit(node) if not isinstance(node, ast.Subscript) else node
        if isinstance(node, ast.Subscript):
            node.value = renamer.visit(node.value)
            node.slice = self.annotation(where, node.slice, renamer)
        elif isinstance(node, ast.Tuple):
            node.elts = [self.annotation(where, element, renamer) for element in node.elts]
        return made_of

    def _meant(self, made: Any) -> ast.expr:
        if made is Any:
            return ast.Name("int", ast.Load())
        classes = sorted(
            {
                self._class_name(kind)
                for cls in classes_in(made)
                for kind in self.program.facts.instances
                if issubclass(kind, cls)
            }
        )
        names = [*classes, *(["str"] if names_in(made) else [])]
        if type(None) in get_args(made):
            names.append("None")
        return ast.parse(" | ".join(names) or "Never", mode="eval").body

    # Parts of the file

    def text(self) -> str:
        """The whole file, not laid out yet."""
        configuration = [node for cls in self._ordered() for node in self._config_class(cls)]
        definitions: list[ast.stmt] = []
        build: list[ast.stmt] = []
        for key in self.program.live:
            if "." in key.name:
                continue
            into = build if key == BUILD else definitions
            into += self._renamed(key)
        (function,) = build
        assert isinstance(function, ast.FunctionDef)
        function.args.defaults.insert(0, ast.Name(CONFIG, ast.Load()))
        value = self._value(self.program.spec)
        config = ast.parse(f"{CONFIG} = {value}").body
        body = [*configuration, *definitions, *config, function]
        used = {inner.id for node in body for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        written = "\n".join(ast.unparse(ast.fix_missing_locations(node)) for node in body)
        written = re.sub(r":(?:mod|func|class):`~?(?:[\w.]+\.)?(\w+)`", r"``\1``", written)
        return f"{self._head()}\n{self._imports(used)}\n{_tidied(written)}\n"

    def _head(self) -> str:
        shown = "".join(letter if letter.isprintable() else " " for letter in self.program.spec.name)
        name = shown.replace("\\", "/").replace('"', "'").strip() or "untitled"
        return f'''"""{name}: a language model in plain PyTorch.

``build()`` makes it. Branches that this configuration does not take were left out: sizes in ``{CONFIG}`` may be
changed, while another choice of options is another file.
"""

from __future__ import annotations
'''

    def _imports(self, used: set[str]) -> str:
        lines: set[tuple[int, int, str]] = set()
        grouped: dict[str, set[str]] = {}
        for module, name, bound in self.program.externals | self._member_imports():
            root = module.partition(".")[0]
            if root != "torch" and root not in sys.stdlib_module_names:
                raise UnsupportedPlan.of(
                    f"The model's source needs {root}, and an exported file may need PyTorch alone.",
                    remedy="Choose other components.",
                    code="needs_a_package",
                )
            if bound not in used and bound.partition(".")[0] not in used:
                continue
            if name is None:
                alias = f" as {bound}" if bound != module else ""
                lines.add((root == "torch", 0, f"import {module}{alias}"))
            else:
                grouped.setdefault(module, set()).add(name if name == bound else f"{name} as {bound}")
        for module, names in grouped.items():
            ordered = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
            lines.add((module.partition(".")[0] == "torch", 1, f"from {module} import {', '.join(ordered)}"))
        text = [line for is_torch, _, line in sorted(lines) if not is_torch]
        return "\n".join([*text, "", *(line for is_torch, _, line in sorted(lines) if is_torch), ""])

    @staticmethod
    def _member_imports() -> set[External]:
        """What the configuration's classes and their annotations are written with."""
        typing = ("Any", "ClassVar", "Never")
        return {
            External("dataclasses", "dataclass", "dataclass"),
            *(External("typing", name, name) for name in typing),
        }

    def _renamed(self, key: Key) -> list[ast.stmt]:
        renamer = _Renamer(self, key.module)
        made: list[ast.stmt] = [renamer.visit(copy.deepcopy(node)) for node in self.program.unit(key).body]
        first = made[0]
        if isinstance(first, (ast.FunctionDef, ast.ClassDef)) and "." not in key.name:
            first.name = self.names[key]
        return made

    def _ordered(self) -> Iterator[type]:
        """The configuration's classes that are read or held by such, the innermost first."""
        done: list[type] = []

        def visit(part: Any) -> None:
            if isinstance(part, Strict):
                for name in self._fields(type(part)):
                    visit(getattr(part, name))
                if type(part) not in done:
                    done.append(type(part))
            elif isinstance(part, tuple):
                for inner in part:
                    visit(inner)

        visit(self.program.spec)
        return iter(done)

    def _fields(self, cls: type) -> list[str]:
        return [name for name in fields_of(cls) if name in self.program.reads.get(cls, ())]

    def _config_class(self, cls: type) -> Iterator[ast.stmt]:
        """A class of the specification as a plain data class, of the fields and members that the model reads."""
        made = ast.parse(f"@dataclass(frozen=True, kw_only=True)\nclass {self._class_name(cls)}:\n    pass").body[0]
        assert isinstance(made, ast.ClassDef)
        body: list[ast.stmt] = []
        if cls.__doc__:
            body.append(ast.Expr(ast.Constant(cls.__doc__)))
        read = self.program.reads.get(cls, set())
        members = [name for name in read if name not in fields_of(cls)]
        found = {name: defined for name in read if (defined := member(cls, name)) is not None}
        for name in [*self._fields(cls), *sorted(members, key=lambda name: found[name][1][0].lineno)]:
            key, statements = found[name]
            if name in members:
                body += self._renamed(key)
                continue
            field = copy.deepcopy(statements)
            assert isinstance(field[0], ast.AnnAssign)
            field[0].value = None
            body += [_Renamer(self, key.module).visit(statement) for statement in field]
        made.body = body or [ast.Pass()]
        yield made

    def _value(self, part: Any) -> str:
        """A part of the specification as an expression."""
        if isinstance(part, Strict):
            fields = [f"{name}={self._value(getattr(part, name))}" for name in self._fields(type(part))]
            return f"{self._class_name(type(part))}({', '.join(fields)})"
        if isinstance(part, tuple):
            return f"({', '.join(map(self._value, part))}{',' if len(part) == 1 else ''})"
        return repr(part)


def _tidied(text: str) -> str:
    """Statements that stand for comments as comments, texts in three quotes, and no parentheses but those needed."""
    lines = []
    for line in text.splitlines():
        bare = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if re.fullmatch(r"""(['"]).+\1""", bare) and not bare.startswith(('"""', "'''")):
            value = ast.literal_eval(bare)
            if value.startswith(COMMENT):
                line = indent + value.removeprefix(COMMENT)
            else:
                line = indent + '"""' + value.replace("\\", "\\\\") + '"""'
        elif "(" in bare:
            line = indent + _bare(bare)
        lines.append(line)
    return "\n".join(lines)


def _parsed(line: str) -> str | None:
    """The tree of a line that is a statement, or the head of one."""
    for text in (line, f"{line} pass", f"if True: pass\n{line} pass"):
        try:
            with warnings.catch_warnings(action="ignore"):
                return ast.dump(ast.parse(text))
        except SyntaxError:
            continue
    return None


def _bare(line: str) -> str:
    """A line without parentheses that change nothing: ``a, b = (c, d)``, ``tuple((x for x in y))``."""
    tree = _parsed(line)
    if tree is None:
        return line
    start = 0
    while (start := line.find("(", start)) >= 0:
        depth = 0
        for end in range(start, len(line)):
            depth += (line[end] == "(") - (line[end] == ")")
            if depth == 0:
                shorter = f"{line[:start]}{line[start + 1 : end]}{line[end + 1 :]}"
                if _parsed(shorter) == tree:
                    line, start = shorter, start - 1
                break
        start += 1
    return line


def _formatted(text: str) -> str:
    """The text as ruff lays it out."""
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "120", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedPlan.of(
            f"The file could not be laid out by ruff: {done.stderr.strip().splitlines()[-1]}",
            remedy="Install the packages of requirements.txt.",
            code="not_laid_out",
        )
    return done.stdout
