"""GPT-J and CodeGen: attention and MLP side by side behind one norm, neighbouring channels rotated (arXiv:2203.13474).

CodeGen's fused projection was cut over four machines: each quarter holds its queries, its values and its keys.
"""

from __future__ import annotations

from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, Reader, refusal

QUARTERS = 4
"""Machines over which CodeGen's fused projection was cut."""


def _build(reader: Reader) -> dict[str, Any]:
    hidden = reader.integer("n_embd")
    heads, head_dim = layouts.split_heads(reader, "n_head", "n_embd")
    rotated = reader.optional_integer("rotary_dim", least=0)
    if rotated is None:  # transformers then makes angles for the whole stream, which fit one head alone
        rotated = hidden
    if rotated > head_dim or rotated % 2:
        raise refusal(
            "rotary_dim", f"{rotated} of {head_dim} channels cannot be rotated in pairs.", "Choose an even number."
        )
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "rope_share": rotated / head_dim,
        },
        "channel_mixer": layouts.plain_mlp(
            reader, reader.optional_integer("n_inner") or 4 * hidden, bias=True, act="activation_function"
        ),
        "residual": "parallel_shared_norm",
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("n_layer"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions={"kind": "rotary", "theta": 10_000.0},
        channels="n_embd",
        lm_head_bias=True,
    )


def _codegen(reader: Reader) -> dict[str, Any]:
    hidden = reader.integer("n_embd")
    if hidden % QUARTERS:
        raise refusal("n_embd", f"It is no multiple of {QUARTERS}.", f"Choose a multiple of {QUARTERS}.")
    return _build(reader)


_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50400,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
_LAYER = "transformer.h.{layer}"
_MIXER = "layers.{layer}.sequence_mixer."
_LAYOUT = (
    layouts.paired({"embed_tokens": "transformer.wte", "final_norm": "transformer.ln_f", "lm_head": "lm_head"})
    + layouts.paired({"sequence_norm": "ln_1"}, f"{_LAYER}.", "layers.{layer}.")
    + layouts.paired({"up_proj": "fc_in", "down_proj": "fc_out"}, f"{_LAYER}.mlp.", "layers.{layer}.channel_mixer.")
)
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
_FUSED = tuple(f"{_MIXER}{part}_proj" for part in "qvk")
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_IGNORED = layouts.GPT_IGNORED | {"n_positions"}
GPTJ = Adapter(
    "gptj",
    _DEFAULTS,
    _build,
    _LAYOUT + layouts.paired(_ATTENTION, f"{_LAYER}.attn.", _MIXER),
    aliases=_ALIASES,
    ignored=_IGNORED,
    neutral={"rotary": (True,), "scale_attn_weights": (True,)},
    rotary_in_pairs=True,
)
CODEGEN = Adapter(
    "codegen",
    _DEFAULTS,
    _codegen,
    _LAYOUT
    + layouts.both(f"{_LAYER}.attn.qkv_proj", *_FUSED, interleaved_by=QUARTERS)
    + layouts.paired({"o_proj": "out_proj"}, f"{_LAYER}.attn.", _MIXER),
    aliases=_ALIASES,
    ignored=_IGNORED,
    neutral={"scale_attn_weights": (True,)},
    rotary_in_pairs=True,
)
