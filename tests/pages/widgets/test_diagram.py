"""What the diagram says of parts that only some designs have."""

from __future__ import annotations

from typing import Any

from pages.widgets import diagram
from planner import ArchitectureSpec, parse_spec
from planner.blocks import blocks

ATTENTION = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def spec(layer: dict[str, Any] | None = None, **changes: Any) -> ArchitectureSpec:
    mixers = {"sequence_mixer": ATTENTION, "channel_mixer": {"kind": "mlp", "intermediate_size": 96}}
    groups = [{"repeats": 2, "layers": [{**mixers, **(layer or {})}]}]
    return parse_spec({"vocab_size": 1000, "hidden_size": 32, "layer_groups": groups, **changes})


def drawn(design: ArchitectureSpec, selected: tuple[int, ...] = ()) -> dict[str, dict[str, Any]]:
    """Blocks by path, those inside an open group too."""
    costs = blocks(design, sequence_length=16, context_length=16)
    rows = diagram.rows(design, costs, "parameters", selected, "layer")
    return {row["path"]: row for entry in rows for row in (entry, *(entry.get("rows") or [])) if "path" in row}


def test_an_embedding_of_its_own_width_is_not_called_as_wide_as_the_stream() -> None:
    assert drawn(spec())["token_embedding"]["note"] == "1,000 × 32"
    assert drawn(spec(embedding_size=8))["token_embedding"]["note"] == "1,000 × 8 → 32"


def test_the_norm_after_the_embedding_is_a_block_of_its_own() -> None:
    assert "embedding_norm" not in drawn(spec())
    row = drawn(spec(embedding_norm=True))["embedding_norm"]
    assert (row["title"], row["value"]) == ("Embedding norm · RMSNorm", "32")


def test_mixers_in_parallel_say_so() -> None:
    path = "layer_groups[0].layers[0].channel_mixer"
    assert drawn(spec(), (0, 1))[path]["note"] == "96"
    assert drawn(spec({"residual": "parallel"}), (0, 1))[path]["note"] == "96 · in parallel"
