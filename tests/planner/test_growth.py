"""Shares of a growing model: at factors that a model can have they are those of that model."""

from __future__ import annotations

import pytest

from planner import ArchitectureSpec, UnsupportedPlan, flops, parse_spec, size
from planner.components import Mamba2
from planner.growth import grow


def model(width: int, repeats: int = 2) -> ArchitectureSpec:
    attention = {
        "kind": "attention",
        "num_attention_heads": 4 * width,
        "num_key_value_heads": 2 * width,
        "head_dim": 16,
        "sliding_window": 32,
    }
    moe = {
        "kind": "moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 96 * width,
        "shared_intermediate_size": 40 * width,
    }
    mamba = {"kind": "mamba2", "num_heads": 8 * width, "head_dim": 16, "state_size": 16, "chunk_size": 32}
    layers = [
        {"sequence_mixer": attention, "channel_mixer": moe},
        {"sequence_mixer": mamba, "channel_mixer": {"kind": "mlp", "intermediate_size": 256 * width}},
    ]
    return parse_spec(
        {
            "vocab_size": 512,
            "hidden_size": 64 * width,
            "layer_groups": [{"repeats": repeats, "layers": layers}],
        }
    )


def expected(spec: ArchitectureSpec, measure: str) -> dict[str, float]:
    counts = size(spec).parameters.by_component if measure == "parameters" else flops(spec, 100).by_component
    merged: dict[str, float] = {}
    for name, count in counts.items():
        key = "embedding" if name in ("token_embedding", "lm_head") else name
        merged[key] = merged.get(key, 0) + count / sum(counts.values())
    return merged


@pytest.mark.parametrize("measure", ["parameters", "flops"])
@pytest.mark.parametrize("by", ["width", "depth"])
def test_each_factor_has_the_shares_of_the_model_that_it_makes(by: str, measure: str) -> None:
    found = grow(model(1), (1, 2, 4), by, measure, 100)  # type: ignore[arg-type]
    for index, factor in enumerate((1, 2, 4)):
        grown = model(factor) if by == "width" else model(1, 2 * factor)
        assert found.parameters[index] == size(grown).parameters.total
        at = {name: shares[index] for name, shares in found.shares.items()}
        assert at == pytest.approx(expected(grown, measure))
        assert sum(at.values()) == pytest.approx(1)


def test_a_mixer_without_a_rule_is_refused_in_width_and_grows_in_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mamba2, "grows", None)
    with pytest.raises(UnsupportedPlan, match=r"layer_groups\[0\].layers\[1\].sequence_mixer") as refused:
        grow(model(1), (1, 2))
    assert refused.value.remedy == "Let the model grow in depth."
    assert grow(model(1), (1, 2), "depth").factors == (1, 2)
