"""How the engines of measured runs deal out layers to the stages of a pipeline, where a row does not say it."""

from __future__ import annotations

from typing import Any

from planner.spec import ArchitectureSpec


def deepspeed_stages(num_layers: int, stages: int) -> dict[str, Any]:
    """How DeepSpeed of 2022 deals out layers.

    The document says so of each case: where layers do not divide, first the last stage had what the full ones left (78
    over 12: ``7 × 11 + 1``), later embedding and head counted as layers (``type:transformer|embedding``).
    """
    if num_layers % stages == 0:
        return {}
    if (num_layers + 2) % stages == 0:
        return {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
    full = -(-num_layers // stages)
    return {"pipeline_layers": tuple(min(full, max(0, num_layers - full * stage)) for stage in range(stages))}


def nanotron_stages(spec: ArchitectureSpec, stages: int) -> tuple[int, ...]:
    """How nanotron deals out layers (``models/base.py``, ``build_model``): a stage is full once the cost of all blocks
    up to its last one is more than its share, where a layer costs its matrices' elements and so does the head."""
    layers = [layer for _, layer in spec.iterate_layers()]
    costs = [4 * spec.hidden_size**2 + 3 * getattr(layer.channel_mixer, "intermediate_size", 0) * spec.hidden_size
             for layer in layers]  # fmt: skip
    whole_cost = sum(costs) + spec.vocab_size * spec.hidden_size
    found, stage, cost = [0] * stages, 0, 0
    for own in costs:
        found[stage] += 1
        cost += own
        if cost * stages > whole_cost * (stage + 1):
            stage += 1
    return tuple(found)
