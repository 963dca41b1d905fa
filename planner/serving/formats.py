"""How weights are kept for serving: formats by name, and the bytes of a tensor in each.

A **scheme** keeps the matrices of the layers in few bits, with scales, and everything else in 16 bits; what it
quantizes and what stands beside the weights is its engine's or its checkpoints' convention. A **GGUF type** is a whole
file's (:mod:`planner.serving.gguf`). Decay rates of state space layers and corrections of routers are kept in fp32.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass, replace
from typing import Literal

from planner.components.base import Tensor
from planner.errors import UnsupportedPlan
from planner.plans import ServingPlan
from planner.quantities import Quantity, ceiling_divide, product
from planner.serving.gguf import ALIASES, BASES

PLAIN_FORMATS = {"bf16": 2, "fp16": 2, "fp32": 4}
Covered = Literal["matrices", "experts", "no latents", "head too"]
"""Which matrices a scheme quantizes: those of all mixers; of the routed experts alone where there are some; of all but
latent attention; or of all mixers and the head."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Weights in few bits, each group of a row's with its scales."""

    bits: int
    source: str
    group: int | None = None
    """Weights of a row that share a scale; absent: the whole row."""
    scale_bytes: float = 0
    """Of a group: its scale, and its zero point where it has one."""
    block_rows: int = 1
    """Rows that share a scale, where scales are of blocks."""
    index_bytes: int = 0
    """Beside each input channel: which group it belongs to (GPTQ's ``g_idx``)."""
    covers: Covered = "matrices"
    arithmetic: str = "bf16"
    """What large products are multiplied in, where the device has it: weight-only schemes multiply in 16 bits."""


SCHEMES: dict[str, Scheme] = {
    "fp8": Scheme(8, "fp8 with an fp32 scale an output channel (vLLM, compressed-tensors)", None, 4, arithmetic="fp8"),
    "fp8_block": Scheme(
        8,
        "fp8 with an fp32 scale for blocks of 128 × 128 (DeepSeek-V3, arXiv:2412.19437, section 3.3)",
        128,
        4,
        block_rows=128,
        arithmetic="fp8",
    ),
    "int8": Scheme(8, "int8 with an fp32 scale an output channel (LLM.int8, SmoothQuant)", None, 4, arithmetic="int8"),
    "int8_torchao": Scheme(
        8, "int8 weights alone with a bf16 scale an output channel, the head too (torchao)", None, 2, covers="head too"
    ),
    "int4": Scheme(4, "int4 with a bf16 scale for every 128 weights of a row", 128, 2),
    "int4_torchao": Scheme(
        4,
        "int4 with a bf16 scale and zero point for every 64 weights, the head too (torchao)",
        64,
        4,
        covers="head too",
    ),
    "awq": Scheme(4, "int4 with an fp16 scale and a 4-bit zero point for every 128 weights (AutoAWQ)", 128, 2.5),
    "gptq_int4": Scheme(
        4, "int4 with an fp16 scale, a 4-bit zero point for every 128 weights, and g_idx (AutoGPTQ)", 128, 2.5, 1, 4
    ),
    "gptq_int8": Scheme(
        8, "int8 with an fp16 scale, an 8-bit zero point for every 128 weights, and g_idx (AutoGPTQ)", 128, 3, 1, 4
    ),
    "nf4": Scheme(4, "NF4 with an fp32 scale for every 64 weights (bitsandbytes; arXiv:2305.14314)", 64, 4),
    "nf4_dq": Scheme(
        4,
        "NF4 with an 8-bit scale for every 64 weights and an fp32 one for 256 of these (bitsandbytes, double "
        "quantization; arXiv:2305.14314, section 3)",
        64,
        1 + 4 / 256,
    ),
    "mxfp4": Scheme(
        4,
        "MXFP4: an 8-bit exponent for every 32 weights (OCP Microscaling 1.0), of the experts alone where there are "
        "some, as gpt-oss has it",
        32,
        1,
        covers="experts",
        arithmetic="fp4",
    ),
    "nvfp4": Scheme(
        4,
        "NVFP4: an fp8 scale for every 16 weights (NVIDIA TensorRT Model Optimizer), latent attention left in bf16",
        16,
        1,
        covers="no latents",
        arithmetic="fp4",
    ),
}
GROUPED = ("int4", "int4_torchao", "awq", "gptq_int4", "gptq_int8")
"""Schemes whose group may be chosen: ``int4_g64`` is ``int4`` with a scale for every 64 weights."""
GGUF_FORMATS = tuple(BASES)
WEIGHT_FORMATS = (*PLAIN_FORMATS, *SCHEMES, *GGUF_FORMATS)
"""Names of formats; those of :data:`GROUPED` also with ``_g32``, ``_g64`` … after them.

A GGUF type with ``_fused`` after it is a file of an architecture whose queries, keys and values are one tensor in
llama.cpp (GPT-2, GPT-NeoX, Falcon, BLOOM, MPT, Phi-3), which a specification does not say."""

_WITH_GROUP = re.compile(r"(?P<name>\w+)_g(?P<group>\d+)")


@functools.cache
def scheme(weight_format: str) -> Scheme | None:
    """The scheme of that name; ``None`` for plain types and GGUF."""
    if weight_format in SCHEMES:
        return SCHEMES[weight_format]
    with_group = _WITH_GROUP.fullmatch(weight_format)
    if with_group is not None and with_group["name"] in GROUPED:
        group = int(with_group["group"])
        if group in (16, 32, 64, 128, 256, 512, 1024):
            return replace(SCHEMES[with_group["name"]], group=group)
    return None


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The type of a whole GGUF file."""

    name: str
    fused: bool
    """Whether queries, keys and values are one tensor, whose type the mixture then chooses as one."""


FUSED = "_fused"


@functools.cache
def gguf_file(weight_format: str) -> GgufFile | None:
    """The GGUF type of that name; ``None`` where it is none."""
    stem = weight_format.removesuffix(FUSED)
    name = ALIASES.get(stem, stem)
    return GgufFile(name, weight_format.endswith(FUSED)) if name in BASES else None


def is_weight_format(weight_format: str) -> bool:
    """Whether weights can be kept so."""
    return weight_format in PLAIN_FORMATS or scheme(weight_format) is not None or gguf_file(weight_format) is not None


def check_weight_format(weight_format: str) -> None:
    """Refuse a name that no format has."""
    if is_weight_format(weight_format):
        return
    near = difflib.get_close_matches(weight_format.lower(), (*WEIGHT_FORMATS, *ALIASES), n=3, cutoff=0.6)
    raise UnsupportedPlan.of(
        f"Weights in {weight_format!r} are not modelled.",
        path="weight_format",
        remedy=f"Choose {' or '.join(near)}." if near else f"Choose one of {', '.join(WEIGHT_FORMATS)}.",
        code="unsupported_weight_format",
    )


def describe_format(weight_format: str) -> str:
    """How weights are kept under a format, and who keeps them so."""
    if weight_format in PLAIN_FORMATS:
        return f"plain {weight_format}"
    found = scheme(weight_format)
    if found is not None:
        return found.source
    return f"GGUF {weight_format.upper()}, tensor by tensor as llama.cpp quantizes (src/llama-quant.cpp)"


def arithmetic_of(weight_format: str) -> str:
    """The type in which large products are multiplied under a format, where the device has it."""
    found = scheme(weight_format)
    if found is not None:
        return found.arithmetic
    return weight_format if weight_format in PLAIN_FORMATS else "bf16"


def is_packed(weight_format: str) -> bool:
    """Whether weights are unpacked to 16 bits on their way into a product: what is multiplied as it is kept is not."""
    return weight_format not in PLAIN_FORMATS and weight_format != "f16" and arithmetic_of(weight_format) == "bf16"


def engine_of(plan: ServingPlan) -> Literal["serving", "eager", "llama.cpp"]:
    """The plan's engine; where it names none, that of its weights."""
    if plan.engine is not None:
        return plan.engine
    return "serving" if gguf_file(plan.weight_format) is None else "llama.cpp"


_LEFT_OUT = ("conv1d.", "router.", "shared_expert_gate.")


def is_large_matrix(tensor: Tensor) -> bool:
    """Whether a tensor of a layer is one that formats apply to: routers and convolutions are not."""
    return (
        len(tensor.shape) >= 2
        and tensor.is_matrix
        and tensor.dtype_class == "weight"
        and not any(word in tensor.name for word in _LEFT_OUT)
    )


def is_covered(found: Scheme, tensor: Tensor, has_experts: bool) -> bool:
    """Whether a scheme quantizes a tensor of a layer."""
    if not is_large_matrix(tensor):
        return False
    if found.covers == "experts" and has_experts:
        return tensor.name.startswith("experts.")
    return not (found.covers == "no latents" and tensor.component == "latent_attention")


def scheme_bytes(found: Scheme, tensor: Tensor) -> Quantity:
    """Bytes of a quantized matrix with what stands beside it: rows end on whole bytes, and groups are whole."""
    *others, outputs, inputs = tensor.shape
    matrices = product(tuple(others))
    rows = matrices * outputs
    held = rows * (inputs if found.bits == 8 else ceiling_divide(inputs, 2))
    groups: Quantity = 1 if found.group is None else ceiling_divide(inputs, found.group)
    scaled = matrices * ceiling_divide(outputs, found.block_rows) if found.block_rows > 1 else rows
    # Scales in 256ths of a byte: bytes, half bytes and the doubly quantized are all whole numbers of these.
    scales = ceiling_divide(scaled * groups * round(256 * found.scale_bytes), 256)
    return held + scales + matrices * found.index_bytes * inputs
