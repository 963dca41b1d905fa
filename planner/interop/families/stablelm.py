"""StableLM 3B and 2: a quarter of each head rotated, LayerNorm, norms of single heads (arXiv:2402.17834)."""

from __future__ import annotations

from typing import Any

from planner.interop import decoders, layouts
from planner.interop.base import Adapter, LayoutRule, Reader


def _build(reader: Reader) -> dict[str, Any]:
    heads, head_dim = layouts.split_heads(reader)
    parallel = reader.flag("use_parallel_residual")
    layer = {
        "sequence_mixer": {
            "kind": "attention",
            "num_attention_heads": heads,
            "num_key_value_heads": reader.integer("num_key_value_heads"),
            "head_dim": head_dim,
            "query_key_value_bias": reader.flag("use_qkv_bias"),
            "query_key_norm": "each_head" if reader.flag("qk_layernorm") else None,
            "query_key_norm_kind": "layer_norm" if reader.flag("qk_layernorm") else "rms_norm",
            "rope_share": reader.rope_share(head_dim),
        },
        "channel_mixer": decoders.gated_mlp(reader),
        "residual": "parallel_shared_norm" if parallel else "sequential",
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader),
        positions=layouts.rotary(reader),
    )


STABLELM = Adapter(
    "stablelm",
    layouts.replaced(
        decoders.LLAMA_DEFAULTS,
        without=("head_dim", "rms_norm_eps"),
        vocab_size=50304,
        hidden_size=2560,
        intermediate_size=6912,
        num_key_value_heads=32,
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.25,
        use_qkv_bias=False,
        qk_layernorm=False,
        use_parallel_residual=False,
    ),
    _build,
    layouts.paired(layouts.OUTER)
    + layouts.paired(layouts.PRE_NORMS, "model.layers.{layer}.", "layers.{layer}.")
    + decoders.ATTENTION[:8]
    + decoders.MLP
    + tuple(
        LayoutRule(
            f"model.layers.{{layer}}.self_attn.{part}_layernorm.norms.{{row}}.weight",
            (f"layers.{{layer}}.sequence_mixer.{part}_norm.weight",),
        )
        for part in "qk"
    ),
    # norm_eps, num_heads, rope_pct and rotary_scaling_factor are of the code that came with the first files.
    ignored=decoders.LLAMA_IGNORED | {"hidden_dropout", "norm_eps", "num_heads", "rope_pct", "rotary_scaling_factor"},
)
