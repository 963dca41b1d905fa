"""Structural edits: patterns are kept where they can be, split where they must be, and no edit loses a layer."""

from __future__ import annotations

import pytest

from pages.widgets import edits
from planner import ArchitectureSpec, InvalidSpec, Layer, parse_spec

ATTENTION = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
MAMBA = {"kind": "mamba1", "intermediate_size": 128, "state_size": 8, "time_step_rank": 4}
MLP = {"kind": "mlp", "intermediate_size": 128}


def alternating(repeats: int = 4) -> ArchitectureSpec:
    """Mamba, Mamba, attention, repeated."""
    pattern = [{"sequence_mixer": mixer, "channel_mixer": MLP} for mixer in (MAMBA, MAMBA, ATTENTION)]
    return parse_spec({"vocab_size": 100, "hidden_size": 64, "layer_groups": [{"repeats": repeats, "layers": pattern}]})


def kinds(spec: ArchitectureSpec) -> str:
    """The stack as letters: ``mma`` for Mamba, Mamba, attention."""
    return "".join(
        "-" if layer.sequence_mixer is None else layer.sequence_mixer.kind[0] for layer in edits.unfolded(spec)
    )


def without_mixer(layer: Layer) -> Layer:
    return layer.model_copy(update={"sequence_mixer": None})


def test_a_change_of_every_repeat_keeps_the_pattern() -> None:
    spec = alternating()
    changed = edits.change_layers(spec, edits.pattern_indices(spec, 0, 2), without_mixer)
    assert kinds(changed) == "mm-" * 4
    assert [(group.repeats, len(group.layers)) for group in changed.layer_groups] == [(4, 3)]


def test_a_change_inside_one_repeat_splits_that_repeat_off() -> None:
    changed = edits.change_layers(alternating(), [4], without_mixer)
    assert kinds(changed) == "mma" + "m-a" + "mma" * 2
    assert [(group.repeats, len(group.layers)) for group in changed.layer_groups] == [(1, 3), (1, 3), (2, 3)]


def test_undoing_a_change_by_hand_joins_the_groups_again() -> None:
    spec = alternating()
    layers = edits.unfolded(spec)
    changed = edits.change_layers(spec, [4], without_mixer)
    assert edits.change_layers(changed, [4], lambda _: layers[4]) == spec


def test_removing_and_duplicating_keep_the_others_in_order() -> None:
    assert kinds(edits.remove_layers(alternating(2), [1, 5])) == "ma" + "mm"
    assert kinds(edits.duplicate_layers(alternating(2), [1, 2])) == "mmama" + "mma"
    assert kinds(edits.append_layer(alternating(1))) == "mmaa"


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InvalidSpec):
        edits.remove_layers(alternating(1), [0, 1, 2])


def test_a_stack_too_deep_for_the_editor_is_refused_at_repeats() -> None:
    with pytest.raises(InvalidSpec) as refused:
        edits.set_repeats(alternating(), 0, 10_000)
    assert refused.value.path == "repeats"


def test_groups_move_and_equal_neighbours_join() -> None:
    spec = edits.change_layers(alternating(1), [2], without_mixer)
    assert kinds(spec) == "mm-"
    split = edits.change_layers(alternating(2), [3, 4, 5], without_mixer)
    assert kinds(split) == "mma---"
    assert kinds(edits.move_group(split, 1, -1)) == "---mma"


def test_every_kind_of_every_union_can_be_begun_with_at_every_width() -> None:
    for width in (8, 96, 768, 4096, 7168):
        spec = edits.rebuilt(alternating(1), hidden_size=width)
        for union in edits.MIXER_UNIONS.values():
            for kind, component in edits.kinds_of(union).items():
                assert edits.starting_part(component, spec).kind == kind


def test_mamba_in_place_of_attention_begins_with_twice_the_width() -> None:
    """``expand=2`` is the reference implementation's: github.com/state-spaces/mamba, mamba_ssm/modules/mamba2.py."""
    spec = edits.rebuilt(alternating(1), hidden_size=4096)
    attention = spec.layer_groups[0].layers[2].sequence_mixer
    mamba = edits.starting_part(edits.kinds_of(edits.MIXER_UNIONS["sequence_mixer"])["mamba2"], spec, attention)
    assert mamba.num_heads * mamba.head_dim == 2 * 4096  # type: ignore[attr-defined]
