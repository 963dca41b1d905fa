"""Names and pieces in which published files hold the tensors of transformers' modules.

Where a family's modules came to hold in one tensor what its files hold in many (each expert's projections, the
convolutions of queries, keys and values), and where modules were renamed, the files stayed what they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Rows = tuple[int, int]
"""A first row and the one behind the last."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a module's tensor, and where a file holds it."""

    file_name: str
    """The tensor in the file."""
    file_rows: Rows | None = None
    """Its rows that are meant; all of them where nothing is said."""
    expert: int | None = None
    """The entry of the module's tensor along its first dimension that they are in."""
    rows: Rows | None = None
    """And the rows there."""


_GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
_W1_W3_W2 = ("w1", "w3", "w2")
EXPERTS: Mapping[str, tuple[str, str, str]] = dict.fromkeys(
    (
        *("afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo"),
        *("glm4_moe", "glm4_moe_lite", "hunyuan_v1_moe", "hy_v3", "jamba", "laguna", "mellum", "mimo_v2_flash"),
        *("nemotron_h", "olmoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_omni_moe_text"),
        *("sarvam_mla", "sarvam_moe", "solar_open"),
    ),
    _GATE_UP_DOWN,
) | dict.fromkeys(("kimi_linear", "lfm2_moe", "minimax", "minimax_m2", "mixtral", "phimoe"), _W1_W3_W2)
"""Families whose files hold each expert's matrices alone, with the names of gate, up and down."""

_SPARSE_BLOCK = ((".mlp.", ".block_sparse_moe."),)
_GRANITE = (
    (".experts.gate_up_proj", ".input_linear.weight"),
    (".experts.down_proj", ".output_linear.weight"),
    (".router.weight", ".router.layer.weight"),
)
RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ernie4_5_moe": ((".mlp.gate.moe_statics.", ".mlp.moe_statics."),),
    "exaone": (
        ("model.embed_tokens.", "transformer.wte."),
        ("model.layers.", "transformer.h."),
        ("model.norm.", "transformer.ln_f."),
        (".self_attn.o_proj.", ".self_attn.out_proj."),
        (".self_attn.", ".attn.attention."),
        (".input_layernorm.", ".ln_1."),
        (".post_attention_layernorm.", ".ln_2."),
        (".mlp.gate_proj.", ".mlp.c_fc_0."),
        (".mlp.up_proj.", ".mlp.c_fc_1."),
        (".mlp.down_proj.", ".mlp.c_proj."),
    ),
    "exaone_moe": ((".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias"),),
    "gpt_neox": (("lm_head.", "embed_out."),),
    "granitemoe": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hy_v3": (
        (".mlp.gate.weight", ".mlp.router.gate.weight"),
        (".mlp.e_score_correction_bias", ".mlp.expert_bias"),
        (".mlp.shared_experts.", ".mlp.shared_mlp."),
    ),
    "kimi_linear": (*_SPARSE_BLOCK, (".self_attn.forget_gate.", ".self_attn.")),
    "laguna": (
        (".mlp.gate.e_score_correction_bias", ".mlp.experts.e_score_correction_bias"),
        (".mlp.shared_experts.", ".mlp.shared_expert."),
    ),
    "mimo_v2_flash": ((".self_attn.sinks", ".self_attn.attention_sink_bias"),),
    "minimax": _SPARSE_BLOCK,
    "minimax_m2": _SPARSE_BLOCK,
    "mixtral": _SPARSE_BLOCK,
    "nemotron_h": (("model.", "backbone."),),
    "olmo_hybrid": (
        (".input_layernorm.", ".attention_layer_norm."),
        (".post_attention_layernorm.", ".feedforward_layer_norm."),
    ),
    "phimoe": (*_SPARSE_BLOCK, (".router.weight", ".gate.weight")),
    "sarvam_moe": (
        ("model.embed_tokens.", "model.word_embeddings."),
        (".self_attn.o_proj.", ".self_attn.dense."),
        (".self_attn.q_norm.", ".self_attn.query_layernorm."),
        (".self_attn.k_norm.", ".self_attn.key_layernorm."),
        (".self_attn.", ".attention."),
        (".gate.e_score_correction_bias", ".gate.expert_bias"),
    ),
}
"""Parts of modules' names and what stands for them in the files, one after the other."""

WITHIN = frozenset(
    {
        *("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"),
        *("qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_omni_moe_text"),
    }
)
"""Language models that transformers has only within multimodal ones."""

CONVOLUTIONS = frozenset({"kimi_linear", "olmo_hybrid"})
"""Families whose files hold the convolutions of queries, keys and values alone."""
FUSED = frozenset({"sarvam_moe"})
"""Families whose files hold the projections of queries, keys and values in one tensor."""
_PROJECTION = re.compile(r"(.*\.self_attn\.)([qkv])_proj(\.weight|\.bias)$")
_EXPERTS = re.compile(r"(.*\.experts)\.(gate_up|up|down)_proj$")


def file_name(model_type: str, name: str) -> str:
    """The name in the family's files of what its module calls ``name``."""
    for ours, theirs in RENAMED.get(model_type, ()):
        name = name.replace(ours, theirs)
    return name


def pieces(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Piece, ...]]:
    """Where the family's files hold each tensor of its modules; ``shapes`` are those of all of them."""
    return {name: tuple(_pieces(model_type, name, shapes)) for name in shapes}


def _pieces(model_type: str, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    experts, fused = _EXPERTS.match(name), _PROJECTION.match(name)
    if experts is not None and model_type in EXPERTS:
        gate, up, down = EXPERTS[model_type]
        stem, which = file_name(model_type, experts[1]), experts[2]
        for expert in range(shapes[name][0]):
            if which == "gate_up":
                width = shapes[name][1] // 2
                yield Piece(f"{stem}.{expert}.{gate}.weight", None, expert, (0, width))
                yield Piece(f"{stem}.{expert}.{up}.weight", None, expert, (width, 2 * width))
            else:
                yield Piece(f"{stem}.{expert}.{up if which == 'up' else down}.weight", None, expert)
    elif name.endswith(".conv1d.weight") and model_type in CONVOLUTIONS:
        stem, start = name.removesuffix("conv1d.weight"), 0
        for part in "qkv":
            rows = shapes[f"{stem}{part}_proj.weight"][0]
            yield Piece(file_name(model_type, f"{stem}{part}_conv1d.weight"), None, None, (start, start + rows))
            start += rows
    elif fused is not None and model_type in FUSED:
        stem, part, end = fused.groups()
        start = sum(shapes[f"{stem}{before}_proj{end}"][0] for before in "qkv"[: "qkv".index(part)])
        whole = file_name(model_type, f"{stem}query_key_value{end}")
        yield Piece(whole, (start, start + shapes[name][0]))
    else:
        yield Piece(file_name(model_type, name))
