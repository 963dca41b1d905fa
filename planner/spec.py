"""The specification of an architecture: what a person edits, and everything else is computed from.

A model is a token embedding, a stack of layers on the residual stream, a final norm and a head. The stack is a list of
layer groups; a group repeats a pattern of one or more layers, so that 32 equal layers, "every fourth layer attention,
the rest Mamba" and a change of window halfway up are all short to write.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from planner.components import ChannelMixer, Component, Norm, RMSNorm, SequenceMixer
from planner.components.attention import check_shared_key_values
from planner.components.base import refuse
from planner.components.rotary import RotaryScaling
from planner.components.strict import Strict
from planner.errors import InvalidSpec, Problem
from planner.plain import check_plain

NormPlacement = Literal["pre", "post", "sandwich", "after_residual"]
Residual = Literal["sequential", "parallel", "parallel_shared_norm"]


LARGEST_STACK = 100_000
"""Layers of a model, a repeated one as often as it is repeated."""


class RotaryPositions(Strict):
    """Queries and keys are rotated by their position (RoPE; Su et al. 2021, arXiv:2104.09864)."""

    kind: Literal["rotary"] = "rotary"
    theta: float = Field(default=10_000.0, gt=0)
    scaling: RotaryScaling | None = None
    """How the frequencies are stretched for contexts longer than the original one."""


class LearnedPositions(Strict):
    """A learned vector a position, added to the token embedding."""

    kind: Literal["learned"] = "learned"
    num_positions: int = Field(gt=0)
    """Longest sequence that the model can read."""
    offset: int = Field(default=0, ge=0)
    """Rows of the table before that of the first position, which are never read (OPT has 2)."""


class AlibiPositions(Strict):
    """Scores fall with the distance, each head's at a slope of its own (ALiBi; Press et al. 2021, arXiv:2108.12409)."""

    kind: Literal["alibi"] = "alibi"
    max_bias: float = Field(default=8.0, gt=0)
    """How steep the slopes are: those of n heads are ``2 ** (-max_bias i / n)``."""
    scaled: bool = False
    """Whether the biases are multiplied by the factor on the scores too (Falcon)."""


class NoPositions(Strict):
    """No encoding: order comes from the causal mask and from state space layers."""

    kind: Literal["none"] = "none"


Positions = Annotated[RotaryPositions | LearnedPositions | AlibiPositions | NoPositions, Field(discriminator="kind")]


class Layer(Strict):
    """A sequence mixer and a channel mixer on the residual stream, each with its norms."""

    sequence_mixer: SequenceMixer | None = None
    channel_mixer: ChannelMixer | None = None
    norm_placement: NormPlacement = "pre"
    """``pre``: before each mixer; ``post``: on its output, before the residual is added; ``sandwich``: both;
    ``after_residual``: on the stream, after the mixer's output was added (the original Transformer;
    Vaswani et al. 2017, arXiv:1706.03762)."""
    residual: Residual = "sequential"
    """``sequential``: the channel mixer reads what the sequence mixer was added to; ``parallel``: both read the same
    stream and are added together, each with its own norms (GPT-NeoX; Black et al. 2022, arXiv:2204.06745, section 2.1);
    ``parallel_shared_norm``: the norm before the sequence mixer serves both (GPT-J, PaLM, Cohere)."""
    sequence_multipliers: tuple[float, float] | None = None
    """Factors on the stream and on the sequence mixer's output where the two are added (DeepNorm's alpha,
    arXiv:2203.00555; MiniMax-01, arXiv:2501.08313); absent: the output alone may have one, the model's."""
    channel_multipliers: tuple[float, float] | None = None
    """The same of the channel mixer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequence_mixer is None and self.channel_mixer is None:
            refuse(
                "sequence_mixer", "A layer needs a mixer.", "Set sequence_mixer, channel_mixer or both.", "empty_layer"
            )
        for stem in ("sequence", "channel"):
            factors = getattr(self, f"{stem}_multipliers")
            if factors is not None and (getattr(self, f"{stem}_mixer") is None or self.residual != "sequential"):
                refuse(
                    f"{stem}_multipliers",
                    f"These factors need a {stem} mixer that is added by itself.",
                    "Remove them, or set residual to sequential.",
                    "nothing_to_multiply",
                )
        if self.residual == "sequential":
            return self
        if self.sequence_mixer is None or self.channel_mixer is None:
            refuse(
                "residual",
                "Mixers in parallel are two, and this layer has one.",
                "Set sequence_mixer and channel_mixer, or residual to sequential.",
                "one_mixer",
            )
        if self.norm_placement == "after_residual":
            refuse(
                "norm_placement",
                "A norm after each residual needs mixers that are added one after the other.",
                "Set residual to sequential, or norm_placement to pre, post or sandwich.",
                "parallel_after_residual",
            )
        if self.residual == "parallel_shared_norm" and self.norm_placement == "post":
            refuse(
                "residual",
                "No norm stands before the mixers that they could share.",
                "Set norm_placement to pre or sandwich, or residual to parallel.",
                "no_norm_to_share",
            )
        return self

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Names of the layer's norms and mixers, in the order in which they act."""
        names: list[str] = []
        for mixer, stem in ((self.sequence_mixer, "sequence"), (self.channel_mixer, "channel")):
            if mixer is None:
                continue
            shares = stem == "channel" and self.residual == "parallel_shared_norm"
            if self.norm_placement in ("pre", "sandwich") and not shares:
                names.append(f"{stem}_norm")
            names.append(f"{stem}_mixer")
            if self.norm_placement in ("post", "sandwich"):
                names.append(f"{stem}_post_norm")
            if self.norm_placement == "after_residual":
                names.append(f"{stem}_norm")
        return tuple(names)

    @cached_property
    def norm_names(self) -> tuple[str, ...]:
        """Names of the layer's own norms, in the order in which they act."""
        return tuple(name for name in self.parts if name.endswith("_norm"))


class LayerGroup(Strict):
    """A pattern of layers, repeated."""

    repeats: int = Field(default=1, gt=0)
    layers: tuple[Layer, ...] = Field(min_length=1)

    @property
    def num_layers(self) -> int:
        """Layers in all repeats."""
        return self.repeats * len(self.layers)


class ArchitectureSpec(Strict):
    """A decoder-only language model, layer by layer."""

    name: str = Field(default="untitled", min_length=1, max_length=120)
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    embedding_size: int | None = Field(default=None, gt=0)
    """Width of the embedding and of the head where it is not the stream's: projections lead from the one to the other
    and back (OPT-350m)."""
    tie_word_embeddings: bool = False
    """Whether the head reads the embedding's own matrix, which is then counted once."""
    positions: Positions = RotaryPositions()
    norm: Norm = RMSNorm()
    """The kind of every norm on the residual stream."""
    embedding_norm: bool = False
    """A norm right after the embedding (BLOOM)."""
    final_norm: bool = True
    lm_head_bias: bool = False
    embedding_scale: float | None = Field(default=None, gt=0)
    """Factor on the token embedding (Gemma: the square root of the hidden size)."""
    residual_multiplier: float | None = Field(default=None, gt=0)
    """Factor on what each mixer adds to the stream (Granite)."""
    logit_scale: float | None = Field(default=None, gt=0)
    """Factor on the logits, before they are bounded (Cohere; Granite has its inverse)."""
    final_logit_softcap: float | None = Field(default=None, gt=0)
    layer_groups: tuple[LayerGroup, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_layers > LARGEST_STACK:
            refuse(
                "layer_groups",
                f"A stack of {self.num_layers:,} layers is deeper than any model.",
                f"Repeat fewer: {LARGEST_STACK:,} layers are the most.",
                "too_many_layers",
            )
        for group_index, group in enumerate(self.layer_groups):
            for layer_index, layer in enumerate(group.layers):
                for part in ("sequence_mixer", "channel_mixer"):
                    mixer = getattr(layer, part)
                    if mixer is not None:
                        self._check_mixer(mixer, f"layer_groups[{group_index}].layers[{layer_index}].{part}")
        flat = [layer.sequence_mixer for _, layer in self.iterate_layers()]
        unsupplied = check_shared_key_values(flat)
        if unsupplied is not None:
            index, reason = unsupplied
            refuse(
                f"{self._place(index)}.sequence_mixer.shares_key_values",
                f"Layer {index} shares keys and values, but {reason}.",
                "Give an earlier layer of the same kind keys and values of its own.",
                "no_shared_key_values",
            )
        return self

    def _check_mixer(self, mixer: Component, where: str) -> None:
        """Refuse a mixer that contradicts the model's positions, at its own field or at theirs."""
        try:
            mixer.check_under(self.positions)
        except PydanticCustomError as error:
            context = error.context or {}
            field = str(context["field"])
            path = field if field.partition(".")[0] == "positions" else f"{where}.{field}"
            refuse(path, str(context["message"]), str(context["remedy"]), error.type)

    def _place(self, index: int) -> str:
        """The path of the layer with this index."""
        for group_index, group in enumerate(self.layer_groups):
            if index < group.num_layers:
                return f"layer_groups[{group_index}].layers[{index % len(group.layers)}]"
            index -= group.num_layers
        raise IndexError(index)

    @property
    def num_layers(self) -> int:
        """Layers in all groups."""
        return sum(group.num_layers for group in self.layer_groups)

    def iterate_layers(self) -> Iterator[tuple[int, Layer]]:
        """Every layer with its index, from the embedding to the head."""
        index = 0
        for group in self.layer_groups:
            for _ in range(group.repeats):
                for layer in group.layers:
                    yield index, layer
                    index += 1

    def with_layers(self, layers: Sequence[Layer]) -> ArchitectureSpec:
        """The same model with another stack, folded into as few groups as equal runs allow."""
        return parse_spec({**self.model_dump(mode="json"), "layer_groups": fold_layers(layers)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data with only the fields that differ from their defaults."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        # A discriminator always equals its default, yet without it the data could not be read back.
        full = self.model_dump(mode="json")
        return _with_kinds(data, full)

    def to_yaml(self) -> str:
        """The same as YAML."""
        # Unicode's own line ends come back from YAML as spaces or plain ones, unless they are written as escapes.
        separated = any(separator in self.name for separator in ("\x85", "\u2028", "\u2029"))
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=not separated)

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def content_hash(self) -> str:
        """SHA-256 of everything but the name, in hexadecimal: equal designs have equal hashes.

        Fields at their defaults are left out, so a design keeps its hash when the specification gains a field whose
        default is what was meant before.
        """
        data = {name: value for name, value in self.to_dict().items() if name != "name"}
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _with_kinds(data: Any, full: Any) -> Any:
    """``data`` with the ``kind`` of every part that it mentions, taken from ``full``."""
    if isinstance(full, dict) and isinstance(data, dict):
        merged: dict[str, Any] = {}
        if "kind" in full:
            merged["kind"] = full["kind"]
        for key, value in full.items():
            if key in data:
                merged[key] = _with_kinds(data[key], value)
            elif key in ("sequence_mixer", "channel_mixer") and value is not None:
                merged[key] = _with_kinds({}, value)
        return merged
    if isinstance(full, list) and isinstance(data, list):
        return [_with_kinds(item, whole) for item, whole in zip(data, full, strict=True)]
    return data


def fold_layers(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Layer groups, as plain data, that unfold to ``layers``: the shortest repeating pattern first, else equal runs."""
    items = list(layers)
    for period in range(1, len(items) // 2 + 1):
        if len(items) % period == 0 and all(item == items[index % period] for index, item in enumerate(items)):
            return [
                {"repeats": len(items) // period, "layers": [item.model_dump(mode="json") for item in items[:period]]}
            ]
    groups: list[dict[str, Any]] = []
    start = 0
    while start < len(items):
        end = start
        while end < len(items) and items[end] == items[start]:
            end += 1
        groups.append({"repeats": end - start, "layers": [items[start].model_dump(mode="json")]})
        start = end
    return groups


def _tags_by_field(part: Any) -> dict[str, frozenset[str]]:
    """The kinds that each field of a discriminated union chooses from, in a model and in all models within it.

    A field that has one name in several models gives the kinds of all of them.
    """
    found: dict[str, set[str]] = {}
    seen: set[type[BaseModel]] = set()

    def members(annotation: Any) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return {annotation}
        return {member for argument in get_args(annotation) for member in members(argument)}

    def visit(model: type[BaseModel]) -> None:
        if model in seen:
            return
        seen.add(model)
        for name, field in model.model_fields.items():
            for member in members(field.annotation):
                kind = member.model_fields.get("kind")
                if kind is not None:
                    found.setdefault(name, set()).add(kind.default)
                visit(member)

    visit(part)
    return {name: frozenset(kinds) for name, kinds in found.items()}


_TAGS = _tags_by_field(ArchitectureSpec)

_REMEDIES = {
    "missing": "Add it.",
    "extra_forbidden": "Remove it: no such field exists here.",
    "greater_than": "Choose a larger value.",
    "greater_than_equal": "Choose a larger value.",
    "less_than_equal": "Choose a smaller value.",
    "int_parsing": "Enter a whole number.",
    "int_parsing_size": "Choose a smaller value.",
    "int_type": "Enter a whole number.",
    "int_from_float": "Enter a whole number.",
    "float_parsing": "Enter a number.",
    "float_type": "Enter a number.",
    "finite_number": "Enter a number.",
    "bool_parsing": "Enter true or false.",
    "bool_type": "Enter true or false.",
    "union_tag_not_found": "Add `kind`.",
    "too_short": "Add at least one entry.",
    "tuple_type": "Write a list.",
    "string_too_short": "Enter a name.",
}


def field_path(location: Sequence[str | int]) -> str:
    """A field as a person writes it, from pydantic's location (whose union tags are no part of what was written)."""
    path = ""
    previous: str | int = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step in _TAGS.get(str(previous), ()):
            previous = step
            continue
        else:
            path += f".{step}" if path else step
        previous = step
    return path


def problems_of(error: ValidationError) -> list[Problem]:
    """Pydantic's errors as problems that name the field and the remedy."""
    problems = []
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] == "too_short" and any(_is_inside(other["loc"], detail["loc"]) for other in details):
            continue  # pydantic counts an entry that failed as missing; the entry's own error says more
        context = detail.get("ctx") or {}
        path = field_path(detail["loc"])
        own_field = context.get("field")
        if isinstance(own_field, str):
            path = f"{path}.{own_field}" if path else own_field
        remedy = context.get("remedy") or _REMEDIES.get(detail["type"], "Write what the field allows.")
        if detail["type"] in ("literal_error", "union_tag_invalid"):
            choices = context.get("expected") or context.get("expected_tags")
            remedy = f"Choose one of {choices}."
        message = re.sub(r"\s+", " ", detail["msg"]).rstrip(".") + "."
        if detail["type"] != "missing" and not isinstance(own_field, str) and _is_plain(detail.get("input")):
            message = f"{message[:-1]}, got {detail['input']!r}."
        problems.append(Problem(path=path, message=message, remedy=str(remedy), code=detail["type"]))
    return problems


def _is_inside(inner: Sequence[str | int], outer: Sequence[str | int]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool)) and len(str(value)) <= 60


LEFT_OUT = "left_out"
"""Beside the fields of a specification that was imported: what its source has and it has not, a sentence each."""


def parse_spec(data: object) -> ArchitectureSpec:
    """A validated specification from plain data.

    What was imported may say beside its fields what was :data:`LEFT_OUT`: sentences, and no part of the specification.

    Raises
    ------
    InvalidSpec
        with every problem, each with its field's path and a remedy.
    """
    if not isinstance(data, dict):
        raise InvalidSpec.of(
            f"A specification is a mapping of fields, not {type(data).__name__}.",
            remedy="Start from a preset, or write `vocab_size: …` and the other fields.",
            code="not_a_mapping",
        )
    check_plain(data, InvalidSpec)
    if LEFT_OUT in data:
        said = data[LEFT_OUT]
        if not isinstance(said, list) or not all(isinstance(sentence, str) for sentence in said):
            raise InvalidSpec.of(
                "What was left out is a list of sentences.", path=LEFT_OUT, remedy="Remove it.", code="not_sentences"
            )
        data = {name: value for name, value in data.items() if name != LEFT_OUT}
    try:
        return ArchitectureSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from error
