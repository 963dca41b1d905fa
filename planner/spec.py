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
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.components import Attention, ChannelMixer, LatentAttention, Norm, RMSNorm, SequenceMixer
from planner.components.base import refuse
from planner.errors import InvalidSpec, Problem

NormPlacement = Literal["pre", "post", "sandwich"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RotaryPositions(_Part):
    """Queries and keys are rotated by their position (RoPE; Su et al. 2021, arXiv:2104.09864)."""

    kind: Literal["rotary"] = "rotary"
    theta: float = Field(default=10_000.0, gt=0)


class LearnedPositions(_Part):
    """A learned vector a position, added to the token embedding."""

    kind: Literal["learned"] = "learned"
    num_positions: int = Field(gt=0)
    """Longest sequence that the model can read."""


class NoPositions(_Part):
    """No encoding: order comes from the causal mask and from state space layers."""

    kind: Literal["none"] = "none"


Positions = Annotated[RotaryPositions | LearnedPositions | NoPositions, Field(discriminator="kind")]


class Layer(_Part):
    """A sequence mixer and a channel mixer on the residual stream, each with its norms."""

    sequence_mixer: SequenceMixer | None = None
    channel_mixer: ChannelMixer | None = None
    norm_placement: NormPlacement = "pre"
    """``pre``: before each mixer; ``post``: on its output, before the residual is added; ``sandwich``: both."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequence_mixer is None and self.channel_mixer is None:
            refuse(
                "sequence_mixer", "A layer needs a mixer.", "Set sequence_mixer, channel_mixer or both.", "empty_layer"
            )
        return self

    @cached_property
    def norm_names(self) -> tuple[str, ...]:
        """Names of the layer's own norms, in the order in which they act."""
        names: list[str] = []
        for present, stem in ((self.sequence_mixer, "sequence"), (self.channel_mixer, "channel")):
            if present is None:
                continue
            if self.norm_placement in ("pre", "sandwich"):
                names.append(f"{stem}_norm")
            if self.norm_placement in ("post", "sandwich"):
                names.append(f"{stem}_post_norm")
        return tuple(names)


class LayerGroup(_Part):
    """A pattern of layers, repeated."""

    repeats: int = Field(default=1, gt=0)
    layers: tuple[Layer, ...] = Field(min_length=1)

    @property
    def num_layers(self) -> int:
        """Layers in all repeats."""
        return self.repeats * len(self.layers)


class ArchitectureSpec(_Part):
    """A decoder-only language model, layer by layer."""

    name: str = Field(default="untitled", min_length=1, max_length=120)
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    tie_word_embeddings: bool = False
    """Whether the head reads the embedding's own matrix, which is then counted once."""
    positions: Positions = RotaryPositions()
    norm: Norm = RMSNorm()
    """The kind of every norm on the residual stream."""
    final_norm: bool = True
    lm_head_bias: bool = False
    embedding_scale: float | None = Field(default=None, gt=0)
    """Factor on the token embedding (Gemma: the square root of the hidden size)."""
    final_logit_softcap: float | None = Field(default=None, gt=0)
    layer_groups: tuple[LayerGroup, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        rotary = isinstance(self.positions, RotaryPositions)
        for group_index, group in enumerate(self.layer_groups):
            for layer_index, layer in enumerate(group.layers):
                mixer = layer.sequence_mixer
                where = f"layer_groups[{group_index}].layers[{layer_index}].sequence_mixer"
                if isinstance(mixer, LatentAttention) and not rotary:
                    refuse(
                        f"{where}.qk_rope_head_dim",
                        "Latent attention rotates part of its keys, but the model's positions are not rotary.",
                        "Set positions to {kind: rotary}.",
                        "positions_not_rotary",
                    )
                if isinstance(mixer, Attention) and mixer.rope_theta is not None and not rotary:
                    refuse(
                        f"{where}.rope_theta",
                        "A rotary base has no effect where the model's positions are not rotary.",
                        "Remove it, or set positions to {kind: rotary}.",
                        "positions_not_rotary",
                    )
        return self

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
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def content_hash(self) -> str:
        """SHA-256 of everything but the name, in hexadecimal: equal designs have equal hashes."""
        data = self.model_dump(mode="json", exclude={"name"})
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


_UNION_TAGS = {
    "attention",
    "latent_attention",
    "mamba1",
    "mamba2",
    "mlp",
    "moe",
    "rms_norm",
    "layer_norm",
    "rotary",
    "learned",
    "none",
}

_REMEDIES = {
    "missing": "Add it.",
    "extra_forbidden": "Remove it: no such field exists here.",
    "greater_than": "Choose a larger value.",
    "greater_than_equal": "Choose a larger value.",
    "less_than_equal": "Choose a smaller value.",
    "int_parsing": "Enter a whole number.",
    "int_type": "Enter a whole number.",
    "int_from_float": "Enter a whole number.",
    "float_parsing": "Enter a number.",
    "float_type": "Enter a number.",
    "bool_parsing": "Enter true or false.",
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
        elif step in _UNION_TAGS and previous in ("sequence_mixer", "channel_mixer", "norm", "positions"):
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
        remedy = context.get("remedy") or _REMEDIES.get(detail["type"], "")
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


def parse_spec(data: object) -> ArchitectureSpec:
    """A validated specification from plain data.

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
    try:
        return ArchitectureSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from error
