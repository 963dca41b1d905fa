"""Known architectures by name, and specifications from files.

A preset is a file in ``assets/presets``: a title, its source, the parameters as published, and either a Hugging Face
configuration (``config``) or a specification (``spec``).
"""

from __future__ import annotations

import difflib
import functools
import json
import pathlib
import re
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import yaml

from planner.errors import InvalidSpec
from planner.interop import from_huggingface, left_out
from planner.spec import LEFT_OUT, ArchitectureSpec, parse_spec

PRESETS = pathlib.Path(__file__).resolve().parent.parent / "assets" / "presets"
LARGEST_FILE_BYTES = 4 * 2**20
LARGEST_YAML_BYTES = 128 * 2**10
"""YAML is read a hundred times slower than JSON; no specification is a tenth as long."""
MOST_ALIASES = 1000
LARGEST_MERGE = 1000
"""Fields of a mapping into which others are merged (``<<``)."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-6`` is a number, as in YAML 1.2, and not a word, as in YAML 1.1.

    Aliases and merges are counted, since a few lines of them unfold to billions of entries.
    """

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                raise yaml.composer.ComposerError(None, None, f"there are more than {MOST_ALIASES} aliases")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        written = len(node.value)
        super().flatten_mapping(node)
        if len(node.value) > max(written, LARGEST_MERGE):
            raise yaml.constructor.ConstructorError(None, None, "a merge has too many fields", node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain data from YAML text."""
    return yaml.load(text, Loader=_Loader)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A specification, and what its source has beside it: a vision tower, layers that only train, a quantization."""

    spec: ArchitectureSpec
    left_out: tuple[str, ...] = ()
    """A sentence each; empty where the specification is all that there is."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A known architecture."""

    id: str
    title: str
    source: str
    published: str | None
    """Parameters as the source states them, such as ``6.74 B``, or to the last one."""
    published_active: str | None
    """Parameters that one token uses, as the source states them; what they count is the source's own choice."""
    note: str | None
    spec: ArchitectureSpec
    left_out: tuple[str, ...] = ()
    """What its configuration has beside the model that is sized, a sentence each."""


@functools.cache
def preset(name: str) -> Preset:
    """A preset by its id; ``InvalidSpec`` names the nearest ones."""
    path = PRESETS / f"{name}.yaml"
    if name not in preset_ids():
        near = difflib.get_close_matches(name, preset_ids(), n=3, cutoff=0.4) or preset_ids()[:3]
        raise InvalidSpec.of(
            f"There is no file and no preset called {name!r}.",
            remedy=f"Presets are {', '.join(near)} …" if len(near) < len(preset_ids()) else "",
            code="no_such_preset",
        )
    data = read_yaml(path.read_text(encoding="utf-8"))
    loaded = read_data(data["config"] if "config" in data else data["spec"])
    return Preset(
        id=name,
        title=data["title"],
        source=data["source"],
        published=data.get("published"),
        published_active=data.get("published_active"),
        note=data.get("note"),
        spec=loaded.spec.model_copy(update={"name": data["title"]}),
        left_out=loaded.left_out,
    )


@functools.cache
def preset_ids() -> tuple[str, ...]:
    """Ids of all presets, sorted."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def read_data(data: Any) -> Loaded:
    """A specification from plain data: our own fields, or a Hugging Face configuration (it has a ``model_type``)."""
    if isinstance(data, dict) and "model_type" in data:
        return Loaded(from_huggingface(data), left_out(data))
    spec = parse_spec(data)
    return Loaded(spec, tuple(data.get(LEFT_OUT, ())))


def read_text(text: str) -> Loaded:
    """The same from YAML or JSON text; ``InvalidSpec`` says where the text is broken."""
    return read_data(_data_of(text))


def from_text(text: str) -> ArchitectureSpec:
    """A specification from YAML or JSON text; ``InvalidSpec`` says where the text is broken."""
    return read_text(text).spec


def _data_of(text: str) -> Any:
    """Plain data from YAML or JSON text."""
    is_json = text.lstrip().startswith("{")
    if len(text) > (LARGEST_FILE_BYTES if is_json else LARGEST_YAML_BYTES):
        raise InvalidSpec.of(
            "The text is larger than any specification.",
            remedy="Name another file." if is_json else "Write it shorter, with layer groups, or as JSON.",
            code="text_too_large",
        )
    try:
        return json.loads(text) if is_json else read_yaml(text)
    except json.JSONDecodeError as error:
        raise InvalidSpec.of(
            f"This is no JSON: {error.msg}.",
            remedy=f"Look at line {error.lineno}, column {error.colno}.",
            code="not_json",
        ) from error
    except RecursionError as error:
        raise InvalidSpec.of(
            "Entries are nested without end.", remedy="Name another file.", code="nested_too_deep"
        ) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        # The readers themselves fail on a date without a calendar, a number of 5,000 digits or a mapping as a key.
        mark = getattr(error, "problem_mark", None)
        where = f"Look at line {mark.line + 1}, column {mark.column + 1}." if mark is not None else ""
        language = "JSON" if is_json else "YAML"
        raise InvalidSpec.of(
            f"This is no {language}.",
            remedy=where or "Look for numbers and names that are none.",
            code=f"not_{language.lower()}",
        ) from error


def load(path_or_preset: str | pathlib.Path) -> ArchitectureSpec:
    """A specification from a YAML or JSON file, a Hugging Face ``config.json``, or the name of a preset.

    What the source has beside it is said by :func:`read`.

    Raises
    ------
    InvalidSpec, UnsupportedArchitecture
        with the field and the remedy; also where the file cannot be read.
    """
    return read(path_or_preset).spec


def read(path_or_preset: str | pathlib.Path) -> Loaded:
    """What :func:`load` gives, with what was left out of the source."""
    path = pathlib.Path(path_or_preset)
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name that is no path on this system
        exists = False
    if not exists:
        if path.suffix in (".json", ".yaml", ".yml") or len(path.parts) > 1:
            raise InvalidSpec.of(f"There is no file {str(path)!r}.", remedy="Check the path.", code="no_such_file")
        known = preset(str(path_or_preset))
        return Loaded(known.spec, known.left_out)
    if path.is_dir():
        inner = path / "config.json"
        if not inner.exists():
            raise InvalidSpec.of(
                f"{str(path)!r} is a directory without a config.json.", remedy="Name a file.", code="is_a_directory"
            )
        path = inner
    try:
        with path.open("rb") as file:
            found = read_stream(file, repr(str(path)))
    except OSError as error:
        raise InvalidSpec.of(
            f"{str(path)!r} cannot be read: {error.strerror}.", remedy="Name another file.", code="unreadable"
        ) from error
    if found.spec.name != "untitled":
        return found
    return replace(found, spec=found.spec.model_copy(update={"name": path.stem}))


def read_stream(stream: BinaryIO, what: str) -> Loaded:
    """The same from a stream of UTF-8 text; ``what`` says in errors what it is."""
    raw = stream.read(LARGEST_FILE_BYTES + 1)  # the size that a system states for a pipe or a device is none
    if len(raw) > LARGEST_FILE_BYTES:
        raise InvalidSpec.of(
            f"{what} is larger than any specification.", remedy="Name another file.", code="file_too_large"
        )
    try:
        return read_text(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidSpec.of(f"{what} is no UTF-8 text.", remedy="Name a text file.", code="not_text") from error
