"""The design that the Studio opens with where nothing else is asked for."""

from __future__ import annotations

from functools import cache

from planner import ArchitectureSpec, parse_spec


@cache
def starting_spec() -> ArchitectureSpec:
    """A dense decoder of 32 layers with grouped-query attention: a beginning, no published model."""
    attention = {"kind": "attention", "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    layer = {"sequence_mixer": attention, "channel_mixer": {"kind": "mlp", "intermediate_size": 14336}}
    return parse_spec(
        {
            "name": "New design",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "layer_groups": [{"repeats": 32, "layers": [layer]}],
        }
    )
