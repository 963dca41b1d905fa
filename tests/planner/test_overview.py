"""The overview repeats what the planner's own functions say, and turns a refusal into a status with its reason."""

from __future__ import annotations

from planner import ServingPlan, TrainingPlan, estimate_inference, explain, load, parse_spec
from planner.overview import list_numbers, overview

SPEC = parse_spec(
    {
        "vocab_size": 256,
        "hidden_size": 64,
        "tie_word_embeddings": True,
        "layer_groups": [
            {
                "repeats": 2,
                "layers": [
                    {
                        "sequence_mixer": {
                            "kind": "attention",
                            "num_attention_heads": 4,
                            "num_key_value_heads": 2,
                            "head_dim": 16,
                        },
                        "channel_mixer": {"kind": "mlp", "intermediate_size": 128},
                    }
                ],
            }
        ],
    }
)


def test_numbers_are_those_of_a_hand_count() -> None:
    serving = ServingPlan(context_length=100, batch_size=3)
    numbers = overview(SPEC, serving, TrainingPlan(sequence_length=32))
    attention, mlp = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128
    layers = 2 * (attention + mlp + 2 * 64)
    assert numbers["parameters"].value == 256 * 64 + layers + 64
    assert numbers["cache"].value == 2 * 2 * (2 * 16) * 100 * 3 * 2
    # Two FLOPs a weight of every projection and of the head, and twice the square of scores for 4 heads of 16.
    forward = 2 * (2 * (attention + mlp) + 256 * 64) + 2 * (2 * 2 * 4 * 16 * 32)
    assert numbers["flops_forward"].value == forward
    assert numbers["flops_training"].value == 3 * forward
    assert numbers["inference_memory"].value == estimate_inference(SPEC, serving).memory.total_bytes


def test_what_is_not_exact_has_the_bounds_of_the_opened_number() -> None:
    serving, training = ServingPlan(context_length=100, batch_size=3), TrainingPlan(sequence_length=32)
    numbers = overview(SPEC, serving, training)
    for quantity, plan in (("inference_memory", serving), ("training_memory", training), ("chinchilla_tokens", None)):
        opened = explain(SPEC, quantity, plan)
        own = numbers[quantity].uncertainty
        assert own is not None
        assert opened.uncertainty is not None
        assert (own.low, own.high) == (opened.uncertainty.low, opened.uncertainty.high)
        assert numbers[quantity].status == opened.status
    assert all((number.uncertainty is None) == (number.status == "exact") for number in numbers.values())


def test_a_refusal_becomes_a_number_without_value_that_says_why() -> None:
    number = overview(SPEC, ServingPlan(), TrainingPlan(precision="nvfp4"))["training_memory"]
    assert (number.value, number.status) == (None, "unsupported")
    assert number.problem is not None
    assert number.problem.message


def test_a_list_has_what_a_hand_count_has() -> None:
    numbers = list_numbers(SPEC, sequence_length=32, context_length=100)
    attention, mlp = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128
    assert numbers.flops_a_token == 2 * (2 * (attention + mlp) + 256 * 64) + 2 * (2 * 2 * 4 * 16 * 32)
    # Keys and values of two heads of 16 channels in two layers, two bytes each.
    assert numbers.cache_bytes_a_token == 2 * 2 * 2 * 16 * 2
    assert numbers.cache_bytes == 100 * numbers.cache_bytes_a_token
    assert (numbers.sequence_kinds, numbers.channel_kinds, numbers.windowed) == (("attention",), ("mlp",), False)


def test_a_list_knows_hybrids_windows_and_models_without_a_growing_cache() -> None:
    jamba = list_numbers(load("jamba-v0.1"), sequence_length=64, context_length=64)
    assert jamba.sequence_kinds == ("mamba1", "attention")
    assert set(jamba.channel_kinds) == {"mlp", "moe"}
    assert jamba.active_parameters < jamba.parameters
    gemma = list_numbers(load("gemma-2-2b"), sequence_length=64, context_length=64)
    assert gemma.windowed
    mamba = list_numbers(load("mamba2-2.7b"), sequence_length=64, context_length=64)
    assert (mamba.cache_bytes_a_token, mamba.channel_kinds) == (0, ())
