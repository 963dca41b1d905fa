"""Types of weights in GGUF files, and which tensor of a mixture gets which, as llama.cpp quantizes them.

A type stores a row in blocks of 32 or 256 weights. A mixture (``q4_k_m``) gives most matrices its base type and some a
wider one: values, the MLP's way down and the output projection, in some layers or in all. The rules are those of
``llama_tensor_get_type`` in llama.cpp's ``src/llama-quant.cpp`` (MIT), read in 2025, without an importance matrix.
Vectors, routers, convolutions and learned positions stay in fp32, and the head has Q6_K unless the rule says more.

The numbers that a rule looks at (which layer of how many, queries a KV head, experts, whether a row is whole blocks)
are quantities in the other readings, so a rule is a table that is looked up (:func:`planner.quantities.tabulated`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

BLOCKS: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "iq1_s": (256, 50),
    "iq1_m": (256, 56),
    "iq2_xxs": (256, 66),
    "iq2_xs": (256, 74),
    "iq2_s": (256, 82),
    "iq3_xxs": (256, 98),
    "iq3_s": (256, 110),
    "iq4_nl": (32, 18),
    "iq4_xs": (256, 136),
    "mxfp4": (32, 17),
}
"""Weights and bytes of a block: ``ggml_type_size`` and ``ggml_blck_size`` of ggml."""

BASES: dict[str, str] = {
    "f16": "f16",
    "q4_0": "q4_0",
    "q4_1": "q4_1",
    "q5_0": "q5_0",
    "q5_1": "q5_1",
    "q8_0": "q8_0",
    "q2_k": "q2_k",
    "q2_k_s": "q2_k",
    "q3_k_s": "q3_k",
    "q3_k_m": "q3_k",
    "q3_k_l": "q3_k",
    "q4_k_s": "q4_k",
    "q4_k_m": "q4_k",
    "q5_k_s": "q5_k",
    "q5_k_m": "q5_k",
    "q6_k": "q6_k",
    "iq1_s": "iq1_s",
    "iq1_m": "iq1_m",
    "iq2_xxs": "iq2_xxs",
    "iq2_xs": "iq2_xs",
    "iq2_s": "iq2_xs",
    "iq2_m": "iq2_s",
    "iq3_xxs": "iq3_xxs",
    "iq3_xs": "iq3_s",
    "iq3_s": "iq3_s",
    "iq3_m": "iq3_s",
    "iq4_nl": "iq4_nl",
    "iq4_xs": "iq4_xs",
    "mxfp4_moe": "q8_0",
}
"""Types of a whole file, and the type that a matrix has unless a rule says otherwise."""
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""As llama-quantize understands them."""

_NARROWEST = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
_FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""For rows that are no whole blocks of 256; everything narrower becomes ``iq4_nl``."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a rule knows of one tensor."""

    inputs: int
    """Weights of a row, or what is left of them beside whole blocks of 256."""
    queries_per_key: int
    experts: int
    """Of the model; 1 without."""
    layers: int
    """Of the model."""
    index: int
    """Of the layer among those that have such a tensor."""
    count: int
    """Layers that have such a tensor."""

    @property
    def more_bits(self) -> bool:
        """``use_more_bits``: the first and the last eighth of the layers, and every third between."""
        eighth = self.count // 8
        return self.index < eighth or self.index >= 7 * self.count // 8 or (self.index - eighth) % 3 == 2

    @property
    def first_eighth(self) -> bool:
        """Whether the layer is among the first eighth."""
        return self.index < self.count // 8


def _head(file: str, place: Place) -> str:
    base = BASES[file]
    if file == "mxfp4_moe" or place.inputs % BLOCKS[base][0]:
        return "q8_0"
    if base in ("f16", "q8_0"):
        return base
    return "q5_k" if file in (*_NARROWEST, "iq3_xxs") else "q6_k"


def _embedding(file: str, place: Place) -> str:
    if file in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
        return "q2_k"
    return "iq3_s" if file in ("iq2_s", "iq2_m", "iq3_xxs") else BASES[file]


def _values(file: str, place: Place) -> str:
    base, grouped = BASES[file], place.queries_per_key >= 4
    if file in _NARROWEST:
        if grouped or place.experts >= 4:
            return "q4_k"
        return "iq3_s" if file in ("iq2_s", "iq2_m") else "q2_k"
    match file:
        case "q2_k":
            base = "q4_k" if grouped else "q3_k"
        case "q2_k_s" | "iq3_xs" | "iq3_s" if grouped:
            base = "q4_k"
        case "iq3_xxs":
            base = "q4_k" if grouped else "iq3_s"
        case "iq3_m":
            base = "q4_k"
        case "q3_k_m":
            base = "q5_k" if place.index < 2 else "q4_k"
        case "q3_k_l":
            base = "q5_k"
        case "iq4_nl" | "iq4_xs" if grouped:
            base = "q5_k"
        case "q4_k_m" | "q5_k_m" if place.more_bits:
            base = "q6_k"
        case "q4_k_s" if place.index < 4:
            base = "q5_k"
    if place.layers == 80 and place.queries_per_key > 1 and base in ("q3_k", "q4_k"):
        base = "q5_k"  # of a model like Llama 2 70B, whose values are few
    return "q8_0" if place.experts == 8 and BASES[file] != "f16" else base


def _keys(file: str, place: Place) -> str:
    if file in _NARROWEST:
        return "q4_k" if place.experts == 8 else BASES[file]
    if place.experts == 8 and BASES[file] != "f16":
        return "q8_0"
    return _queries(file, place)


def _queries(file: str, place: Place) -> str:
    return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(file, BASES[file])


def _down(file: str, place: Place) -> str:
    base = BASES[file]
    if file in _NARROWEST:
        narrow = "iq3_s" if file in ("iq2_s", "iq2_m") else "q2_k"
        return narrow if place.first_eighth else base
    match file:
        case "q2_k":
            return "q3_k"
        case "q2_k_s" if place.first_eighth:
            return "q4_k"
        case "iq3_xxs":
            return "q4_k" if place.first_eighth else "q3_k"
        case "q3_k_m":
            return "q5_k" if place.index < place.count // 16 else "q4_k"
        case "iq3_m" if place.first_eighth or (place.experts == 8 and place.more_bits):
            return "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "q4_k_m" | "q5_k_m" if place.more_bits:
            return "q6_k"
        case "iq4_nl" | "iq4_xs" | "q4_k_s" if place.first_eighth:
            return "q5_k"
    return base


def _output(file: str, place: Place) -> str:
    if file in _NARROWEST:
        if place.experts == 8:
            return "q5_k"
        narrow = {"iq1_s": "iq2_xxs", "iq1_m": "iq2_xxs", "iq2_s": "iq3_s", "iq2_m": "iq3_s"}
        return narrow.get(file, BASES[file])
    if place.experts == 8:
        raised = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m")
        return "q5_k" if file in raised or file.startswith("iq") else BASES[file]
    wider = {"q2_k": "q3_k", "iq3_xxs": "iq3_s", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "iq3_m": "q4_k"}
    return wider.get(file, BASES[file])


def _fused(file: str, place: Place) -> str:
    wider = {"q3_k_m": "q4_k", "q3_k_l": "q4_k", "iq3_m": "q4_k", "q4_k_m": "q5_k", "q5_k_m": "q6_k"}
    return wider.get(file, BASES[file])


def _up(file: str, place: Place) -> str:
    middle = place.count // 8 <= place.index < 7 * place.count // 8
    return "iq3_xxs" if file == "iq3_xs" and middle else BASES[file]


def _expert(file: str, place: Place) -> str:
    return "mxfp4" if file == "mxfp4_moe" else _up(file, place)


def _expert_down(file: str, place: Place) -> str:
    return "mxfp4" if file == "mxfp4_moe" else _down(file, place)


_RULES: dict[str, Callable[[str, Place], str]] = {
    "head": _head,
    "embedding": _embedding,
    "values": _values,
    "keys": _keys,
    "queries": _queries,
    "fused": _fused,
    "output": _output,
    "up": _up,
    "down": _down,
    "expert_up": _expert,
    "expert_down": _expert_down,
    "matrix": lambda file, place: BASES[file],
}
ROLES = tuple(_RULES)
"""What a tensor may be to a rule."""


def type_of(file: str, role: str, place: Place) -> str:
    """The type in which a file of type ``file`` has a tensor of that role."""
    chosen = _RULES[role](file, place)
    width = BLOCKS[chosen][0]
    if place.inputs % width:
        chosen = _FALLBACK.get(chosen, "iq4_nl") if width == 256 else "f16"
        if place.inputs % BLOCKS[chosen][0]:
            chosen = "f16"
    return chosen


@functools.cache
def bytes_per_256(
    file: str,
    role: str,
    inputs: int,
    queries_per_key: int,
    experts: int,
    layers: int,
    first: int,
    step: int,
    times: int,
    count: int,
) -> int:
    """Bytes that 256 weights of a tensor take, summed over the ``times`` layers of its group that have it.

    Of the ``count`` tensors of its like in the model, its own are number ``first``, ``first + step`` and so on;
    ``layers`` counts all layers.
    """
    total = 0
    for index in range(first, first + step * times, step):
        place = Place(inputs, queries_per_key, experts, layers, index, count)
        weights, size = BLOCKS[type_of(file, role, place)]
        total += 256 // weights * size
    return total
