"""Phi-1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere (arXiv:2309.05463)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, Reader


def _build(reader: Reader) -> dict[str, Any]:
    normed = reader.flag("qk_layernorm")
    norms = {"query_key_norm": "head", "query_key_norm_kind": "layer_norm", "query_key_norm_bias": True}
    layer = {
        "sequence_mixer": layouts.attention(
            reader, query_key_value_bias=True, output_bias=True, **(norms if normed else {})
        ),
        "channel_mixer": layouts.plain_mlp(reader, reader.integer("intermediate_size"), bias=True),
        "residual": "parallel_shared_norm",
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader),
        positions=layouts.rotary(reader),
        lm_head_bias=True,
    )


PHI = Adapter(
    "phi",
    layouts.replaced(
        decoders.LLAMA_DEFAULTS,
        without=("rms_norm_eps",),
        vocab_size=51200,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.5,
        qk_layernorm=False,
    ),
    _build,
    layouts.paired(layouts.OUTER | {"final_norm": "model.final_layernorm"})
    + layouts.paired({"sequence_norm": "input_layernorm"}, "model.layers.{layer}.", "layers.{layer}.")
    + layouts.paired(
        {
            "q_proj": "q_proj",
            "k_proj": "k_proj",
            "v_proj": "v_proj",
            "o_proj": "dense",
            "q_norm": "q_layernorm",
            "k_norm": "k_layernorm",
        },
        "model.layers.{layer}.self_attn.",
        "layers.{layer}.sequence_mixer.",
    )
    + layouts.paired(
        {"up_proj": "fc1", "down_proj": "fc2"}, "model.layers.{layer}.mlp.", "layers.{layer}.channel_mixer."
    ),
    ignored=decoders.LLAMA_IGNORED | {"embd_pdrop", "resid_pdrop"},
)
