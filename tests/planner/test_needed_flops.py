"""FLOPs that masks leave, against masks that are written out position by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner import explain, flops
from planner.plans import TrainingPlan
from tests.planner.published import attention, model, uniform

LENGTH, BATCH, HEADS, WIDTH = 37, 3, 6, 8
SEQUENCE = np.arange(LENGTH)
DISTANCE = SEQUENCE[:, None] - SEQUENCE[None, :]
CAUSAL = DISTANCE >= 0
MASKS: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "causal": ({}, CAUSAL),
    "window": ({"sliding_window": 5}, CAUSAL & (DISTANCE < 5)),
    "window beyond the sequence": ({"sliding_window": 99}, CAUSAL),
    "dilated window": ({"sliding_window": 4, "dilation": 3}, CAUSAL & (DISTANCE % 3 == 0) & (DISTANCE < 12)),
    "chunks": ({"attention_chunk_size": 8}, CAUSAL & (SEQUENCE[:, None] // 8 == SEQUENCE[None, :] // 8)),
}


@pytest.mark.parametrize("name", MASKS)
def test_scores_and_values_are_counted_as_needed_beside_as_executed(name: str) -> None:
    fields, mask = MASKS[name]
    spec = model("one", 11, 16, [uniform(2, attention(HEADS, 2, WIDTH, **fields), None)])
    # Two products of each pair and head, a multiply-add a channel; two layers.
    a_pair = 2 * 2 * (2 * WIDTH) * HEADS * BATCH
    projections = 2 * 2 * LENGTH * BATCH * 16 * WIDTH * (2 * HEADS + 2 * 2) + 2 * LENGTH * BATCH * 16 * 11
    counted = flops(spec, LENGTH, BATCH)
    assert counted.total == projections + a_pair * LENGTH * LENGTH
    assert counted.needed_total == projections + a_pair * int(mask.sum())
    trained = flops(spec, LENGTH, BATCH, training=True)
    assert trained.needed_total == 3 * counted.needed_total
    plan = TrainingPlan(sequence_length=LENGTH, micro_batch_size=BATCH)
    assert explain(spec, "needed_flops", plan).value == counted.needed_total
    assert explain(spec, "needed_training_flops", plan).value == trained.needed_total


def test_latent_attention_needs_the_lower_half() -> None:
    latent = {
        "kind": "latent_attention",
        "num_attention_heads": HEADS,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 3,
    }
    counted = flops(model("one", 11, 16, [uniform(1, latent, None)]), LENGTH, BATCH)
    # A query and a key are 4 + 2 channels wide, a value 3.
    spared = 2 * BATCH * HEADS * ((4 + 2) + 3) * int((~CAUSAL).sum())
    assert counted.total - counted.needed_total == spared
