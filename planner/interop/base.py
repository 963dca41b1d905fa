"""What an adapter is, and how it judges a configuration.

A configuration is what ``json.load`` gives for a ``config.json``. An adapter knows three kinds of field: those it reads
(``defaults``, with the value that transformers takes where a file has none), those that never matter to the size, the
compute or the cache (``ignored``), and those that are neutral at some values only (``neutral``). A field of no kind is
refused by name: it might change the size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.components.base import Tensor
from planner.errors import InvalidSpec, Problem, UnsupportedArchitecture
from planner.spec import ArchitectureSpec, fold_layers, parse_spec

IGNORED_EVERYWHERE = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "model_type",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_router_logits",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)
"""Names, token ids, dropout, losses, types and versions: nothing of it has elements, FLOPs or a cache."""

NEUTRAL_EVERYWHERE: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False, None),
}

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}
"""transformers' names of the activations that components know."""

LARGEST_WHOLE_NUMBER = 2**40
"""Above any size in use, and small enough that no product of two overflows a float."""
MOST_LAYERS = 10_000
"""A stack is unfolded layer by layer when it is read: a slip of the keyboard must not fill the memory."""
LAYER_COUNTS = frozenset({"num_hidden_layers", "n_layer"})


def refusal(path: str, message: str, remedy: str = "", code: str = "unsupported_field") -> UnsupportedArchitecture:
    """A refusal that stands at one field of the configuration."""
    return UnsupportedArchitecture([Problem(path=path, message=message, remedy=remedy, code=code)])


def positive(name: str, value: object) -> float:
    """A positive, finite number; whole numbers beyond the range of floats are refused too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number too large"
        raise refusal(name, f"A positive number is expected, got {shown}.", "Write a number.", "not_a_number")
    return float(value)


class Reader:
    """The fields of one configuration, with defaults, aliases and checks of their types."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
        self._values = {**defaults}
        for name, value in config.items():
            if name in defaults:
                self._values[name] = value
        for alias, name in aliases.items():  # transformers applies an alias after the field that it stands for
            if alias in config:
                self._values[name] = config[alias]

    def value(self, name: str) -> Any:
        """A field as it stands."""
        return self._values[name]

    def integer(self, name: str, least: int = 1) -> int:
        """A whole number of at least ``least``."""
        value = self._values[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise refusal(name, f"A whole number is expected, got {value!r}.", "Write a number.", "not_a_number")
        if value < least:
            raise refusal(name, f"{value} is too small.", f"Write at least {least}.", "too_small")
        most = MOST_LAYERS if name in LAYER_COUNTS else LARGEST_WHOLE_NUMBER
        if value > most:
            raise refusal(name, "The number is too large.", f"Write at most {most}.", "too_large")
        return value

    def optional_integer(self, name: str, least: int = 1) -> int | None:
        """A whole number, or nothing."""
        return None if self._values[name] is None else self.integer(name, least)

    def number(self, name: str) -> float:
        """A positive number."""
        return positive(name, self._values[name])

    def optional_number(self, name: str) -> float | None:
        """A positive number, or nothing."""
        return None if self._values[name] is None else self.number(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._values[name]
        if not isinstance(value, bool):
            raise refusal(name, f"true or false is expected, got {value!r}.", "Write true or false.", "not_a_flag")
        return value

    def activation(self, name: str) -> str:
        """The activation by the name that components know."""
        value = self._values[name]
        if not isinstance(value, str) or value not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise refusal(name, f"The activation {value!r} is not supported.", f"Supported are {known}.")
        return ACTIVATIONS[value]

    def strings(self, name: str, length: int, allowed: tuple[str, ...]) -> list[str]:
        """One word a layer."""
        value = self._values[name]
        if not isinstance(value, list) or len(value) != length or any(word not in allowed for word in value):
            raise refusal(name, f"A list of {length} words is expected.", f"Each is one of {', '.join(allowed)}.")
        return list(value)

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers; absent is empty."""
        value = self._values[name]
        if value is None:
            return []
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise refusal(name, f"A list of whole numbers is expected, got {value!r}.")
        return list(value)

    def rope_theta(self) -> float:
        """The rotary base, from ``rope_parameters`` or the older ``rope_theta``."""
        parameters = self._values.get("rope_parameters")
        theta = self._values.get("rope_theta")
        if isinstance(parameters, dict):
            if any(isinstance(value, dict) for value in parameters.values()):
                raise refusal("rope_parameters", "Rotary bases by layer type are not supported for this family.")
            if parameters.get("partial_rotary_factor", 1.0) != 1.0:
                raise refusal("rope_parameters.partial_rotary_factor", "Partial rotation is not part of this family.")
            theta = parameters.get("rope_theta", theta)
        elif parameters is not None:
            raise refusal("rope_parameters", f"A mapping is expected, got {parameters!r}.")
        if theta is None:
            return 10_000.0
        return positive("rope_theta", theta)


@dataclass(frozen=True, slots=True)
class LayoutRule:
    """One of transformers' tensors, made of one or several of ours: joined along rows, then transposed if so said.

    ``{layer}`` stands for the layer's index.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


def rules(theirs_prefix: str, ours_prefix: str, names: Mapping[str, str]) -> tuple[LayoutRule, ...]:
    """Rules for tensors that correspond one to one, our name to theirs; ``weight`` and ``bias`` where no suffix."""
    made = []
    for ours, theirs in names.items():
        endings = ("",) if ours.endswith(("weight", "bias", "_log", "D", "proj_stacked")) else (".weight", ".bias")
        for ending in endings:
            made.append(LayoutRule(f"{theirs_prefix}{theirs}{ending}", (f"{ours_prefix}{ours}{ending}",)))
    return tuple(made)


@dataclass(frozen=True)
class Adapter:
    """One family of configurations."""

    model_type: str
    defaults: Mapping[str, Any]
    build: Callable[[Reader], dict[str, Any]]
    """The specification as plain data."""
    layout: tuple[LayoutRule, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a field, where it is present and not empty, leaves out of the specification."""

    def judge(self, config: Mapping[str, Any]) -> None:
        """Refuse every field that is of no kind, and neutral ones at other values."""
        problems = []
        neutral = {**NEUTRAL_EVERYWHERE, **self.neutral}
        for name, value in config.items():
            if name in self.defaults or name in self.aliases:
                continue
            if name in neutral:
                # True equals 1 in Python, and a flag must not pass for a number.
                if not any(value == allowed and type(value) is type(allowed) for allowed in neutral[name]):
                    allowed = " or ".join(repr(v) for v in neutral[name])
                    problems.append(
                        Problem(name, f"{value!r} is not supported.", f"Supported is {allowed}.", "unsupported_value")
                    )
                continue
            if name in self.ignored or name in IGNORED_EVERYWHERE:
                continue
            problems.append(
                Problem(
                    name,
                    f"This field is not known for {self.model_type}, and it might change the size.",
                    "Remove it if it does not change the model.",
                    "unknown_field",
                )
            )
        if problems:
            raise UnsupportedArchitecture(problems)

    def specification(self, config: Mapping[str, Any]) -> ArchitectureSpec:
        """The specification of a configuration, exact to the last parameter, or a refusal."""
        self.judge(config)
        name = config.get("_name_or_path")
        data = self.build(Reader(config, self.defaults, self.aliases))
        data["name"] = str(name)[:120] if name else self.model_type
        try:
            return parse_spec(data)
        except InvalidSpec as invalid:
            raise UnsupportedArchitecture(
                [Problem(_field_of(p, self), f"{p.message}", p.remedy, p.code) for p in invalid.problems]
            ) from invalid


def _field_of(problem: Problem, adapter: Adapter) -> str:
    """The configuration's name of a field of the specification: the same last word where the family has it."""
    word = problem.path.rsplit(".", 1)[-1].split("[")[0]
    return word if word in adapter.defaults else problem.path


def groups(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layer groups of a stack of layers given as plain data."""
    from planner.spec import Layer

    try:
        return fold_layers([Layer.model_validate(layer) for layer in layers])
    except ValueError:  # the specification's own check says what is wrong, at its field
        return [{"repeats": 1, "layers": layers}]


Sources = tuple[str, ...]


def laid_out(
    adapter: Adapter, tensors: tuple[Tensor, ...], num_layers: int
) -> Iterator[tuple[str, tuple[int, ...], LayoutRule, Sources]]:
    """transformers' tensors: name, shape, and the rule and our tensors that they are made of."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    left = dict.fromkeys(shapes)
    for rule in adapter.layout:
        for index in range(num_layers) if "{layer}" in rule.theirs else (0,):
            ours = tuple(name.format(layer=index) for name in rule.ours)
            if not all(name in shapes for name in ours):
                continue
            for name in ours:
                left.pop(name, None)
            rows = sum(shapes[name][0] for name in ours)
            shape = (rows, *shapes[ours[0]][1:])
            yield rule.theirs.format(layer=index), shape[::-1] if rule.transposed else shape, rule, ours
    if left:
        raise refusal(next(iter(left)), f"{adapter.model_type} has no tensor for this.", "Export as another family.")
