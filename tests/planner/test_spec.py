"""A specification survives being written and read, and what contradicts itself is refused at the field's path."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import ArchitectureSpec, InvalidSpec, flops, parse_spec, size
from planner.presets import read_yaml
from planner.spec import RotaryPositions
from tests.planner.strategies import specs as wide_specs
from tests.runners.models.specs import specs as small_specs

ATTENTION = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
LATENT = {
    "kind": "latent_attention",
    "num_attention_heads": 2,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
LONG = {
    "kind": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "short_factor": [1.0, 1.0],
    "long_factor": [1.0, 2.0],
}
MLP = {"kind": "mlp", "intermediate_size": 96}


def model(layer: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Plain data of a small model of two equal layers."""
    layer = {"sequence_mixer": ATTENTION, "channel_mixer": MLP, **(layer or {})}
    return {"vocab_size": 100, "hidden_size": 32, "layer_groups": [{"repeats": 2, "layers": [layer]}], **changes}


# --- written and read ---


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spec=st.one_of(wide_specs(), small_specs()),
    name=st.text(min_size=1, max_size=120)
    | st.text("a \x85\u2028\u2029\ufeff\n\r\t\x00'\":#-é😀", min_size=1, max_size=12),
)
def test_a_design_is_the_same_after_yaml_json_and_plain_data(spec: ArchitectureSpec, name: str) -> None:
    spec = spec.model_copy(update={"name": name})
    assert parse_spec(yaml.safe_load(spec.to_yaml())) == spec
    assert parse_spec(json.loads(spec.to_json())) == spec
    assert parse_spec(spec.to_dict()) == spec
    assert parse_spec(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=wide_specs())
def test_equal_designs_have_equal_hashes_and_folding_layers_changes_no_number(spec: ArchitectureSpec) -> None:
    assert parse_spec(spec.to_dict()).content_hash() == spec.content_hash()
    assert spec.model_copy(update={"name": "another"}).content_hash() == spec.content_hash()
    folded = spec.with_layers([layer for _, layer in spec.iterate_layers()])
    assert [layer for _, layer in folded.iterate_layers()] == [layer for _, layer in spec.iterate_layers()]
    assert size(folded).parameters == size(spec).parameters
    assert flops(folded, 64).total == flops(spec, 64).total


def test_what_is_written_names_no_default() -> None:
    written = parse_spec(model()).to_dict()
    assert set(written) == {"vocab_size", "hidden_size", "layer_groups"}
    assert written["layer_groups"][0]["layers"][0]["sequence_mixer"] == ATTENTION


# --- strict ---


@pytest.mark.parametrize(
    "data, path, remedy",
    [
        (model(vocab_size=True), "vocab_size", "whole number"),
        (model(vocab_size="100"), "vocab_size", "whole number"),
        (model(vocab_size=100.0), "vocab_size", "whole number"),
        (model(hidden_size=10**200), "hidden_size", "smaller"),
        (model(hidden_size=2**31), "hidden_size", "smaller"),
        (model(embedding_size="16"), "embedding_size", "whole number"),
        (model(tie_word_embeddings=1), "tie_word_embeddings", "true or false"),
        (model(tie_word_embeddings="yes"), "tie_word_embeddings", "true or false"),
        (model(logit_scale=True), "logit_scale", "number"),
        (model(logit_scale="0.5"), "logit_scale", "number"),
        (model(positions={"kind": "rotary", "theta": "1e4"}), "positions.theta", "number"),
        (model(positions={"kind": "learned", "num_positions": 10**30}), "positions.num_positions", "smaller"),
        (
            model({"sequence_mixer": {**ATTENTION, "head_dim": "16"}}),
            "layer_groups[0].layers[0].sequence_mixer.head_dim",
            "whole number",
        ),
        (
            model({"sequence_mixer": {**ATTENTION, "sliding_window": True}}),
            "layer_groups[0].layers[0].sequence_mixer.sliding_window",
            "whole number",
        ),
        (
            model({"sequence_mixer": {**ATTENTION, "rope_scaling": {"kind": "linear", "factor": "2"}}}),
            "layer_groups[0].layers[0].sequence_mixer.rope_scaling.factor",
            "number",
        ),
        (
            model({"sequence_mixer": {**ATTENTION, "rope_scaling": {**LONG, "short_factor": [True, 1.0]}}}),
            "layer_groups[0].layers[0].sequence_mixer.rope_scaling.short_factor[0]",
            "number",
        ),
        (
            model({"channel_mixer": {**MLP, "intermediate_size": 10**200}}),
            "layer_groups[0].layers[0].channel_mixer.intermediate_size",
            "smaller",
        ),
        (
            model(layer_groups=[{"repeats": "2", "layers": [{"channel_mixer": MLP}]}]),
            "layer_groups[0].repeats",
            "whole",
        ),
        (model(layer_groups=[{"repeats": 10**9, "layers": [{"channel_mixer": MLP}]}]), "layer_groups", "Repeat fewer"),
        (model(layer_groups=[{"repeats": 10**9, "layers": [{"channel_mixer": MLP}]}] * 5), "layer_groups", "Repeat"),
    ],
)
def test_nothing_is_read_into_a_number_or_a_flag(data: dict[str, Any], path: str, remedy: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(data)
    assert refused.value.path == path
    assert remedy in refused.value.remedy
    assert len(refused.value.problems) == 1


def test_whole_numbers_stand_for_fractions_and_yaml_writes_them_as_people_do() -> None:
    made = parse_spec(read_yaml(yaml.safe_dump(model()) + "positions: {kind: rotary, theta: 1e4}\n"))
    assert made == parse_spec(model(positions={"kind": "rotary", "theta": 10_000}))
    assert isinstance(made.positions, RotaryPositions)
    assert (made.positions.theta, type(made.positions.theta)) == (1e4, float)
    assert parse_spec(model(vocab_size=2**31 - 1)).vocab_size == 2**31 - 1


# --- refused ---


@pytest.mark.parametrize(
    "data, path",
    [
        pytest.param(model({"channel_mixer": None, "residual": "parallel"}), "{layer}.residual", id="one mixer"),
        pytest.param(
            model({"residual": "parallel", "norm_placement": "after_residual"}),
            "{layer}.norm_placement",
            id="parallel, norms after the residual",
        ),
        pytest.param(
            model({"residual": "parallel_shared_norm", "norm_placement": "post"}),
            "{layer}.residual",
            id="no norm to share",
        ),
        pytest.param(model({"residual": "crosswise"}), "{layer}.residual", id="no such residual"),
        pytest.param(model({"norm_placement": "between"}), "{layer}.norm_placement", id="no such placement"),
        pytest.param(
            model({"sequence_mixer": None, "channel_mixer": None}), "{layer}.sequence_mixer", id="an empty layer"
        ),
        pytest.param(
            model(norm={"kind": "layer_norm", "has_weight": False}), "norm.bias", id="a bias without a weight"
        ),
        pytest.param(
            model(norm={"kind": "rms_norm", "has_weight": False, "zero_centered": True}),
            "norm.zero_centered",
            id="zero-centered without a weight",
        ),
        pytest.param(model(embedding_size=0), "embedding_size", id="an embedding without channels"),
        pytest.param(model(residual_multiplier=0), "residual_multiplier", id="a multiplier of zero"),
        pytest.param(model(logit_scale=-1.0), "logit_scale", id="a negative scale"),
        pytest.param(
            model(positions={"kind": "learned", "num_positions": 10, "offset": -1}), "positions.offset", id="an offset"
        ),
        pytest.param(model(positions={"kind": "alibi", "theta": 10}), "positions.theta", id="ALiBi has no base"),
        pytest.param(
            model({"sequence_mixer": {**ATTENTION, "rope_theta": 1e6}}, positions={"kind": "alibi"}),
            "{layer}.sequence_mixer.rope_theta",
            id="a rotary base where nothing is rotated",
        ),
        pytest.param(
            model({"sequence_mixer": {**ATTENTION, "shares_key_values": True}}),
            "{layer}.sequence_mixer.shares_key_values",
            id="keys and values shared with nobody",
        ),
        pytest.param(
            model({"sequence_mixer": {**ATTENTION, "rope_scaling": {"kind": "linear", "factor": -1.0}}}),
            "{layer}.sequence_mixer.rope_scaling.factor",
            id="inside a union inside a union",
        ),
        pytest.param(
            model({"sequence_mixer": {**ATTENTION, "kind": "attentive"}}), "{layer}.sequence_mixer", id="no such mixer"
        ),
        pytest.param(
            model({"sequence_mixer": LATENT}, positions={"kind": "none"}),
            "{layer}.sequence_mixer.qk_rope_head_dim",
            id="latent attention where nothing is rotated",
        ),
        pytest.param(
            model({"sequence_mixer": {**LATENT, "rotated": False}}, positions={"kind": "alibi"}),
            "positions",
            id="biases on latent attention",
        ),
        pytest.param(
            model(positions={"kind": "rotary", "scaling": LONG}),
            "positions.scaling.short_factor",
            id="too few factors of the model",
        ),
        pytest.param(
            model({"sequence_mixer": {**ATTENTION, "rope_scaling": LONG}}),
            "{layer}.sequence_mixer.rope_scaling.short_factor",
            id="too few factors of a layer",
        ),
        pytest.param(model(layer_groups=[]), "layer_groups", id="no layers"),
        pytest.param(model(colour="red"), "colour", id="an unknown field"),
    ],
)
def test_what_contradicts_itself_is_refused_at_its_field_with_a_remedy(data: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(data)
    (problem,) = caught.value.problems
    assert problem.path == path.format(layer="layer_groups[0].layers[0]")
    assert problem.message
    assert problem.remedy


def test_every_problem_is_named_at_once() -> None:
    data = model({"channel_mixer": {"kind": "mlp"}}, vocab_size="many", norm={"epsilon": 1.0})
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(data)
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"vocab_size", "norm", "layer_groups[0].layers[0].channel_mixer.intermediate_size"}


def test_a_specification_is_a_mapping() -> None:
    with pytest.raises(InvalidSpec, match="not list"):
        parse_spec([])


# --- the parts of a layer ---


@pytest.mark.parametrize(
    "placement, residual, parts",
    [
        ("pre", "sequential", "sequence_norm sequence_mixer channel_norm channel_mixer"),
        ("post", "sequential", "sequence_mixer sequence_post_norm channel_mixer channel_post_norm"),
        (
            "sandwich",
            "sequential",
            "sequence_norm sequence_mixer sequence_post_norm channel_norm channel_mixer channel_post_norm",
        ),
        ("after_residual", "sequential", "sequence_mixer sequence_norm channel_mixer channel_norm"),
        ("pre", "parallel", "sequence_norm sequence_mixer channel_norm channel_mixer"),
        ("pre", "parallel_shared_norm", "sequence_norm sequence_mixer channel_mixer"),
        (
            "sandwich",
            "parallel_shared_norm",
            "sequence_norm sequence_mixer sequence_post_norm channel_mixer channel_post_norm",
        ),
    ],
)
def test_parts_of_a_layer_stand_in_the_order_in_which_they_act(placement: str, residual: str, parts: str) -> None:
    spec = parse_spec(model({"norm_placement": placement, "residual": residual}))
    assert spec.layer_groups[0].layers[0].parts == tuple(parts.split())


# --- counted by hand ---


def plain_parameters(**changes: Any) -> int:
    return size(parse_spec(model(**changes))).parameters.total


def test_an_embedding_of_its_own_width_by_hand() -> None:
    """OPT-350m's shape in small: V·e for the embedding, and two projections between e and h; tied, no head."""
    tied = plain_parameters(tie_word_embeddings=True)
    narrow = plain_parameters(tie_word_embeddings=True, embedding_size=8)
    assert tied - narrow == 100 * 32 - (100 * 8 + 2 * 8 * 32)
    untied = plain_parameters(embedding_size=8)
    assert untied - narrow == 100 * 8
    # The head reads 8 channels of a token, and the two projections are products too.
    spec, whole = parse_spec(model(embedding_size=8)), parse_spec(model())
    assert flops(whole, 10).total - flops(spec, 10).total == 2 * 10 * (32 * 100 - 8 * 100 - 2 * 8 * 32)
    # Looked up, and multiplied by none: the embedding alone.
    counts = size(spec).parameters
    assert counts.active - counts.active_without_embedding == 100 * 8


def test_norms_and_rows_by_hand() -> None:
    assert plain_parameters() - plain_parameters(norm={"kind": "rms_norm", "has_weight": False}) == (2 * 2 + 1) * 32
    assert plain_parameters(embedding_norm=True) - plain_parameters() == 32
    learned = {"kind": "learned", "num_positions": 50}
    assert plain_parameters(positions={**learned, "offset": 2}) - plain_parameters(positions=learned) == 2 * 32
    shared = size(parse_spec(model({"residual": "parallel_shared_norm"}))).parameters.total
    assert plain_parameters() - shared == 2 * 32  # one norm fewer in each of two layers
