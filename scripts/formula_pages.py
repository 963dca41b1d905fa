"""Formula pages of the planner's components, written from the code's own symbolic reading.

    python -m scripts.formula_pages           writes docs/planner/formulas
    python -m scripts.formula_pages --check   exit status 1 where the pages there differ from what would be written

Components are found in the unions of ``planner.components``; an example of each is made from its own fields, with 8 in
each size that it needs. What its options change is found by setting each of them, and comparing.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import sympy
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from planner.activations import outer_activations
from planner.components import ChannelMixer, Component, Norm, SavedTensor, SequenceMixer, kinds_of
from planner.compute import outer_operations
from planner.sizing import outer_tensors
from planner.spec import ArchitectureSpec, parse_spec
from planner.symbolic import symbolic_fields
from planner.terms import plain_text

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "planner" / "formulas"
SIZE = 8
"""Every size of an example: all divide each other, and in formulas each is a symbol of its own."""
UNIONS = {"Sequence mixers": SequenceMixer, "Channel mixers": ChannelMixer, "Norms": Norm}
HIDDEN, LENGTH, BATCH = (sympy.Symbol(name, integer=True, positive=True) for name in "hTB")
INPUTS = {
    HIDDEN: "`hidden_size`: channels of the residual stream",
    LENGTH: "`sequence_length`: tokens of a sequence; of the cache `context_length`: those that were read or generated",
    BATCH: "`batch_size`: sequences",
}
TYPES = {
    "compute": "compute",
    "residual": "residual",
    "copy": "copy of weights",
}
"""What the classes of saved tensors are called, where it is not the type's own name."""


def text(expression: Any) -> str:
    """A formula on one line."""
    return plain_text(str(sympy.factor_terms(sympy.sympify(expression))))


# --- examples: one of each component, and one for each of its options ---


def _choices(annotation: Any) -> Iterator[Any]:
    """Values that a field of this type may have: a size, a flag, a word, a component."""
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for member in get_args(annotation):
            yield from _choices(member)
    elif origin is typing.Annotated:
        yield from _choices(get_args(annotation)[0])
    elif origin is Literal:
        yield from get_args(annotation)
    elif annotation is bool:
        yield from (False, True)
    elif annotation is int:
        yield SIZE
    elif annotation is float:
        yield 0.5
    elif inspect.isclass(annotation) and issubclass(annotation, Component):
        yield example(annotation)


def _annotation(component: type[Component], name: str) -> Any:
    """The type of a field, with names that stand for it (``SingleMixer``) in place."""
    field = component.model_fields[name].annotation
    if "ForwardRef" in repr(field):
        import planner.components

        field = typing.get_type_hints(component, vars(planner.components))[name]
    return field


def example(component: type[Component]) -> Component:
    """The component with nothing but what it needs."""
    needed = [name for name, field in component.model_fields.items() if field.is_required()]
    return component(**{name: next(_choices(_annotation(component, name))) for name in needed})


@dataclass(frozen=True, slots=True)
class Option:
    """A field at another value than its default."""

    words: str
    made: Component
    plain: Component
    """What it is compared with: the example, or the example with the field that it needs."""


def _with(component: Component, **changed: Any) -> Component | None:
    """The component with other fields, or ``None`` where it refuses them."""
    values = {name: getattr(component, name) for name in component.model_fields_set} | changed
    try:
        return type(component)(**values)
    except ValidationError:
        return None


def _optional_fields(component: type[Component]) -> Iterator[tuple[str, Any]]:
    """Fields with a default, each with the other values that it may have."""
    for name, field in component.model_fields.items():
        if name == "kind" or field.is_required():
            continue
        for value in _choices(_annotation(component, name)):
            sized = isinstance(field.default, int) and not isinstance(field.default, bool) and field.default > 0
            if value != field.default and not sized:  # a size that is always there is a symbol already
                yield name, value


def options(component: type[Component]) -> Iterator[Option]:
    """Every field at every other value; where it needs another field, with the first that makes it possible."""
    plain = example(component)
    others = list(_optional_fields(component))
    for name, value in others:
        made = _with(plain, **{name: value})
        if made is not None:
            yield Option(_field_words(name, value, component.model_fields[name]), made, plain)
            continue
        for other, setting in others:
            base = _with(plain, **{other: setting}) if other != name else None
            made = _with(base, **{name: value}) if base is not None else None
            if made is not None and base is not None:
                words = _field_words(name, value, component.model_fields[name])
                yield Option(f"{words}, with {_field_words(other, setting, component.model_fields[other])}", made, base)
                break


def _field_words(name: str, value: Any, field: FieldInfo) -> str:
    if value is True or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return f"`{name}`"
    return f"no `{name}`" if value is False else f"`{name}: {value}`"


# --- readings ---


@dataclass(frozen=True, slots=True)
class Reading:
    """Quantities as formulas, by what they are the sums of."""

    symbols: dict[Any, str]
    """Path of the field that each stands for."""
    parameters: list[tuple[str, str, Any]]
    """Name, shape and elements of each tensor."""
    operations: list[tuple[str, Any, Any]]
    """Name, FLOPs as executed and as needed, of each operation."""
    cache: list[tuple[str, str, Any]]
    """Name, shape and elements of each cached tensor of a sequence."""
    activations: list[tuple[str, str, Any]]
    """Name, type and elements of each saved tensor."""

    def totals(self) -> dict[str, Any]:
        """Sums of the quantities: parameters, FLOPs, needed FLOPs, cache, and saved elements."""
        return {
            "parameters": _sum(row[2] for row in self.parameters),
            "FLOPs": _sum(row[1] for row in self.operations),
            "needed FLOPs": _sum(row[2] for row in self.operations),
            "cache": _sum(row[2] for row in self.cache),
            "saved": _sum(row[2] for row in self.activations),
        }


def read(component: Component) -> Reading:
    """The component with a symbol in each of its sizes."""
    made, _, symbols = symbolic_fields(component)
    taken = {str(symbol) for symbol in INPUTS} & {str(symbol) for symbol in symbols}
    if taken:
        raise ValueError(f"symbols of {type(component).__name__} are taken: {', '.join(sorted(taken))}")
    return Reading(
        symbols,
        [(tensor.name, _shape(tensor.shape), tensor.count) for tensor in made.tensors(HIDDEN)],
        [(each.name, each.flops, each.needed_flops) for each in made.operations(HIDDEN, LENGTH, BATCH)],
        [(entry.name, _shape(entry.shape), entry.elements) for entry in made.cache(HIDDEN, LENGTH)],
        [_saved_row(saved) for saved in made.saved_activations(HIDDEN, LENGTH, BATCH)],
    )


def read_around(spec: ArchitectureSpec) -> Reading:
    """What stands before and after the layers of a specification, with symbols in its fields."""
    made, _, symbols = symbolic_fields(spec)
    outside = {symbol: path for symbol, path in symbols.items() if not path.startswith("layer_groups")}
    return Reading(
        {symbol: path for symbol, path in outside.items() if symbol != HIDDEN},
        [(tensor.name, _shape(tensor.shape), tensor.count) for tensor in outer_tensors(made)],
        [(each.name, each.flops, each.needed_flops) for _, each in outer_operations(made, LENGTH, BATCH)],
        [],
        [_saved_row(saved) for _, saved in outer_activations(made, LENGTH, BATCH)],
    )


def _saved_row(saved: SavedTensor) -> tuple[str, str, Any]:
    return saved.name, TYPES.get(saved.dtype_class, saved.dtype_class), saved.elements


def _sum(values: Iterable[Any]) -> Any:
    return sympy.Add(*values)


def _shape(shape: tuple[Any, ...]) -> str:
    return " × ".join(f"({text(size)})" if getattr(size, "is_Add", False) else text(size) for size in shape)


# --- pages ---


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _description(part: Any) -> str:
    """A docstring as Markdown: one paragraph after the other, with code in single backquotes."""
    return re.sub(r"``([^`]+)``", r"`\1`", inspect.getdoc(part) or "")


def _by_type(rows: list[tuple[str, str, Any]]) -> str:
    sums: dict[str, Any] = {}
    for _, kind, elements in rows:
        sums[kind] = sums.get(kind, 0) + elements
    return "; ".join(f"{kind}: `{text(elements)}`" for kind, elements in sums.items())


def _sections(reading: Reading) -> list[str]:
    totals = reading.totals()
    lines = ["## Parameters", ""]
    parameters, operations = reading.parameters, reading.operations
    if parameters:
        lines += _table(("tensor", "shape", "elements"), ((n, f"`{s}`", f"`{text(c)}`") for n, s, c in parameters))
    lines += [f"Total: `{text(totals['parameters'])}`", "", "## FLOPs of a forward pass", ""]
    if operations:
        head = ("operation", "as executed", "as the mask needs")
        rows = ((n, f"`{text(done)}`", "the same" if done == needed else f"`{text(needed)}`")
                for n, done, needed in operations)  # fmt: skip
        lines += _table(head, rows)
        lines += [f"Total: `{text(totals['FLOPs'])}`; training takes three times as many.", ""]
    else:
        lines += ["No matrix multiplications.", ""]
    lines += ["## Cache of one sequence", ""]
    cached = reading.cache
    if cached:
        lines += _table(("tensor", "shape", "elements"), ((n, f"`{s}`", f"`{text(c)}`") for n, s, c in cached))
        lines += [f"Total: `{text(totals['cache'])}`", ""]
    else:
        lines += ["Nothing is kept between tokens.", ""]
    saved = reading.activations
    lines += ["## Activations saved for the backward pass", ""]
    lines += _table(("tensor", "elements", "type"), ((n, f"`{text(c)}`", kind) for n, kind, c in saved))
    lines += [f"Elements by type: {_by_type(saved)}", ""]
    return lines


def _option_table(options_read: Iterable[tuple[str, Reading, Reading]]) -> list[str]:
    """What each option changes, of those that change a number."""
    rows = []
    for words, with_it, without in options_read:
        before = without.totals()
        changes = [sympy.expand(total - before[name]) for name, total in with_it.totals().items()]
        if any(change != 0 for change in changes):
            rows.append((words, *(f"`{text(change)}`" if change != 0 else "" for change in changes)))
    if not rows:
        return []
    head = ("option", "parameters", "FLOPs", "needed FLOPs", "cached elements", "saved elements")
    return [
        "## What options change",
        "",
        "Added to, or taken from, what stands above. Options that change no number are left out.",
        "",
        *_table(head, rows),
    ]


def _page(title: str, source: str, words: list[str], plain: Reading, rows: list[tuple[str, Reading, Reading]]) -> str:
    fields = {symbol: path for _, made, _ in rows for symbol, path in made.symbols.items()} | plain.symbols
    symbols = [(f"`{symbol}`", stands_for) for symbol, stands_for in INPUTS.items()]
    symbols += [(f"`{symbol}`", f"`{fields[symbol]}`") for symbol in sorted(fields, key=str)]
    lines = [f"# {title}", "", f"Written by `python -m scripts.formula_pages` from {source}, whose formulas these are."]
    for paragraph in words:
        lines += ["", paragraph]
    lines += ["", "## Symbols", "", *_table(("symbol", "stands for"), symbols), *_sections(plain), *_option_table(rows)]
    return "\n".join(lines).rstrip("\n") + "\n"


def component_page(component: type[Component]) -> str:
    """The page of one component."""
    file = pathlib.Path(inspect.getfile(component)).relative_to(ROOT).as_posix()
    words = [_description(component), _description(inspect.getmodule(component))]
    rows = [(option.words, read(option.made), read(option.plain)) for option in options(component)]
    return _page(component.__name__, f"`{file}`", words, read(example(component)), rows)


AROUND: dict[str, dict[str, Any]] = {
    "`tie_word_embeddings`": {"tie_word_embeddings": True},
    "`embedding_size`": {"embedding_size": SIZE},
    "`embedding_norm`": {"embedding_norm": True},
    "no `final_norm`": {"final_norm": False},
    "`lm_head_bias`": {"lm_head_bias": True},
    "`final_logit_softcap`": {"final_logit_softcap": 1.0},
    "`positions`: learned": {"positions": {"kind": "learned", "num_positions": SIZE}},
    "`norm`: layer norm": {"norm": {"kind": "layer_norm"}},
}
"""Options of a specification that change what stands around its layers."""


def around_page() -> str:
    """The page of what stands before and after the layers."""
    layers = [{"layers": [{"channel_mixer": {"kind": "mlp", "intermediate_size": SIZE}}]}]
    plain = {"vocab_size": SIZE, "hidden_size": SIZE, "layer_groups": layers}
    reading = read_around(parse_spec(plain))
    rows = [(words, read_around(parse_spec({**plain, **changed})), reading) for words, changed in AROUND.items()]
    words = [
        "The token embedding, the final norm, the head, and the loss. A model is these and, for every layer, its norms "
        "and mixers; each group of layers counts as often as it repeats.",
    ]
    source = "`planner/sizing.py`, `planner/compute.py` and `planner/activations.py`"
    return _page("Around the layers", source, words, reading, rows)


def index_page() -> str:
    """The list of pages, with the totals that people ask for first."""
    lines = [
        "# Formulas",
        "",
        "One page a component, written by `python -m scripts.formula_pages` from the formulas that the planner",
        "computes with: a test holds the pages to the code.",
        "",
    ]
    for title, union in UNIONS.items():
        rows = []
        for kind, component in sorted(kinds_of(union).items()):
            totals = read(example(component)).totals()
            link = f"[{kind.replace('_', ' ')}]({kind}.md)"
            rows.append((link, f"`{text(totals['parameters'])}`", f"`{text(totals['cache'])}`"))
        lines += [f"## {title}", "", *_table(("component", "parameters", "cached elements of a sequence"), rows)]
    lines += ["Embedding, head and loss: [around the layers](around_the_layers.md).", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    components = itertools.chain.from_iterable(kinds_of(union).items() for union in UNIONS.values())
    around = {"README.md": index_page(), "around_the_layers.md": around_page()}
    return around | {f"{kind}.md": component_page(each) for kind, each in components}


def differing(folder: pathlib.Path, written: dict[str, str]) -> list[str]:
    """Names of pages that a folder lacks, has otherwise, or has beyond what is written."""
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in {*found, *written} if found.get(name) != written.get(name))


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.formula_pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    asked = parser.parse_args(arguments)
    written = pages()
    changed = differing(FOLDER, written)
    if not asked.check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in changed:
            if name in written:
                (FOLDER / name).write_text(written[name], encoding="utf-8")
            else:
                (FOLDER / name).unlink()
    for name in changed:
        say(f"{name} {'differs' if asked.check else 'written' if name in written else 'removed'}")
    return 1 if asked.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
