"""What each field does to an output, and how far one goes: by hand, and by trying every value."""

from __future__ import annotations

import pytest

from planner import PlannerError, ServingPlan, TrainingPlan, UnsupportedPlan, fits, load, size
from planner.hardware import hardware_catalogue
from planner.sensitivity import OUTPUTS, Swing, Tornado, changed, field_of, largest, smallest_device, tornado

LLAMA = load("llama-2-7b")
MIXTRAL = load("mixtral-8x7b")


def swing(found: Tornado, field: str) -> Swing:
    return next(each for each in found.swings if each.field == field)


def test_each_field_of_llama_2_does_to_its_parameters_what_its_formula_says() -> None:
    found = tornado(LLAMA, "parameters")
    assert found.base == 6_738_415_616
    # 32 layers of four matrices of 4,096 by 4,096, three of 4,096 by 11,008 and two norms; two matrices of 32,000.
    layer = 4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096
    assert swing(found, "repeats").high == found.base + 32 * layer
    assert swing(found, "repeats").low == found.base - 16 * layer
    assert swing(found, "mlp.intermediate_size").span == 32 * 3 * 4096 * (22_016 - 5504)
    assert swing(found, "vocab_size").span == 2 * 4096 * (64_000 - 16_000)
    # A head more or less is 128 columns of a query and an output matrix; keys and values keep theirs. 64 is possible,
    # and half of them cannot share 32 KV heads.
    heads = swing(found, "attention.num_attention_heads")
    assert (heads.low, heads.high) == (found.base, found.base + 32 * 2 * 4096 * 32 * 128)
    assert "cannot share" in next(each.refused for each in heads.changes if each.value == 16)
    assert "rms_norm.epsilon" in found.unmoved
    spans = [each.span for each in found.swings]
    assert spans == sorted(spans, reverse=True)


def test_the_fields_of_a_plan_are_among_them() -> None:
    found = tornado(LLAMA, "cache", ServingPlan(context_length=4096, batch_size=2))
    # Keys and values of 32 heads of 128 in 32 layers of two bytes, for two sequences.
    a_token = 2 * 32 * 128 * 32 * 2
    assert found.base == 2 * 4096 * a_token
    assert swing(found, "plan.context_length").high == 2 * 8192 * a_token
    assert swing(found, "plan.batch_size").low == 4096 * a_token
    assert swing(found, "plan.cache_dtype").high == 2 * found.base  # fp32
    assert "plan.weight_format" in found.unmoved


def test_alike_layers_change_together_and_unlike_ones_apart() -> None:
    gemma = load("gemma-2-2b")
    fields = {each.field for each in tornado(gemma, "cache", ServingPlan(context_length=16_384)).swings}
    assert "attention.num_key_value_heads" in fields  # of both kinds of layers
    assert "attention.sliding_window" in fields  # of those that have one
    jamba = tornado(load("jamba-v0.1"), "parameters")
    assert {"mamba1.state_size", "moe.num_experts", "mlp.intermediate_size"} <= {each.field for each in jamba.swings}


@pytest.mark.parametrize("output", [name for name, output in OUTPUTS.items() if output.unit in ("count", "bytes")])
@pytest.mark.parametrize("name", ["tiny-hybrid", "deepseek-v2-lite", "mamba2-2.7b"])
def test_every_output_moves_somewhere_and_nothing_is_lost(name: str, output: str) -> None:
    spec = load(name)
    found = tornado(spec, output)
    assert found.swings
    for each in found.swings:
        assert each.low <= found.base <= each.high
        assert all((change.output is None) == bool(change.refused) for change in each.changes)
    assert all(reason for _, reason in found.refused)


@pytest.mark.parametrize(
    "field, plan",
    [
        ("context_length", ServingPlan(weight_format="int4", batch_size=64)),
        ("batch_size", ServingPlan(weight_format="int4", context_length=65_536)),
        ("num_layers", ServingPlan()),
        ("num_experts", ServingPlan()),
        ("attention.num_key_value_heads", ServingPlan(context_length=65_536, weight_format="int4", batch_size=4)),
        ("num_attention_heads", ServingPlan(weight_format="int4")),
        ("micro_batch_size", TrainingPlan(precision="bf16")),
    ],
)
def test_the_greatest_value_is_the_one_that_trying_them_all_finds(field: str, plan: ServingPlan | TrainingPlan) -> None:
    spec = load("olmoe-1b-7b") if isinstance(plan, TrainingPlan) else MIXTRAL
    device = "h200" if isinstance(plan, TrainingPlan) else "h100"
    found = largest(spec, field, plan, device=device)
    where = field_of(spec, plan, field)

    def holds(value: int) -> bool | None:
        try:
            tried, with_plan = changed((spec, plan), where, value)
            assert isinstance(with_plan, ServingPlan | TrainingPlan)
            return fits(tried, with_plan, device).fits
        except PlannerError:
            return None

    verdicts = {value: holds(value) for value in range(1, 600)}
    possible = [value for value, held in verdicts.items() if held is not None]
    greatest = max((value for value in possible if verdicts[value]), default=None)
    assert possible
    if greatest is not None and greatest > 500:  # beyond what is tried: hold the edge itself
        assert found.value is not None
        assert found.next_value is not None
        assert holds(found.value)
        assert holds(found.next_value) is False
        assert all(holds(value) is None for value in range(found.value + 1, found.next_value))
    else:
        assert found.value == greatest
        assert found.next_value == min((value for value in possible if verdicts[value] is False), default=None)


def test_a_bound_on_an_output_is_met_exactly() -> None:
    # 6,738,415,616 less 32 layers, and a layer is 202,383,360.
    found = largest(LLAMA, "num_layers", output="parameters", at_most=10e9)
    outside = 6_738_415_616 - 32 * 202_383_360
    assert found.value == int((10e9 - outside) // 202_383_360)
    none = largest(LLAMA, "num_layers", output="parameters", at_most=outside)
    assert (none.value, none.next_value) == (None, 1)
    assert none.reason


def test_what_nothing_bounds_ends_where_the_field_itself_does() -> None:
    found = largest(LLAMA, "context_length", ServingPlan(), output="parameters", at_most=7e9)
    assert (found.value, found.next_value) == (2**31 - 1, None)
    assert "less than or equal to 2147483647" in found.reason


@pytest.mark.parametrize("plan", [ServingPlan(), TrainingPlan(precision="bf16")])
def test_no_length_goes_beyond_learned_positions(plan: ServingPlan | TrainingPlan) -> None:
    field = "context_length" if isinstance(plan, ServingPlan) else "sequence_length"
    found = largest(load("gpt2"), field, plan, device="b300")  # with 1,024 positions
    assert (found.value, found.next_value) == (1024, None)
    assert "1,024 learned positions" in found.reason


def test_the_smallest_device_is_the_first_of_all_that_fit() -> None:
    plan = ServingPlan(weight_format="int4")
    found = smallest_device(MIXTRAL, plan)
    assert found is not None
    fitting = [device.usable_memory_bytes for device in hardware_catalogue() if fits(MIXTRAL, plan, device).fits]
    assert found.usable_memory_bytes == min(fitting)
    assert smallest_device(load("llama-3.1-405b"), ServingPlan(weight_format="fp32")) is None


@pytest.mark.parametrize(
    "asked, path",
    [
        ({"field": "colour", "output": "parameters", "at_most": 1e9}, "field"),
        ({"field": "epsilon", "output": "parameters", "at_most": 1e9}, "field"),
        ({"field": "num_layers", "output": "beauty", "at_most": 1e9}, "output"),
        ({"field": "num_layers", "output": "parameters"}, "output"),
        ({"field": "num_layers"}, "output"),
        ({"field": "num_layers", "output": "parameters", "at_most": float("nan")}, "at_most"),
        ({"field": "num_layers", "device": "h100"}, "plan"),
        ({"field": "num_layers", "device": "h100s", "plan": ServingPlan()}, "hardware"),
        ({"field": "num_layers", "output": "cache", "at_most": 1e9, "plan": TrainingPlan()}, "plan"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_remedy(asked: dict[str, object], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        largest(LLAMA, **asked)  # type: ignore[arg-type]
    assert caught.value.path == path
    assert caught.value.remedy


def test_an_output_that_is_not_modelled_is_refused() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        tornado(LLAMA, "step_time")
    assert caught.value.code == "output_not_modelled"


def test_changing_a_field_changes_that_alone() -> None:
    where = field_of(MIXTRAL, None, "num_experts")
    spec, _ = changed((MIXTRAL, None), where, 16)
    # Eight experts more of three matrices of 4,096 by 14,336, and their eight rows of the router, in 32 layers.
    assert size(spec).parameters.total - size(MIXTRAL).parameters.total == 32 * 8 * (3 * 4096 * 14_336 + 4096)
