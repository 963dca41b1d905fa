"""Registers the toy component by its file, its twin and one entry in the union, and goes round with it.

Run as a program of its own: pydantic closes a union when the class that names it is made, so the union is changed
before anything else of the planner is imported. Whatever knows components by name fails here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

HERE = Path(__file__).parent


def register() -> None:
    """Put the toy beside the planner's components and into the union of sequence mixers, and import the rest anew."""
    import planner.components as components

    components.__path__.append(str(HERE / "components"))
    from planner.components.toy_gate import ToyGate  # type: ignore[import-not-found]

    union: Any = components.SequenceMixer
    mixers = union.__origin__ | ToyGate
    components.SequenceMixer = Annotated[mixers, Field(discriminator="kind")]  # type: ignore[misc]
    kept = ("planner.components", "planner.quantities", "planner.errors")
    for name in [name for name in sys.modules if name.partition(".")[0] == "planner" and not name.startswith(kept)]:
        del sys.modules[name]


def spec() -> Any:
    """A model of toys, one without a channel mixer and one in parallel with an MLP."""
    from planner import parse_spec

    mlp = {"kind": "mlp", "intermediate_size": 96}
    toy = {"kind": "toy_gate", "rank": 24}
    layers = [{"sequence_mixer": toy}, {"sequence_mixer": toy, "channel_mixer": mlp, "residual": "parallel"}]
    return parse_spec({"vocab_size": 300, "hidden_size": 64, "layer_groups": [{"repeats": 4, "layers": layers}]})


def go_round() -> None:
    """Everything that a specification goes through."""
    import pytest
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from planner import (
        InvalidSpec,
        TrainingPlan,
        cache_bytes,
        diff,
        estimate_inference,
        estimate_training,
        explain,
        flops,
        parse_spec,
        scale_down,
        size,
    )
    from planner.blocks import blocks
    from planner.plans import ServingPlan

    design = spec()
    assert parse_spec(design.to_dict()) == design

    # Sized by hand: two projections of rank 24 and a decay a toy, three norms a pattern, an MLP, embedding and head.
    toy = 2 * 24 * 64 + 64
    by_hand = 4 * (2 * toy + 3 * 64 + 3 * 64 * 96) + 2 * 300 * 64 + 64
    assert size(design).parameters.total == by_hand
    assert size(design).parameters.by_component["toy_gate"] == 8 * toy
    assert next(buffer.name for buffer in size(design).buffers) == "layers.0.sequence_mixer.seen"
    assert cache_bytes(design, 1000) == 8 * 64 * 2

    # Refused with the path that a person wrote, which the union's tags are no part of.
    data = design.to_dict()
    data["layer_groups"][0]["layers"][0]["sequence_mixer"]["rank"] = 0
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(data)
    assert caught.value.problems[0].path == "layer_groups[0].layers[0].sequence_mixer.rank"

    # Drawn, explained, compared, and planned for.
    block = blocks(design, sequence_length=8, context_length=8)["layer_groups[0].layers[0].sequence_mixer"]
    assert block.parameters_each == toy
    assert design.layer_groups[0].layers[0].sequence_mixer.describe() == "rank 24"
    assert "toy gate" in " ".join(term.name for term in explain(design, "parameters").children)
    wider = {**data["layer_groups"][0]["layers"][0], "sequence_mixer": {"kind": "toy_gate", "rank": 25}}
    data["layer_groups"][0]["layers"][0] = wider
    (change,) = diff(design, parse_spec(data)).changes
    assert change.effect is not None
    assert change.effect.parameters == 4 * 2 * 64
    assert estimate_training(design, TrainingPlan()).memory.total_bytes > 0
    assert estimate_inference(design, ServingPlan()).memory.total_bytes > 0

    # Scaled down with its rank.
    small = scale_down(design, 20_000)
    narrow = small.spec.layer_groups[0].layers[0].sequence_mixer
    assert narrow.rank < 24
    assert small.parameters <= 20_000
    assert any(".rank" in rule for rule in small.rules)

    # Built, counted, and read through its cache.
    from planner.activations import ACTIVATION_TYPES, saved_bytes, saved_model_activations
    from runners.models import build
    from tests.runners.models.test_activations import kept_bytes

    model = build(design, dtype=torch.float64, kernels="reference")
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {t.name: t.shape for t in size(design).tensors}
    assert model.layers[0].sequence_mixer.decay[0] == 0.75
    tokens = torch.arange(24).view(2, 12)
    with FlopCounterMode(display=False) as counter:
        whole = model(tokens).logits
    assert counter.get_total_flops() == flops(design, 12, 2).total
    cache = model.new_cache(2, 12)
    assert cache.bytes == cache_bytes(design, 12, 2, "fp32") * 2
    pieces = torch.cat([model(part, cache=cache).logits for part in tokens.split([7, 1, 4], 1)], 1)
    torch.testing.assert_close(pieces, whole)
    plain = build(design, kernels="eager")
    listed = saved_model_activations(design, 12, 2)
    kept = kept_bytes(plain, lambda: plain(tokens, labels=tokens).loss)
    assert kept == sum(times * saved_bytes(saved, ACTIVATION_TYPES["fp32"]) for _, times, saved in listed)


if __name__ == "__main__":
    register()
    import runners.models

    runners.models.__path__.append(str(HERE / "models"))
    go_round()
    print("went round")
