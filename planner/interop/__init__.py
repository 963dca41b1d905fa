"""Specifications from Hugging Face configurations: exact to the last parameter, or a refusal that names the field."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from planner.errors import Problem, UnsupportedArchitecture
from planner.interop import families
from planner.interop.base import Adapter, laid_out, refusal, shown
from planner.interop.beyond import BEYOND
from planner.interop.nested import Inner, language_model
from planner.interop.quantization import check_quantization, quantization_sentence
from planner.plain import check_plain
from planner.spec import ArchitectureSpec, parse_spec


def _every_adapter() -> dict[str, Adapter]:
    """The adapters that the modules of :mod:`planner.interop.families` define: a new family is a new file there."""
    found = {}
    for module in pkgutil.iter_modules(families.__path__):
        for value in vars(importlib.import_module(f"{families.__name__}.{module.name}")).values():
            if isinstance(value, Adapter):
                found[value.model_type] = value
    return dict(sorted(found.items()))


ADAPTERS: Mapping[str, Adapter] = _every_adapter()

__all__ = ["ADAPTERS", "UnsupportedArchitecture", "from_huggingface", "huggingface_tensors", "left_out"]


def resolved(config: object) -> Inner:
    """The language model's own configuration within a configuration, or a refusal; its family is supported."""
    if not isinstance(config, dict):
        raise refusal("", f"A configuration is a mapping of fields, not {type(config).__name__}.", code="not_a_mapping")
    check_plain(config, UnsupportedArchitecture, finite=False)
    for name in config:
        if not isinstance(name, str):
            raise refusal(shown(name), "A field's name is a word.", "Write it in quotes, or remove it.", "not_a_name")
    inner = language_model(config, ADAPTERS)
    model_type = inner.config.get("model_type")
    if not isinstance(model_type, str):
        raise refusal(
            "model_type",
            "There is no model_type, so nothing says which architecture this is.",
            "Use the config.json that is published with the model.",
            "no_model_type",
        )
    if model_type in BEYOND:
        raise refusal(
            "model_type",
            f"{model_type} is beyond what a specification can say: {BEYOND[model_type]}.",
            "Choose a model whose layers each have weights of their own.",
            "unsupported_model_type",
        )
    if model_type not in ADAPTERS:
        near = difflib.get_close_matches(model_type, ADAPTERS, n=3)
        raise refusal(
            "model_type",
            f"The architecture {shown(model_type)} is not supported.",
            f"Supported are {', '.join(near) + ' and others' if near else ', '.join(ADAPTERS)}.",
            "unsupported_model_type",
        )
    return inner


def adapter_for(config: object) -> Adapter:
    """The adapter of the language model of a configuration, or a refusal."""
    return ADAPTERS[resolved(config).config["model_type"]]


def from_huggingface(config: dict[str, Any]) -> ArchitectureSpec:
    """The specification of what ``json.load`` gives for a ``config.json``: of its language model, where it has others.

    Raises
    ------
    UnsupportedArchitecture
        with every field that is unknown or has an unsupported value.
    """
    inner = resolved(config)
    adapter = ADAPTERS[inner.config["model_type"]]
    try:
        check_quantization(inner.config)
        spec = adapter.specification(inner.config)
        return spec if _scales_logits(inner) else parse_spec(_without_scaled_logits(spec))
    except UnsupportedArchitecture as refused:
        if not inner.path:
            raise
        raise UnsupportedArchitecture(
            [
                Problem(f"{inner.path}.{p.path}" if p.path else inner.path, p.message, p.remedy, p.code)
                for p in refused.problems
            ]
        ) from refused


def _scales_logits(inner: Inner) -> bool:
    """Whether logits are multiplied and capped as the language model's configuration says."""
    return inner.within is None or inner.within.scaled_head


def _without_scaled_logits(spec: ArchitectureSpec) -> dict[str, Any]:
    """A specification whose logits are those of a whole, of which transformers has the head alone."""
    return {name: value for name, value in spec.to_dict().items() if name not in ("logit_scale", "final_logit_softcap")}


def left_out(config: dict[str, Any]) -> tuple[str, ...]:
    """What a supported configuration has beside the model that is sized, a sentence each."""
    inner = resolved(config)
    adapter = ADAPTERS[inner.config["model_type"]]
    notes = {name: note for name, note in adapter.notes.items() if inner.config.get(name)}
    for name, value in adapter.unmodelled_in(inner.config).items():
        notes.pop(name.partition(".")[0], None)  # this says it more closely
        notes[name] = (
            f"{name} is {shown(value)}: that changes what is computed, but no parameter, no FLOPs and no cache."
        )
    if not _scales_logits(inner):
        spec = adapter.specification(inner.config)
        if spec.logit_scale is not None or spec.final_logit_softcap is not None:
            notes["logits"] = "transformers neither scales nor caps the logits of the whole, and so it is done here."
    if inner.beside:
        notes["beside"] = f"Only the language model is sized; left out are {', '.join(inner.beside)}."
    if inner.assumed_untied:
        notes["tie_word_embeddings"] = (
            "The file does not say whether the head shares the embedding's matrix; the language model's own default, "
            "a matrix of its own, is taken."
        )
    quantised = quantization_sentence(inner.config)
    if quantised is not None:
        notes["quantization_config"] = quantised
    return tuple(notes.values())


def huggingface_tensors(spec: ArchitectureSpec, model_type: str) -> dict[str, tuple[int, ...]]:
    """transformers' names and shapes of the parameters of a specification, by the family's layout map."""
    adapter = ADAPTERS[model_type]
    return {placed.name: placed.shape for placed in laid_out(adapter, spec)}
