"""Well-known families that are refused with the reason: a specification cannot say what sets their size."""

from __future__ import annotations

from collections.abc import Mapping

BEYOND: Mapping[str, str] = {
    "zamba": "one attention block, with one set of weights, serves every layer that layers_block_type calls hybrid "
    "(attn_layer_period, attn_layer_offset), and reads the embedding beside the stream (arXiv:2405.16712)",
    "zamba2": "num_mem_blocks attention blocks serve all of hybrid_layer_ids in turn, read the embedding beside the "
    "stream, and have low-rank adapters of each layer's own (adapter_rank; arXiv:2411.15242)",
}
"""``model_type`` to what the family has that no layer here can have."""
