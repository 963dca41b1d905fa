"""Rotary positions against transformers: frequencies and factors of every scaling, and logits of whole models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from planner import InvalidSpec, parse_spec
from planner.components.rotary import RotaryScaling
from runners.models.places import Places
from runners.models.rotary import Rotation, rotate, rotated

ORIGINAL = 64


def theirs(scaling: dict[str, Any], channels: int, theta: float, length: int) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {name: value for name, value in scaling.items() if name != "kind"}
    if scaling["kind"] == "dynamic":
        del fields["original_max_position_embeddings"]  # read from max_position_embeddings
    config = LlamaConfig(
        hidden_size=2 * channels,
        num_attention_heads=2,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": scaling["kind"], "rope_theta": theta, **fields},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["kind"]](config, torch.device("cpu"), seq_len=length)
    return frequencies, float(factor)


@st.composite
def scalings(draw: st.DrawFn, channels: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["linear", "dynamic", "yarn", "llama3", "longrope"]))
    made: dict[str, Any] = {"kind": kind, "factor": draw(st.sampled_from([1.0, 2.0, 8.0, 40.0]))}
    if kind != "linear":
        made["original_max_position_embeddings"] = ORIGINAL
    if kind == "yarn":
        made |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "beta_fast": st.sampled_from([8.0, 32.0]),
                    "beta_slow": st.sampled_from([0.5, 1.0]),
                    "truncate": st.booleans(),
                    "attention_factor": st.sampled_from([0.7, 1.0]),
                    "mscale": st.sampled_from([0.707, 1.0]),
                    "mscale_all_dim": st.sampled_from([0.5, 1.0]),
                },
            )
        )
    if kind == "llama3":
        made |= {"low_freq_factor": draw(st.sampled_from([0.5, 1.0, 4.0])), "high_freq_factor": 4.0}
    if kind == "longrope":
        factors = st.lists(st.floats(1.0, 9.0), min_size=channels // 2, max_size=channels // 2)
        made |= {"short_factor": draw(factors), "long_factor": draw(factors)}
        if draw(st.booleans()):
            made["attention_factor"] = 1.3
    return made


@given(data=st.data(), channels=st.sampled_from([4, 8, 64, 128]), theta=st.sampled_from([500.0, 10_000.0, 1e6]))
@settings(max_examples=150, deadline=None)
def test_frequencies_and_factor_are_those_of_transformers(data: st.DataObject, channels: int, theta: float) -> None:
    scaling = data.draw(scalings(channels))
    length = data.draw(st.sampled_from([1, ORIGINAL, ORIGINAL + 1, 5 * ORIGINAL]))
    made: RotaryScaling = TypeAdapter(RotaryScaling).validate_python(scaling)
    rotation = Rotation(channels, theta, made)
    frequencies, factor = theirs(scaling, channels, theta, length)
    ours = rotation.frequencies(length, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(ours.float(), frequencies, rtol=2e-5, atol=0)
    assert rotation.attention_factor == pytest.approx(factor)


def test_a_rotation_multiplies_by_a_complex_number_and_the_factor() -> None:
    """By hand: one head of six channels of which four turn, at positions 5 and 6."""
    scaling = TypeAdapter(RotaryScaling).validate_python(
        {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "attention_factor": 1.5}
    )
    rotation = Rotation(4, 100.0, scaling)
    x = torch.randn(1, 1, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turned = rotated(x, Places(5, x.shape[-2], x.device), rotation, "eager")
    speeds = rotation.frequencies(7, x.device, torch.float64).tolist()
    for row, position in enumerate((5, 6)):
        for pair in range(2):
            before = complex(x[0, 0, row, pair], x[0, 0, row, pair + 2])
            angle = position * speeds[pair]
            after = 1.5 * before * complex(math.cos(angle), math.sin(angle))
            assert turned[0, 0, row, pair].item() == pytest.approx(after.real)
            assert turned[0, 0, row, pair + 2].item() == pytest.approx(after.imag)
    assert torch.equal(turned[..., 4:], x[..., 4:])


def test_the_backward_pass_of_a_scaled_rotation_is_its_transpose() -> None:
    scaling = TypeAdapter(RotaryScaling).validate_python(
        {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    )
    rotation = Rotation(4, 100.0, scaling)
    x = torch.randn(1, 1, 3, 6, dtype=torch.float64, requires_grad=True)
    assert rotation.attention_factor > 1.1
    assert torch.autograd.gradcheck(lambda y: rotated(y, Places(2, 3, y.device), rotation, "eager"), (x,))
    plain = rotate(x, *rotation.angles(2, 3, x))
    torch.testing.assert_close(rotated(x, Places(2, 3, x.device), rotation, "eager"), plain)


def model(layers: list[dict[str, Any]], positions: dict[str, Any]) -> Any:
    made = [{"sequence_mixer": {"kind": "attention", **HEADS, **fields}} for fields in layers]
    return parse_spec({"vocab_size": 20, "hidden_size": 16, "positions": positions, "layer_groups": [{"layers": made}]})


HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def test_a_layer_may_be_scaled_by_itself() -> None:
    """As in Gemma 3, whose windows turn at a base of their own and are not stretched."""
    from runners.models import build

    linear = {"kind": "linear", "factor": 8.0}
    spec = model([{"sliding_window": 4}, {"rope_theta": 1e6, "rope_scaling": linear}], {"kind": "rotary"})
    rotations = [layer.sequence_mixer.rotation for layer in build(spec).layers]
    assert rotations[0] == Rotation(8, 10_000.0)
    assert rotations[1] is not None
    expected = 1e6 ** -(torch.arange(0, 8, 2) / 8) / 8
    torch.testing.assert_close(rotations[1].frequencies(5, torch.device("cpu"), torch.float32), expected)


@pytest.mark.parametrize(
    "layer, positions, path",
    [
        (
            {"rope_share": 0.5},
            {
                "kind": "rotary",
                "scaling": {
                    "kind": "longrope",
                    "factor": 2.0,
                    "original_max_position_embeddings": 8,
                    "short_factor": [1.0] * 4,
                    "long_factor": [1.0] * 4,
                },
            },
            "positions.scaling.short_factor",
        ),
        (
            {"rope_scaling": {"kind": "linear", "factor": 2.0}},
            {"kind": "none"},
            "layer_groups[0].layers[0].sequence_mixer.rope_scaling",
        ),
        (
            {"rope_share": 0.25},
            {"kind": "rotary", "scaling": {"kind": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}},
            "positions.scaling.kind",
        ),
        (
            {},
            {
                "kind": "rotary",
                "scaling": {
                    "kind": "llama3",
                    "factor": 2.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 3.0,
                    "original_max_position_embeddings": 8,
                },
            },
            "positions.scaling.high_freq_factor",
        ),
        ({}, {"kind": "rotary", "scaling": {"kind": "linear", "factor": -1.0}}, "positions.scaling.factor"),
    ],
    ids=["number of factors", "no rotation", "two channels", "empty ramp", "negative"],
)
def test_what_cannot_be_scaled_is_refused_at_its_field(
    layer: dict[str, Any], positions: dict[str, Any], path: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        model([layer], positions)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert caught.value.problems[0].remedy
