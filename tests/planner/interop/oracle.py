"""transformers as the judge of every adapter: what a configuration's model really holds, counted on the meta device.

``python -m tests.planner.interop.oracle FAMILY…`` prints, for each field of the family's configuration class and each
of many values for it, alone and in pairs, whether the planner is exact, refuses, or is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import random
import re
import sys
import typing
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from planner import PlannerError, size
from planner.interop import ADAPTERS, from_huggingface, huggingface_tensors
from planner.interop.nested import OUTER
from tests.planner.interop.small import SMALL

Shapes = dict[str, tuple[int, ...]]
DIMENSIONS: dict[str, int] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "state_size": 8,
}
"""Small values of the fields that set a size, so that a model on the meta device is made in milliseconds."""

OUTSIDE_THE_MODEL = frozenset(
    {
        "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "id2label",
        "label2id", "problem_type", "model_type", "initializer_range", "output_attentions", "_name_or_path",
        "chunk_size_feed_forward",
    }
)  # fmt: skip
"""Fields of every configuration that no variation needs to try one by one."""


class Rejected(Exception):
    """transformers itself makes no model of the configuration."""


def config_class(family: str) -> Any:
    """The class of the family's configuration."""
    return type(transformers.AutoConfig.for_model(family))


def small_config(family: str) -> dict[str, Any]:
    """A configuration of the family with few and narrow layers."""
    names = {field.name for field in dataclasses.fields(config_class(family))}
    config: dict[str, Any] = {"model_type": family}
    config |= {name: value for name, value in DIMENSIONS.items() if name in names}
    if "pad_token_id" in names:
        config["pad_token_id"] = None  # a default may lie outside the small vocabulary
    return config | SMALL.get(family, {})


def small_surroundings(outer: str) -> dict[str, Any]:
    """Shallow encoders for images and sound in a multimodal configuration, whose depth tells nothing here."""
    made: dict[str, Any] = {}
    for key, kind in config_class(outer).sub_configs.items():
        if "text" not in key and dataclasses.is_dataclass(kind):
            names = {field.name for field in dataclasses.fields(kind)}
            made[key] = {name: 1 for name in ("depth", "num_hidden_layers", "encoder_layers") if name in names}
    return made


def modelled(config: dict[str, Any]) -> torch.nn.Module:
    """transformers' model of a configuration; of a language model that is only a part, the whole."""
    fields = dict(config)
    model_type = fields.pop("model_type")
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in OUTER:
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **fields))
    if model_type in OUTER:
        whole = {**config, **{key: value for key, value in small_surroundings(model_type).items() if key not in config}}
    else:
        outer = next(name for name, found in OUTER.items() if found.text == model_type)
        tie = fields.get("tie_word_embeddings", ADAPTERS[model_type].defaults["tie_word_embeddings"])
        whole = {
            **small_surroundings(outer),
            "model_type": outer,
            "text_config": config,
            "tie_word_embeddings": tie,
        }
    made = transformers.AutoConfig.for_model(whole.pop("model_type"), **whole)
    for mapping in WHOLES:
        name = getattr(modeling_auto, mapping).get(made.model_type)
        if name is not None:
            return getattr(transformers, name)._from_config(made)
    return getattr(transformers, type(made).__name__.replace("Config", "ForConditionalGeneration"))._from_config(made)


WHOLES = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
)
PART = re.compile(r"^(model\.)?(language_model|text_model)\.(model\.)?")


def language_parameters(model: torch.nn.Module) -> Shapes:
    """Names and shapes of the parameters of a model, of its language model alone where it has more.

    A tensor without elements (no shared experts, written as a width of 0) is no parameter.
    """
    named = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.numel()}
    if not any(PART.match(name) for name in named):
        return named
    named = {name: shape for name, shape in named.items() if PART.match(name) or name.endswith("lm_head.weight")}
    return {
        "lm_head.weight" if name.endswith("lm_head.weight") else PART.sub("model.", name): shape
        for name, shape in named.items()
    }


def reference(config: dict[str, Any]) -> Shapes:
    """Names and shapes of transformers' own parameters, a tied one once.

    Raises
    ------
    Rejected
        where transformers has no model for the configuration.
    """
    try:
        with warnings.catch_warnings(), torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return language_parameters(modelled(config))
    except Exception as error:
        raise Rejected(f"{type(error).__name__}: {error}"[:200]) from error


def works(config: dict[str, Any]) -> bool:
    """Whether transformers' model of a small configuration is a working one, run on the CPU.

    It reads eight tokens, gives finite logits, and the last ones depend on the first token: a stack without layers, or
    with channels of width 0, runs and is no language model.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = modelled(config).eval()
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            tokens = torch.tensor([[3, 5, 7, 2, 8, 1, 4, 6], [9, 5, 7, 2, 8, 1, 4, 6]])
            tokens = tokens % model.config.get_text_config().vocab_size
            first, other = model(tokens, use_cache=False).logits[:, -1]
    except Exception:
        return False
    return bool(torch.isfinite(first).all()) and not torch.equal(first, other)


def judged(config: dict[str, Any]) -> tuple[str, str]:
    """``exact``, ``refused``, ``wrong``, ``crashed`` or ``rejected`` (by transformers), and what there is to say."""
    try:
        spec = from_huggingface(config)
        found: Shapes | None = huggingface_tensors(spec, config["model_type"])
        total = size(spec).parameters.total
    except PlannerError as refusal:
        found, said = None, f"{refusal.path}: {refusal}"
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"[:200]
    try:
        expected = reference(config)
    except Rejected as reason:
        return "rejected", f"{'refused' if found is None else 'SIZED'}; transformers: {reason}"
    if found is None:
        return "refused", said[:200]
    if found != expected:
        names = sorted(set(found.items()) ^ set(expected.items()))[:3]
        return "wrong", f"{names}"
    if total != sum(torch.Size(shape).numel() for shape in expected.values()):
        return "wrong", "the tensors are right, but their total is not"
    return "exact", ""


def rotations(current: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Other rotary parameters: another base, scaled frequencies, and each layer type by itself where they differ."""
    nested = {key: value for key, value in current.items() if isinstance(value, dict)}
    if nested:
        for key, value in nested.items():
            yield current | {key: value | {"rope_theta": 5e5}}
        return
    for change in (
        {"rope_theta": 5e5},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 4.0},
    ):
        yield current | change
    if "partial_rotary_factor" in current:
        yield current | {"partial_rotary_factor": 1.0}
        yield current | {"partial_rotary_factor": 0.3}


def values_of(field: Any, current: Any, rng: random.Random) -> list[Any]:
    """Other values for a field of a configuration class, by its type and its present value."""
    name, tried = field.name, []
    if name in ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"):
        tried = ["gelu", "relu", "silu", "gelu_pytorch_tanh"]
    elif name == "rope_parameters" and isinstance(current, dict):
        tried = [*rotations(current)]
    elif name in ("layer_types", "layers_block_type", "mlp_layer_types") and isinstance(current, list):
        tried = [rng.sample(current, len(current)), current[::-1], current[:-1]]
    elif isinstance(current, bool):
        tried = [not current]
    elif isinstance(current, int):
        tried = [current + 1, current * 2, max(current // 2, 1), 1, 0, 3]
    elif isinstance(current, float):
        tried = [current / 2, current * 2, 1.0]
    elif isinstance(current, str):
        tried = ["other"]
    elif isinstance(current, list) and all(isinstance(item, int) for item in current):
        tried = [[], [0], [1, 2]]
    kinds = typing.get_args(field.type) or (field.type,)
    if type(None) in kinds:
        tried.append(None)
    if current is None:
        if int in kinds:
            tried += [1, 2, 8]
        if bool in kinds:
            tried += [True, False]
        if float in kinds:
            tried += [0.5, 30.0]
        if any(typing.get_origin(kind) is list for kind in kinds):
            tried += [[], [1]]
    return [value for value in tried if value != current or type(value) is not type(current)]


def variations(family: str, seed: int = 0, pairs: int = 200) -> Iterator[dict[str, Any]]:
    """The small configuration, every field's other values one at a time, and ``pairs`` drawn pairs of them."""
    rng = random.Random(f"{family} {seed}")
    base = small_config(family)
    yield base
    fields = dict(base)
    made = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields).to_dict()
    changes = [
        (field.name, value)
        for field in dataclasses.fields(config_class(family))
        if field.name not in OUTSIDE_THE_MODEL
        for value in values_of(field, base.get(field.name, made.get(field.name)), rng)
    ]
    for name, value in changes:
        yield {**base, name: value}
    different = [pair for pair in itertools.combinations(changes, 2) if pair[0][0] != pair[1][0]]
    for (first, one), (second, other) in rng.sample(different, min(pairs, len(different))):
        yield {**base, first: one, second: other}


def report(family: str, pairs: int) -> Counter[str]:
    """Judge all variations of a family and print what is not exact."""
    base = small_config(family)
    counts: Counter[str] = Counter()
    for config in variations(family, pairs=pairs):
        verdict, words = judged(config)
        counts[verdict] += 1
        if verdict != "exact" and not (verdict == "rejected" and words.startswith("refused")):
            changed = {name: value for name, value in config.items() if name not in base or base[name] != value}
            print(f"  {verdict:9} {changed}  {words}")
    print(f"{family}: {dict(counts)}", flush=True)
    return counts


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    chosen = [word for word in sys.argv[1:] if not word.isdecimal()] or list(ADAPTERS)
    drawn = next((int(word) for word in sys.argv[1:] if word.isdecimal()), 200)
    everything: Counter[str] = Counter()
    for one in chosen:
        everything += report(one, drawn)
    print(dict(everything))
    sys.exit(1 if everything["wrong"] or everything["crashed"] else 0)
