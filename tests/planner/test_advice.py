"""Whether it runs, and with what: every suggestion fits, the next possible value does not, and nothing is made up."""

from __future__ import annotations

from typing import Any

import pytest

from planner import PlannerError, ServingPlan, TrainingPlan, fits, hardware, load
from planner.advice import (
    check_length,
    formats_on,
    serving_suggestions,
    training_suggestions,
    usual_length,
    verification_of,
    widest_format,
)
from planner.hardware import hardware_catalogue
from planner.serving import serving_memory

TOO_MUCH = ServingPlan(context_length=32_768, batch_size=4)
NEXT = {
    "batch_size": lambda value: value + 1, "context_length": lambda value: value + 1,
    "offload_layers": lambda value: value - 1, "tensor_parallel": lambda value: value // 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, device, plan",
    [
        ("llama-3-8b", "rtx4090", TOO_MUCH),
        ("jamba-v0.1", "l40s", ServingPlan()),
        ("mixtral-8x7b", "rtx4090", TOO_MUCH),
        ("llama-3.1-70b", "h100", ServingPlan()),
        ("mamba-2.8b", "rtx4090", ServingPlan(batch_size=3000)),
    ],
)
def test_each_suggestion_fits_and_the_next_value_does_not(name: str, device: str, plan: ServingPlan) -> None:
    spec, chosen = load(name), hardware(device)
    found = serving_suggestions(spec, plan, chosen)
    assert found
    for each in found:
        changed = plan.model_copy(update=each.fields)
        needed = serving_memory(spec, changed, changed.context_length, changed.batch_size).total_bytes
        assert needed == each.fit.needed_bytes <= each.device.usable_memory_bytes
        if len(each.fields) == 1 and next(iter(each.fields)) in NEXT:
            ((field, value),) = each.fields.items()
            beyond: dict[str, Any] = {field: NEXT[field](value)}
            assert not fits(spec, plan.model_copy(update=beyond), chosen).fits, field
        if not each.fields:
            roomy = [device.usable_memory_bytes for device in hardware_catalogue()]
            assert each.device.usable_memory_bytes == min(usable for usable in roomy if usable >= needed)


def test_the_widest_format_leaves_no_wider_one_that_fits() -> None:
    # 8.03 billion parameters: 8.5 bits (Q8_0) are 8.5 GB, and 16 are 16.
    spec, plan, device = load("llama-3-8b"), ServingPlan(context_length=8192), hardware("rtx3060")
    found = widest_format(spec, plan, device)
    assert found is not None
    for name in formats_on(device):
        other = fits(spec, plan.model_copy(update={"weight_format": name}), device)
        assert not other.fits or other.needed_bytes <= found[1].needed_bytes, name
    roomy = widest_format(spec, plan, hardware("h200"))
    assert roomy is not None
    assert roomy[0] == "bf16"  # fp32 would fit, and says no more than 16 bits do


def test_what_fits_needs_no_change_and_what_nothing_holds_has_none() -> None:
    assert serving_suggestions(load("gpt2"), ServingPlan(), hardware("h100")) == ()
    assert training_suggestions(load("gpt2"), TrainingPlan(sequence_length=128), hardware("h100")) == ()
    # 671 billion parameters are above 100 GB at 1.6 bits, the narrowest there is, and no single device has 1.3 TB.
    processor = hardware("rtx4090").model_copy(update={"kind": "cpu"})
    assert serving_suggestions(load("deepseek-v3"), ServingPlan(), processor) == ()


def test_training_suggestions_are_the_most_that_fits() -> None:
    spec, device = load("gpt2"), hardware("rtx4090")
    plan = TrainingPlan(micro_batch_size=256, sequence_length=1024)
    found = training_suggestions(spec, plan, device)
    assert {name for each in found for name in each.fields} == {"micro_batch_size", "sequence_length"}
    for each in found:
        assert each.fit.fits
        for field, value in each.fields.items():
            assert not fits(spec, plan.model_copy(update={field: value + 1}), device).fits


def test_lengths_end_at_the_learned_positions() -> None:
    # GPT-2 has 1,024 of them.
    assert usual_length(load("gpt2"), 32_768) == 1024
    assert usual_length(load("llama-3-8b"), 32_768) == 32_768
    with pytest.raises(PlannerError) as refused:
        check_length(load("gpt2"), "context_length", 1025)
    assert refused.value.path == "context_length"
    assert verification_of(load("gpt2"), ServingPlan(context_length=9999, batch_size=2)).sequence_length == 1024


def test_a_verification_has_the_plans_shape_as_far_as_a_job_goes() -> None:
    spec = load("llama-3-8b")
    asked = verification_of(spec, TrainingPlan(micro_batch_size=3, sequence_length=512, precision="fp32"))
    assert (asked.batch_size, asked.sequence_length, asked.precision) == (3, 512, "fp32")
    most = verification_of(spec, ServingPlan(context_length=10**7, batch_size=5000))
    assert (most.batch_size, most.context_length) == (256, 131_072)  # the bounds of a VerifyPlan
