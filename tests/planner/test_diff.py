"""What differs between two designs, and what each difference did."""

from __future__ import annotations

from hypothesis import given, settings

from planner import ArchitectureSpec, cache_bytes, diff, flops, parse_spec, size
from planner.diff import NOTHING
from tests.planner.published import GEMMA_2_2B, LLAMA_2_7B, MISTRAL_7B, QWEN_2_HALF
from tests.planner.strategies import specs


def with_field(path: str, value: object):  # type: ignore[no-untyped-def]
    """Llama 2 7B with one field of its attention changed."""
    data = LLAMA_2_7B.model_dump(mode="json")
    data["layer_groups"][0]["layers"][0]["sequence_mixer"][path] = value
    return parse_spec(data)


def test_a_design_does_not_differ_from_itself_under_another_name() -> None:
    compared = diff(LLAMA_2_7B, LLAMA_2_7B.model_copy(update={"name": "another"}))
    assert compared.identical
    assert compared.layers == ()
    assert compared.effect.parameters == 0


def test_one_field_has_the_whole_effect() -> None:
    grouped = with_field("num_key_value_heads", 8)
    compared = diff(LLAMA_2_7B, grouped, sequence_length=1024, context_length=4096)
    (change,) = compared.changes
    assert change.path == "layer_groups[0].layers[0].sequence_mixer.num_key_value_heads"
    assert (change.before, change.after) == (32, 8)
    # Keys and values of 24 fewer heads in 32 layers.
    assert change.effect.parameters == -32 * 2 * 24 * 128 * 4096
    assert change.effect.cache_bytes == -3 * cache_bytes(LLAMA_2_7B, 4096) // 4
    assert change.effect.flops == flops(grouped, 1024).total - flops(LLAMA_2_7B, 1024).total
    assert change.effect == compared.effect
    (layers,) = compared.layers
    assert layers.layers == tuple(range(32))
    assert layers.layers_text == "0–31"
    assert layers.fields == ("sequence_mixer.num_key_value_heads",)


def test_a_field_that_alone_makes_no_design_says_why() -> None:
    """24 query heads can share 8 KV heads, but not the 32 that the first design has."""
    data = LLAMA_2_7B.model_dump(mode="json")
    data["layer_groups"][0]["layers"][0]["sequence_mixer"] |= {"num_attention_heads": 24, "num_key_value_heads": 8}
    changes = {change.path.rsplit(".", 1)[-1]: change for change in diff(LLAMA_2_7B, parse_spec(data)).changes}
    assert changes["num_attention_heads"].effect is None
    assert "24" in changes["num_attention_heads"].reason
    assert changes["num_key_value_heads"].effect is not None


def test_changes_in_a_pattern_are_told_layer_by_layer() -> None:
    compared = diff(MISTRAL_7B, GEMMA_2_2B)
    assert compared.effect.parameters == size(GEMMA_2_2B).parameters.total - size(MISTRAL_7B).parameters.total
    by_layers = {change.layers_text: change for change in compared.layers}
    assert by_layers["26–31"].after == ""
    assert sum(len(change.layers) for change in compared.layers) == 32


def test_what_surrounds_the_mixers_has_effects_of_its_own() -> None:
    """One norm fewer in each of 32 layers; an embedding of 512 channels, and projections to the stream and back."""
    data = LLAMA_2_7B.model_dump(mode="json")
    data["layer_groups"][0]["layers"][0]["residual"] = "parallel_shared_norm"
    data["embedding_size"] = 512
    effects = {change.path.rpartition(".")[2]: change.effect for change in diff(LLAMA_2_7B, parse_spec(data)).changes}
    assert effects["residual"].parameters == -32 * 4096
    assert effects["embedding_size"].parameters == 2 * 512 * 4096 - 2 * 32_000 * (4096 - 512)
    assert effects["embedding_size"].flops == 2 * 4096 * (2 * 512 * 4096 - 32_000 * (4096 - 512))


def test_another_kind_of_mixer_is_one_change() -> None:
    data = QWEN_2_HALF.model_dump(mode="json")
    data["layer_groups"][0]["layers"][0]["sequence_mixer"] = {
        "kind": "mamba1", "intermediate_size": 1792, "state_size": 16, "time_step_rank": 56,
    }  # fmt: skip
    compared = diff(QWEN_2_HALF, parse_spec(data))
    (change,) = compared.changes
    assert change.path.endswith("sequence_mixer")
    assert (compared.layers[0].before, compared.layers[0].after) == ("attention + mlp", "mamba1 + mlp")


def test_what_fields_do_together_is_named_and_all_of_it_sums_to_the_whole() -> None:
    """Half the layers, half the width of the MLPs, and a quarter of the KV heads, by hand."""
    data = LLAMA_2_7B.model_dump(mode="json")
    data["layer_groups"][0]["repeats"] = 16
    layer = data["layer_groups"][0]["layers"][0]
    layer["channel_mixer"]["intermediate_size"] = 5504
    layer["sequence_mixer"]["num_key_value_heads"] = 8
    compared = diff(LLAMA_2_7B, parse_spec(data), sequence_length=100, context_length=1000)
    h, mlp, heads = 4096, 3 * 5504 * 4096, 2 * 24 * 128 * 4096
    alone = {change.path.rpartition(".")[2]: change.effect for change in compared.changes}
    assert alone["repeats"].parameters == -16 * (4 * h * h + 3 * 11_008 * h + 2 * h)
    assert alone["intermediate_size"].parameters == -32 * mlp
    assert alone["num_key_value_heads"].parameters == -32 * heads
    together = {tuple(path.rpartition(".")[2] for path in each.paths): each.effect for each in compared.interactions}
    # Layers that went had been counted with MLPs and heads of full width, and those are taken from them twice.
    assert set(together) == {("repeats", "num_key_value_heads"), ("repeats", "intermediate_size")}
    assert together["repeats", "intermediate_size"].parameters == 16 * mlp
    assert together["repeats", "intermediate_size"].flops == 100 * 2 * 16 * mlp
    assert together["repeats", "intermediate_size"].cache_bytes == 0
    assert together["repeats", "num_key_value_heads"].cache_bytes == 16 * 2 * 24 * 128 * 1000 * 2
    assert compared.effect.parameters == 16 * mlp + 16 * heads + sum(effect.parameters for effect in alone.values())


def test_fields_that_make_a_design_together_alone_have_their_effect_in_their_interaction() -> None:
    data = LLAMA_2_7B.model_dump(mode="json")
    data["layer_groups"][0]["layers"][0]["sequence_mixer"] |= {"num_attention_heads": 24, "num_key_value_heads": 8}
    compared = diff(LLAMA_2_7B, parse_spec(data))
    (together,) = compared.interactions
    assert {path.rpartition(".")[2] for path in together.paths} == {"num_attention_heads", "num_key_value_heads"}
    # What 8 fewer query heads take: a column and a row of projections each.
    assert together.effect.parameters == -32 * 2 * 8 * 128 * 4096


@settings(max_examples=40, deadline=None)
@given(first=specs(), second=specs())
def test_effects_and_interactions_sum_to_the_whole(first: ArchitectureSpec, second: ArchitectureSpec) -> None:
    compared = diff(first, second, sequence_length=32, context_length=64)
    total = NOTHING
    for change in compared.changes:
        assert (change.effect is None) == bool(change.reason)
        total = total.plus(change.effect or NOTHING)
    for each in compared.interactions:
        assert len(each.paths) > 1
        total = total.plus(each.effect)
    assert total == compared.effect
    assert compared.effect.parameters == size(second).parameters.total - size(first).parameters.total
