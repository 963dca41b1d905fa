"""Quantised weights, as a configuration announces them: they are named, and change no count of parameters.

The method's own fields are those of transformers' ``quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.interop.base import refusal, shown

FIXED_BITS: Mapping[str, int] = {
    "bitnet": 2,
    "eetq": 8,
    "fbgemm_fp8": 8,
    "fp8": 8,
    "mxfp4": 4,
    "mxfp8": 8,
    "nvfp4": 4,
}
"""Methods whose name is their precision."""
KNOWN = frozenset(FIXED_BITS) | {
    "aqlm", "auto-round", "awq", "bitsandbytes", "compressed-tensors", "fp_quant", "gguf", "gptq", "higgs", "hqq",
    "modelopt", "quanto", "quark", "spqr", "torchao", "vptq",
}  # fmt: skip
BIT_FIELDS = ("bits", "w_bit", "nbits", "num_bits", "nbits_per_codebook", "weight_bits")


def check_quantization(config: Mapping[str, Any]) -> None:
    """Refuse a ``quantization_config`` that is none."""
    quantization = config.get("quantization_config")
    if quantization is not None and not isinstance(quantization, Mapping):
        raise refusal(
            "quantization_config",
            f"A mapping is expected, got {shown(quantization)}.",
            "Write it as published, or remove it.",
            "not_a_mapping",
        )


def quantization_sentence(config: Mapping[str, Any]) -> str | None:
    """What a configuration says of its weights' precision: the method and its bits; nothing where it says nothing."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization:
        return None
    method = quantization.get("quant_method")
    if method is None and ("load_in_4bit" in quantization or "load_in_8bit" in quantization):
        method = "bitsandbytes"
    bits = _bits(quantization, method)
    said = [f"by {method if isinstance(method, str) else 'a method without a name'}"]
    if isinstance(method, str) and method not in KNOWN:
        said.append("a method that is not known here")
    said.append(f"to {bits} bits" if bits is not None else "at a precision that it does not state")
    return (
        f"The weights are published quantised, {', '.join(said)}; parameters are counted as they are without that, and "
        "the scales that come with it are not counted."
    )


def _bits(quantization: Mapping[str, Any], method: object) -> int | None:
    """Bits of a quantised weight, where the method or one of its fields says."""
    if isinstance(method, str) and method in FIXED_BITS:
        return FIXED_BITS[method]
    if quantization.get("load_in_4bit") is True:
        return 4
    if quantization.get("load_in_8bit") is True:
        return 8
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping):  # compressed-tensors: each group of modules has its own
        found = {
            _whole(group["weights"].get("num_bits"))
            for group in groups.values()
            if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
        }
        return found.pop() if len(found) == 1 else None
    return next((_whole(quantization[name]) for name in BIT_FIELDS if name in quantization), None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 64 else None
