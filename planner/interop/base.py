"""What an adapter is, and how it judges a configuration.

A configuration is what ``json.load`` gives for a ``config.json``. An adapter knows four kinds of field: those it reads
(``defaults``, with the value that transformers takes where a file has none), those that never matter to what a model
computes (``ignored``), those that are neutral at some values only (``neutral``), and those whose other values change
what is computed, but no tensor, no FLOPs and no cache (``unmodelled``: such a model is sized exactly, and its weights
are not loaded). A field of no kind is refused by name: it might change the size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import ValidationError

from planner.components import Component
from planner.components.rotary import RotaryScaling
from planner.errors import InvalidSpec, Problem, UnsupportedArchitecture
from planner.interop.rotation import odd_rotations, rotary_field
from planner.sizing import size
from planner.spec import ArchitectureSpec, Layer, fold_layers, parse_spec

IGNORED_EVERYWHERE = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_flash_attn_2_enabled",
        "_name_or_path",
        "architectures",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "attention_dropout",
        "attn_implementation",
        "attribute_map",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "eos_token_id",
        "epsilon_cutoff",
        "eta_cutoff",
        "experts_implementation",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "keys_to_ignore_at_inference",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_router_logits",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "sep_token_id",
        "suppress_tokens",
        "target_lookbehind",
        "task_specific_params",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
    }
)
"""Names, token ids, dropout, losses, versions and how text is drawn: none of it has elements, FLOPs or a cache."""

NEUTRAL_EVERYWHERE: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "per_layer_config": ({}, None),
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
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_10": "clipped_gelu",
    "quick_gelu": "quick_gelu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "mish": "mish",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "sqrtsoftplus": "sqrt_softplus",
    "linear": "linear",
}
"""transformers' names of the activations that components know."""

ROTARY_SCALINGS = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(RotaryScaling)[0])}
"""transformers' ``rope_type`` of the scalings that a specification knows."""

LARGEST_WHOLE_NUMBER = 2**40
"""Above any size in use, and small enough that no product of two overflows a float."""
MOST_LAYERS = 10_000
"""A stack is unfolded layer by layer when it is read: a slip of the keyboard must not fill the memory."""
MOST_PROBLEMS = 50
"""Fields that one refusal names: a file of something else has thousands."""
LAYER_COUNTS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers"})


def shown(value: object) -> str:
    """A value in an error's words, however long it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a number too large"
    if isinstance(value, (dict, list)) and len(value) > 8:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)} entries"
    if isinstance(value, str) and len(value) > 80:
        value = value[:80]
    try:
        words = repr(value)
    except (RecursionError, ValueError):  # nested without end, or holding a number that is too long to print
        return f"a {type(value).__name__}"
    return words if len(words) <= 80 else f"{words[:77]}…"


def is_one_of(value: object, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is among those allowed; True equals 1 in Python, and a flag must not pass for a number."""
    return any(type(value) is type(one) and value == one for one in allowed)


def refusal(
    path: str, message: str, remedy: str = "Write it as published.", code: str = "unsupported_field"
) -> UnsupportedArchitecture:
    """A refusal that stands at one field of the configuration."""
    return UnsupportedArchitecture([Problem(path=path, message=message, remedy=remedy, code=code)])


def positive(name: str, value: object) -> float:
    """A positive, finite number; whole numbers beyond the range of floats are refused too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise refusal(name, f"A positive number is expected, got {shown(value)}.", "Write a number.", "not_a_number")
    return float(value)


UNSCALED = frozenset({None, "default", "mrope"})
"""Rotary types without scaling. Several positions a token (``mrope``) are one and the same where there is only text."""


def scaling_of(parameters: Mapping[str, Any], longest: Any, original: Any) -> dict[str, Any] | None:
    """The specification's scaling for transformers' ``rope_parameters``; absent: none, or of a type that it lacks.

    ``longest`` is ``max_position_embeddings``. The original context is ``original``, a field of the configuration in
    some families, else it stands in ``parameters``, else it is the longest.
    """
    kind = parameters.get("rope_type", parameters.get("type"))
    if not isinstance(kind, str) or kind in UNSCALED or kind not in ROTARY_SCALINGS:
        return None
    fields = ROTARY_SCALINGS[kind].model_fields
    made = {name: parameters[name] for name in fields if parameters.get(name) is not None}
    made["kind"] = kind
    if kind == "dynamic":
        made["original_max_position_embeddings"] = longest
    elif "original_max_position_embeddings" in fields:
        made["original_max_position_embeddings"] = (
            original or parameters.get("original_max_position_embeddings") or longest
        )
    if kind in ("yarn", "longrope") and "factor" not in made:
        made["factor"] = positive("max_position_embeddings", longest) / positive(
            "original_max_position_embeddings", made["original_max_position_embeddings"]
        )
    for name in ("beta_fast", "beta_slow"):
        if made.get(name) == 0:
            del made[name]  # transformers takes zero for absent
    try:
        return ROTARY_SCALINGS[kind].model_validate(made).model_dump(mode="json")
    except ValidationError as invalid:
        detail = invalid.errors(include_url=False)[0]
        context = detail.get("ctx") or {}
        name = str(context.get("field") or ".".join(str(step) for step in detail["loc"]))
        raise refusal(
            f"rope_parameters.{name}",
            f"{detail['msg'].rstrip('.')}, got {shown(made.get(name))}.",
            str(context.get("remedy") or "Write it as published."),
        ) from invalid


class Reader:
    """The fields of one configuration, with defaults, aliases and checks of their types."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
        self._values = {**defaults}
        self._written = frozenset(config)
        self._rope = {name: rotary_field(name, config, defaults) for name in ("rope_scaling", "rope_parameters")}
        self._longest = config.get("max_position_embeddings", defaults.get("max_position_embeddings"))
        name = "original_max_position_embeddings"
        self._original = config.get(name, defaults.get(name))
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
            raise refusal(name, f"A whole number is expected, got {shown(value)}.", "Write a number.", "not_a_number")
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
            raise refusal(name, f"true or false is expected, got {shown(value)}.", "Write true or false.", "not_a_flag")
        return value

    def activation(self, name: str) -> str:
        """The activation by the name that components know."""
        value = self._values[name]
        if not isinstance(value, str) or value not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise refusal(name, f"The activation {shown(value)} is not supported.", f"Supported are {known}.")
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
            raise refusal(name, f"A list of whole numbers is expected, got {shown(value)}.")
        return list(value)

    def _rope_parameters(self, layer_type: str | None) -> Mapping[str, Any]:
        """``rope_parameters`` (of one layer type), or the older ``rope_scaling``, which transformers puts before it."""
        for name in ("rope_scaling", "rope_parameters"):
            parameters = self._rope[name]
            if parameters is not None and not isinstance(parameters, Mapping):
                raise refusal(
                    name, f"A mapping is expected, got {shown(parameters)}.", "Write a mapping, or remove it."
                )
        scaling, parameters = self._rope["rope_scaling"] or {}, self._rope["rope_parameters"] or {}
        if layer_type is None:
            parameters = scaling or parameters
            if any(isinstance(value, Mapping) for value in parameters.values()):
                raise refusal(
                    "rope_parameters",
                    "Rotary bases by layer type are not part of this family.",
                    "Write one mapping for all layers.",
                )
            return parameters
        if "rope_theta" in scaling or any(
            not isinstance(value, (Mapping, type(None))) for value in parameters.values()
        ):
            raise refusal(
                "rope_parameters",
                "One rotary base for all layers is no part of this family.",
                "Write one mapping a layer type.",
            )
        return parameters.get(layer_type) or {}

    def rope_parameter(self, name: str) -> Any:
        """One entry of ``rope_parameters`` or of the older ``rope_scaling``, or nothing."""
        return self._rope_parameters(None).get(name)

    def rope_theta(self, layer_type: str | None = None, older: str = "rope_theta", default: float = 10_000.0) -> float:
        """The rotary base, from ``rope_parameters`` (of one layer type, where one is given) or the ``older`` field.

        ``default`` is transformers' own where a file has neither.
        """
        parameters = self._rope_parameters(layer_type)
        if layer_type is None and not {"partial_rotary_factor", "rotary_pct"} & self._values.keys():
            share = parameters.get("partial_rotary_factor", 1.0)
            if share != 1.0:
                raise refusal(
                    "rope_parameters.partial_rotary_factor",
                    f"Partial rotation is not part of this family, got {shown(share)}.",
                    "Remove it.",
                )
        if "rope_theta" in parameters:
            return positive("rope_parameters.rope_theta", parameters["rope_theta"])
        if older in self._values and (self._values[older] is not None or older in self._written):
            return positive(older, self._values[older])
        return positive(older, default)

    def has_rope_theta(self) -> bool:
        """Whether there is a rotary base: where it is written as null, nothing is rotated (OLMo Hybrid)."""
        return self._rope_parameters(None).get("rope_theta", self._values["rope_theta"]) is not None

    def rope_share(self, head_dim: int, layer_type: str | None = None) -> float:
        """Share of a head's ``head_dim`` channels that is rotated, from ``partial_rotary_factor`` here or there.

        transformers cuts the product to a whole number of channels, and rotates pairs: an odd one more. GPT-NeoX and
        its kin call the field ``rotary_pct``, and read no other outside ``rope_parameters``.
        """
        name = "partial_rotary_factor" if "partial_rotary_factor" in self._values else "rotary_pct"
        share = self._rope_parameters(layer_type).get("partial_rotary_factor", self._values[name])
        if share is None:
            return 1.0
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise refusal("partial_rotary_factor", f"A share is expected, got {shown(share)}.", "Choose 0 to 1.")
        channels = int(head_dim * share)
        return (channels + channels % 2) / head_dim

    def rope_scaling(self, layer_type: str | None = None) -> dict[str, Any] | None:
        """How the rotary frequencies (of one layer type) are stretched, as plain data; absent: not, or unmodelled."""
        parameters = self._rope_parameters(layer_type)
        if layer_type == "full_attention":  # the older field speaks of these layers alone (Gemma 3)
            older = self._rope["rope_scaling"] or {}
            if "rope_type" not in older and older.get("type", "default") != "default":
                raise refusal("rope_scaling.type", "transformers reads rope_type alone here.", "Write rope_type.")
            parameters = {**parameters, **older}
        return scaling_of(parameters, self._longest, self._original)


@dataclass(frozen=True, slots=True)
class LayoutRule:
    """One of transformers' tensors, made of one or several of ours: joined along rows, then transposed if so said.

    ``{layer}`` stands for the layer's index, and ``{row}`` for the index of a row of ours where each row is a tensor
    of its own (StableLM's norms of single heads).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    """Whether the last two dimensions change places."""
    interleaved_by: str | int | None = None
    """The mixer's field that says how many blocks their rows have, each with its share of each of ours in turn; or that
    number.

    GPT-NeoX's fused projection holds query, key and value of the first head, then of the second: it is interleaved by
    ``num_attention_heads``. Falcon's holds a KV head's queries, its key and its value.
    """
    as_one_row: bool = False
    """Whether their tensor has a dimension of one before ours (ERNIE's corrections of scores)."""
    halves_in_turn: bool = False
    """Whether each expert's rows are the first and the second half of ours in turn (GPT-OSS's gate and up)."""
    kind: str | None = None
    """The kind of mixer that it is for, where another kind's tensors of the same names have other names of theirs."""

    def mixer(self, layer: Layer) -> Component | None:
        """The mixer of a layer whose tensors it places."""
        return layer.sequence_mixer if ".sequence_mixer." in self.ours[0] else layer.channel_mixer


def rules(
    theirs_prefix: str, ours_prefix: str, names: Mapping[str, str], kind: str | None = None
) -> tuple[LayoutRule, ...]:
    """Rules for tensors that correspond one to one, our name to theirs; ``weight`` and ``bias`` where no suffix."""
    made = []
    for ours, theirs in names.items():
        endings = ("",) if ours.endswith(("weight", "bias", "_log", "D", "proj_stacked")) else (".weight", ".bias")
        for ending in endings:
            made.append(LayoutRule(f"{theirs_prefix}{theirs}{ending}", (f"{ours_prefix}{ours}{ending}",), kind=kind))
    return tuple(made)


@dataclass(frozen=True)
class Adapter:
    """One family of configurations."""

    model_type: str
    defaults: Mapping[str, Any]
    build: Callable[[Reader], dict[str, Any]]
    """The specification as plain data."""
    layout: tuple[LayoutRule, ...] | Callable[[ArchitectureSpec], tuple[LayoutRule, ...]]
    """transformers' tensors; a function of the specification where the same of ours have other names of theirs."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a field, where it is present and not empty, leaves out of the specification."""
    unmodelled: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields with the values that the specification stands for; others are computed otherwise, at the same cost."""
    rotary_in_pairs: bool | Callable[[Mapping[str, Any]], bool] = False
    """Whether the channels that are rotated together are neighbours in the weights, and not half a head apart."""
    rotary_in_base: frozenset[str] = frozenset()
    """Types of rotary scaling that the family's specification may say as another base (Hunyuan's ``alpha``)."""
    rotary_backwards: bool = False
    """Whether the family turns channels the other way: as ours do whose two halves have changed places."""

    def unmodelled_in(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Fields, with their values, that change what this model computes and that a specification cannot say."""
        found = {}
        for name, modelled in self.unmodelled.items():
            field, _, entry = name.partition(".")
            if field not in config and field not in self.defaults:
                continue
            value = config.get(field, self.defaults.get(field))
            if entry:
                value = rotary_field(field, config, self.defaults)
                value = value.get(entry) if isinstance(value, Mapping) else None
            if not is_one_of(value, modelled):
                found[name] = value
        found |= self._unmodelled_scalings(config)
        return found | odd_rotations(self, config)

    def _unmodelled_scalings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Rotary scalings that a specification does not know, or that this family's does not have."""
        written: dict[str, Any] = {}
        for name in ("rope_scaling", "rope_parameters"):
            parameters = rotary_field(name, config, self.defaults)
            if isinstance(parameters, Mapping) and (self.reads(name) or name in self.ignored):
                nested = {key: value for key, value in parameters.items() if isinstance(value, Mapping)}
                for key, each in (nested or {"": parameters}).items():
                    kind = each.get("rope_type", each.get("type"))
                    if kind is not None and (not isinstance(kind, str) or kind not in UNSCALED):
                        written[f"{name}.{key}.rope_type" if key else f"{name}.rope_type"] = kind
        if not written:
            return written
        spec = self.specification(config)
        known = {getattr(spec.positions, "scaling", None)}
        mixers = [layer.sequence_mixer for _, layer in spec.iterate_layers() if layer.sequence_mixer is not None]
        known |= {getattr(part, "rope_scaling", None) for mixer in mixers for _, part in mixer.parts()}
        kinds = {scaling.kind for scaling in known if scaling is not None}
        return {name: kind for name, kind in written.items() if kind not in kinds | self.rotary_in_base}

    def reads(self, name: str) -> bool:
        """Whether a field is one that the specification is built from."""
        return name in self.defaults or name in self.aliases

    def judge(self, config: Mapping[str, Any]) -> None:
        """Refuse every field that is of no kind, and neutral ones at other values."""
        problems = []
        neutral = {**NEUTRAL_EVERYWHERE, **self.neutral}
        for name, value in config.items():
            if self.reads(name) or name in self.unmodelled:
                continue
            if name in neutral:
                if not is_one_of(value, neutral[name]):
                    allowed = " or ".join(repr(v) for v in neutral[name])
                    problems.append(
                        Problem(
                            name, f"{shown(value)} is not supported.", f"Supported is {allowed}.", "unsupported_value"
                        )
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
            raise UnsupportedArchitecture(problems[:MOST_PROBLEMS])

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
    try:
        return fold_layers([Layer.model_validate(layer) for layer in layers])
    except ValueError:  # the specification's own check says what is wrong, at its field
        return [{"repeats": 1, "layers": layers}]


@dataclass(frozen=True, slots=True)
class Placed:
    """One of transformers' tensors and where it comes from."""

    name: str
    shape: tuple[int, ...]
    rule: LayoutRule
    ours: tuple[str, ...]
    """Our tensors that it is made of."""
    layer: int
    row: int | None
    """The row of ours that it is, where the rule makes a tensor of each."""


def laid_out(adapter: Adapter, spec: ArchitectureSpec) -> Iterator[Placed]:
    """transformers' tensors of a model, by the family's layout rules."""
    shapes = {tensor.name: tensor.shape for tensor in size(spec).tensors}
    left = dict.fromkeys(shapes)
    layers = [layer for _, layer in spec.iterate_layers()]
    for rule in adapter.layout(spec) if callable(adapter.layout) else adapter.layout:
        for index in range(spec.num_layers) if "{layer}" in rule.theirs else (0,):
            ours = tuple(name.format(layer=index) for name in rule.ours)
            if not all(name in shapes for name in ours):
                continue
            if rule.kind is not None and getattr(rule.mixer(layers[index]), "kind", None) != rule.kind:
                continue
            for name in ours:
                left.pop(name, None)
            shape = (sum(shapes[name][0] for name in ours), *shapes[ours[0]][1:])
            if rule.transposed:
                shape = (*shape[:-2], shape[-1], shape[-2])
            if rule.as_one_row:
                shape = (1, *shape)
            if "{row}" in rule.theirs:
                for row in range(shape[0]):
                    yield Placed(rule.theirs.format(layer=index, row=row), shape[1:], rule, ours, index, row)
            else:
                yield Placed(rule.theirs.format(layer=index), shape, rule, ours, index, None)
    if left:
        raise refusal(next(iter(left)), f"{adapter.model_type} has no tensor for this.", "Export as another family.")
