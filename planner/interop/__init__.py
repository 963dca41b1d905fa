"""Specifications from Hugging Face configurations: exact to the last parameter, or a refusal that names the field."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from planner.errors import UnsupportedArchitecture
from planner.interop import families
from planner.interop.base import Adapter, laid_out, refusal, shown
from planner.sizing import size
from planner.spec import ArchitectureSpec


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


def adapter_for(config: object) -> Adapter:
    """The adapter of a configuration's ``model_type``, or a refusal."""
    if not isinstance(config, dict):
        raise refusal("", f"A configuration is a mapping of fields, not {type(config).__name__}.", code="not_a_mapping")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise refusal(
            "model_type",
            "There is no model_type, so nothing says which architecture this is.",
            "Use the config.json that is published with the model.",
            "no_model_type",
        )
    if model_type not in ADAPTERS:
        raise refusal(
            "model_type",
            f"The architecture {model_type!r} is not supported.",
            f"Supported are {', '.join(ADAPTERS)}.",
            "unsupported_model_type",
        )
    return ADAPTERS[model_type]


def from_huggingface(config: dict[str, Any]) -> ArchitectureSpec:
    """The specification of what ``json.load`` gives for a ``config.json``.

    Raises
    ------
    UnsupportedArchitecture
        with every field that is unknown or has an unsupported value.
    """
    return adapter_for(config).specification(config)


def left_out(config: dict[str, Any]) -> tuple[str, ...]:
    """What a supported configuration has beside the model that is sized, a sentence each."""
    adapter = adapter_for(config)
    notes = {name: note for name, note in adapter.notes.items() if config.get(name)}
    for name, value in adapter.unmodelled_in(config).items():
        notes[name.partition(".")[0]] = (
            f"{name} is {shown(value)}: that changes what is computed, but no parameter, no FLOPs and no cache."
        )
    if config.get("quantization_config"):
        notes["quantization_config"] = (
            "The weights are published quantised; parameters are counted as they are, not their scales."
        )
    return tuple(notes.values())


def huggingface_tensors(spec: ArchitectureSpec, model_type: str) -> dict[str, tuple[int, ...]]:
    """transformers' names and shapes of the parameters of a specification, by the family's layout map."""
    adapter = ADAPTERS[model_type]
    return {placed.name: placed.shape for placed in laid_out(adapter, size(spec).tensors, spec.num_layers)}
