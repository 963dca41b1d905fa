"""RWKV-4: a recurrence in place of attention, and a gated MLP; both look one position back (arXiv:2305.13048)."""

from __future__ import annotations

from typing import Any

from planner.interop import layouts
from planner.interop.base import Adapter, LayoutRule, Reader

FINAL_EPSILON = 1e-5
"""Of the norm before the head; transformers does not read ``layer_norm_epsilon`` for it."""


def _build(reader: Reader) -> dict[str, Any]:
    hidden = reader.integer("hidden_size")
    layer = {
        "sequence_mixer": {
            "kind": "rwkv_time_mix",
            "attention_hidden_size": reader.optional_integer("attention_hidden_size") or hidden,
        },
        "channel_mixer": {
            "kind": "rwkv_channel_mix",
            "intermediate_size": reader.optional_integer("intermediate_size") or 4 * hidden,
        },
    }
    return layouts.model(
        reader,
        [layer] * reader.integer("num_hidden_layers"),
        norm=layouts.layer_norm(reader, "layer_norm_epsilon"),
        positions={"kind": "none"},
        embedding_norm=True,
    )


_LAYER, _OURS = "rwkv.blocks.{layer}.", "layers.{layer}."
_TIME_MIX = {"k_proj": "key", "v_proj": "value", "receptance_proj": "receptance", "o_proj": "output"}
_CHANNEL_MIX = {"up_proj": "key", "receptance_proj": "receptance", "down_proj": "value"}


def _mix(theirs: str, ours: str, projections: dict[str, str], *same: str) -> tuple[LayoutRule, ...]:
    """The tensors of one of the mixes, of which some have the same names."""
    theirs, ours = f"{_LAYER}{theirs}.", f"{_OURS}{ours}."
    alike = tuple(LayoutRule(f"{theirs}{name}", (f"{ours}{name}",)) for name in same)
    return layouts.paired(projections, theirs, ours) + alike


RWKV = Adapter(
    "rwkv",
    {
        "vocab_size": 50277,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "attention_hidden_size": None,
        "intermediate_size": None,
        "layer_norm_epsilon": FINAL_EPSILON,
        "tie_word_embeddings": False,
    },
    _build,
    layouts.paired({"embed_tokens": "rwkv.embeddings", "embedding_norm": "rwkv.blocks.0.pre_ln"})
    + layouts.paired({"final_norm": "rwkv.ln_out", "lm_head": "head"})
    + layouts.paired({"sequence_norm": "ln1", "channel_norm": "ln2"}, _LAYER, _OURS)
    + _mix(
        "attention",
        "sequence_mixer",
        _TIME_MIX,
        *("time_decay", "time_first", "time_mix_key", "time_mix_value", "time_mix_receptance"),
    )
    + _mix("feed_forward", "channel_mixer", _CHANNEL_MIX, "time_mix_key", "time_mix_receptance"),
    # The longest sequence of a kernel.
    ignored=frozenset({"context_length", "max_position_embeddings"}),
    # After how many layers transformers halves the stream of a model that is not trained, and the weights that write to
    # it: against overflow in fp16. Only epsilons can tell, and at the published 6 by less than rounding.
    unmodelled={"layer_norm_epsilon": (FINAL_EPSILON,), "rescale_every": (0, 6)},
)
