"""Rotations that a specification sizes and cannot say: of an odd number of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.components import Attention

if TYPE_CHECKING:
    from planner.interop.base import Adapter

SHARE = "partial_rotary_factor"


def rotary_field(name: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """``rope_parameters`` or ``rope_scaling`` of a configuration: null is what transformers takes for absent."""
    return defaults.get(name) if config.get(name) is None else config[name]


def odd_rotations(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """The share of a head that is an odd number of channels, where a configuration has one.

    transformers then rotates one more, by the frequencies of the odd number, which are those of no even one.
    """
    read = next((name for name in (SHARE, "rotary_pct") if adapter.reads(name)), None)  # the latter in GPT-NeoX
    if read is None:
        return {}
    shares = [config.get(alias) for alias, name in adapter.aliases.items() if name == read]
    shares.append(config.get(read, adapter.defaults.get(read)))
    for name in ("rope_scaling", "rope_parameters"):
        mapping = rotary_field(name, config, adapter.defaults)
        if isinstance(mapping, Mapping):
            inner = [value for value in mapping.values() if isinstance(value, Mapping)]
            shares += [each.get(SHARE) for each in (inner or [mapping])]
    mixers = [layer.sequence_mixer for _, layer in adapter.specification(config).iterate_layers()]
    parts = [part for mixer in mixers if mixer is not None for _, part in mixer.parts()]
    heads = {part.head_dim for part in parts if isinstance(part, Attention)}
    written = [share for share in shares if isinstance(share, (int, float)) and 0 <= share <= 1]
    odd = [share for share in written for channels in heads if int(channels * share) % 2]
    return {SHARE: odd[0]} if odd else {}
