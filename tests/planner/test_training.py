"""Training memory: states by hand, what is refused, the three readings, and the peak against PyTorch's MemTracker."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import (
    ArchitectureSpec,
    TrainingPlan,
    UnsupportedPlan,
    estimate_training,
    explain,
    fits,
    parse_spec,
    scale_down,
)
from planner.step_time import step_time
from planner.training import training_memory
from tests.planner.published import DEEPSEEK_V3, GEMMA_2_2B, LLAMA_2_7B, MAMBA_2_130M, MAMBA_130M, MIXTRAL_8X7B
from tests.planner.strategies import specs
from tests.planner.test_readings import assert_readings_agree

PRECISIONS = ("fp32", "bf16_autocast", "bf16_mixed", "bf16")
LLAMA_PARAMETERS = 6_738_415_616


@pytest.mark.parametrize(
    "precision, gradient_dtype, bytes_a_parameter",
    [
        # Weight, gradient, and what the optimizer keeps: the master weight and two moments.
        ("fp32", "bf16", (4, 4, 8)),
        ("bf16_autocast", "bf16", (4, 4, 8)),
        ("bf16_mixed", "bf16", (2, 2, 12)),
        ("bf16_mixed", "fp32", (2, 4, 12)),
        ("bf16", "bf16", (2, 2, 4)),
    ],
)
def test_states_by_hand(precision: Any, gradient_dtype: Any, bytes_a_parameter: tuple[int, int, int]) -> None:
    plan = TrainingPlan(precision=precision, gradient_dtype=gradient_dtype)
    memory = estimate_training(LLAMA_2_7B, plan).memory
    assert (memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes) == tuple(
        width * LLAMA_PARAMETERS for width in bytes_a_parameter
    )


def test_activations_of_llama_by_hand() -> None:
    """bf16, one sequence of 512: what each of the 32 layers keeps, and what stands outside them."""
    tokens, h, f, heads, vocabulary = 512, 4096, 11_008, 32, 32_000
    norm = 2 * tokens * h + 4 * tokens
    attention = 2 * tokens * (h + 4 * h) + 4 * tokens * heads  # input, queries, keys, values, output; log-sum-exp
    channel = 2 * tokens * (h + 3 * f)  # input, gate, up, and their product
    head = 2 * tokens * h + norm + 4 * tokens * vocabulary  # input, final norm, log-probabilities
    ids = 8 * tokens + 8 * tokens + 4
    alive = 2 * tokens * vocabulary + 2 * 4 * tokens * vocabulary + 4  # logits, two gradients in fp32, the loss
    plan = TrainingPlan(sequence_length=tokens, precision="bf16_mixed")
    expected = 32 * (2 * norm + attention + channel) + head + ids + alive
    assert estimate_training(LLAMA_2_7B, plan).memory.activations_bytes == expected


def test_with_held_gradients_the_total_is_the_plain_sum() -> None:
    memory = estimate_training(LLAMA_2_7B, TrainingPlan()).memory
    assert memory.peak.name == "start of the backward pass"
    assert memory.total_bytes == (
        memory.parameters_bytes
        + memory.gradients_bytes
        + memory.optimizer_bytes
        + memory.activations_bytes
        + memory.communication_bytes
        + memory.overhead_bytes
    )


@settings(max_examples=25, deadline=None)
@given(spec=specs(), precision=st.sampled_from(PRECISIONS), accumulated=st.booleans())
def test_the_parts_are_those_of_the_largest_moment(spec: ArchitectureSpec, precision: Any, accumulated: bool) -> None:
    plan = TrainingPlan(precision=precision, sequence_length=64, global_batch_size=4 if accumulated else None)
    memory = estimate_training(spec, plan).memory
    assert sum(memory.parts.values()) == memory.total_bytes
    assert memory.total_bytes - memory.overhead_bytes == max(moment.total_bytes for moment in memory.moments)


def test_accumulation_keeps_gradients_through_the_forward_pass() -> None:
    once = estimate_training(LLAMA_2_7B, TrainingPlan(precision="fp32")).memory
    often = estimate_training(LLAMA_2_7B, TrainingPlan(precision="fp32", global_batch_size=8)).memory
    assert once.moments[0].gradients_bytes == 0
    assert often.moments[0].gradients_bytes == often.gradients_bytes == 4 * LLAMA_PARAMETERS


def test_time_is_absent_without_a_device_and_says_so() -> None:
    estimate = estimate_training(LLAMA_2_7B, TrainingPlan())
    assert (estimate.step_seconds, estimate.tokens_per_second, estimate.model_flops_utilization) == (None, None, None)
    assert "hardware" in estimate.time_note
    assert estimate.status == "modelled"


def test_time_is_that_of_the_plan_s_device_and_names_what_it_stands_on() -> None:
    plan = TrainingPlan(hardware="h100", micro_batch_size=2)
    estimate = estimate_training(LLAMA_2_7B, plan)
    assert estimate.step_seconds == step_time(LLAMA_2_7B, plan).seconds
    assert estimate.tokens_per_second == pytest.approx(2 * 2048 / estimate.step_seconds)
    assert 0.3 < estimate.model_flops_utilization < 0.6
    assert estimate.time.profile == "hopper"
    assert "hopper" in estimate.time_note


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "nvfp4"},
        {"precision": "fp8", "hardware": "a100"},
        {"precision": "fp8", "engine": "torch"},
        {"precision": "fp8", "zero_stage": 3, "data_parallel": 2},
        {"precision": "fp8", "fp8_param_gather": True},
        {"precision": "fp8", "fp8_recipe": "mxfp8", "hardware": "h100"},
        {"precision": "fp8", "fp8_recipe": "mxfp8", "fp8_param_gather": True, "zero_stage": 1},
        {"fp8_param_gather": True},
        {"engine": "deepspeed", "precision": "fp32"},
        {"engine": "deepspeed", "precision": "fp8"},
        {"engine": "deepspeed", "zero_stage": 2, "pipeline_parallel": 2, "data_parallel": 2},
        {"engine": "deepspeed", "pipeline_parallel": 2, "pipeline_schedule": "zero_bubble"},
        {"engine": "deepspeed", "context_parallel": 2},
        {"tp_comm_overlap": True, "tensor_parallel": 2},
        {"precision": "bf16", "gradient_dtype": "fp32"},
        {"tensor_parallel": 3},
        {"pipeline_parallel": 64},
        {"virtual_stages": 2},
        {"pipeline_parallel": 4, "pipeline_schedule": "interleaved", "virtual_stages": 9},
        {"pipeline_parallel": 2, "zero_stage": 3, "engine": "megatron"},
        {"pipeline_parallel": 2, "zero_stage": 3, "data_parallel": 2, "pipeline_schedule": "zero_bubble",
         "fsdp_reshard": True},
        {"expert_parallel": 2},
        {"expert_tensor_parallel": 2},
        {"context_parallel": 3},
        {"context_parallel": 64, "context_exchange": "all_to_all"},
        {"tensor_parallel": 2, "sequence_parallel": True, "sequence_length": 7},
        {"engine": "megatron", "precision": "bf16_autocast"},
        {"micro_batch_size": 2, "global_batch_size": 3},
        {"data_parallel": 2, "global_batch_size": 3},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_modelled_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_training(LLAMA_2_7B, TrainingPlan(**change))
    assert caught.value.path in change
    assert caught.value.remedy


def test_every_unsupported_field_is_named_at_once() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_training(LLAMA_2_7B, TrainingPlan(precision="nvfp4", sequence_length=9, context_parallel=2))
    assert [problem.path for problem in caught.value.problems] == ["precision", "context_parallel"]


def test_a_7b_model_does_not_train_on_one_h100() -> None:
    fit = fits(LLAMA_2_7B, TrainingPlan(sequence_length=512), "h100")
    assert not fit.fits
    assert sum(fit.parts.values()) == fit.needed_bytes


# --- readings ---


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=6, deadline=None)
@given(spec=specs(most_layers=2), length=st.integers(1, 300), batch=st.integers(1, 5))
def test_readings_agree(precision: Any, spec: ArchitectureSpec, length: int, batch: int) -> None:
    plan = TrainingPlan(precision=precision)

    def formula(made: ArchitectureSpec, tokens: Any, sequences: Any) -> Any:
        memory = training_memory(made, plan, tokens, sequences)
        return memory.activations_bytes + 3 * memory.moments[0].total_bytes + 7 * memory.moments[2].total_bytes

    assert_readings_agree(formula, spec, length, batch)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=4, deadline=None)
@given(spec=specs(most_layers=2))
def test_the_explanation_gives_the_number(precision: Any, spec: ArchitectureSpec) -> None:
    plan = TrainingPlan(precision=precision, sequence_length=100, micro_batch_size=2)
    term = explain(spec, "training_memory", plan)
    assert term.value == estimate_training(spec, plan).memory.total_bytes
    for part in term.walk():
        values = {sympy.Symbol(s.symbol, integer=True, positive=True): s.value for s in part.symbols}
        assert part.formula.subs(values) == part.value
        if part.children:
            assert sum(child.value for child in part.children) == part.value


# --- measured ---


def measured_peak_bytes(spec: ArchitectureSpec, plan: TrainingPlan) -> int:
    """Peak of a second training step under MemTracker, on tensors without data."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from runners.models import build
    from runners.models.blocked_attention import fused_attention

    with FakeTensorMode(), fused_attention():
        model = build(spec, kernels="eager")
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids = torch.randint(0, spec.vocab_size, (plan.micro_batch_size, plan.sequence_length))
        labels = ids.clone()

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16_autocast"):
                output = model(ids, labels)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        tracker = MemTracker()
        tracker.track_external(model, optimizer, ids, labels)
        with tracker:
            step()
        return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


# What is scaled down to which vocabulary: with the large one the loss decides the peak, with bytes the layers do.
SMALL = {
    f"{spec.name}, {vocabulary} words": scale_down(spec, 200_000, vocab_size=vocabulary, sequence_length=64).spec
    for spec, vocabulary in (
        (LLAMA_2_7B, 1000),
        (LLAMA_2_7B, 256),
        (GEMMA_2_2B, 256),
        (MIXTRAL_8X7B, 256),
        (DEEPSEEK_V3, 256),
        (MAMBA_2_130M, 256),
        (MAMBA_130M, 256),
    )
}


def surrounded(layer: dict[str, Any], **changes: Any) -> ArchitectureSpec:
    """A small dense model with other ways round its mixers and its layers."""
    mixer = {"kind": "attention", "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    layers = [{"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 172}, **layer}]
    groups = [{"repeats": 6, "layers": layers}]
    return parse_spec({"vocab_size": 1000, "hidden_size": 64, "layer_groups": groups, **changes})


SMALL |= {
    "parallel": surrounded({"residual": "parallel"}),
    "parallel, shared norm": surrounded({"residual": "parallel_shared_norm"}),
    "norms after the residual": surrounded({"norm_placement": "after_residual"}),
    "narrow embedding": surrounded({}, embedding_size=16, embedding_norm=True),
    "narrow embedding, tied": surrounded({}, embedding_size=16, tie_word_embeddings=True),
    "norms without weights": surrounded({}, norm={"kind": "rms_norm", "has_weight": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("vocabulary", [1000, 8000])
def test_a_tied_matrix_has_two_gradients_and_their_sum(vocabulary: int, precision: Any) -> None:
    """Few tokens and many words: the embedding's backward pass is where most is alive, to the byte."""
    spec = surrounded({}, tie_word_embeddings=True, vocab_size=vocabulary)
    plan = TrainingPlan(precision=precision, sequence_length=8)
    memory = estimate_training(spec, plan).memory
    assert memory.peak.name == "backward pass of the embedding"
    # Beside the gradients of all parameters: two more of the matrix, the logits, token ids and labels.
    logits = {"fp32": 4, "bf16_autocast": 2}[precision] * 8 * vocabulary
    assert memory.peak.activations_bytes == 2 * 4 * vocabulary * 64 + logits + 2 * 8 * 8
    measured = measured_peak_bytes(spec, plan)
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    "name, length",
    [
        *((name, 64) for name in SMALL),
        ("Mamba 130M, 256 words", 256),  # several tiles, which the largest one of that many elements does not fill
        ("Mamba-2 130M, 256 words", 256),
    ],
)
def test_the_total_less_the_overhead_is_the_measured_peak(name: str, length: int, precision: Any) -> None:
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=length)
    memory = estimate_training(SMALL[name], plan).memory
    measured = measured_peak_bytes(SMALL[name], plan)
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured, rel=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [50, 1000])
@pytest.mark.parametrize("length", [8, 64])
def test_autocast_keeps_cast_weights_until_the_forward_pass_ends(vocabulary: int, length: int) -> None:
    """Checkpoints drop what the layers saved, but autocast's own cache holds each cast weight as long as it is on."""
    from runners.training.memory import measure_training_memory

    spec = surrounded({}, vocab_size=vocabulary)
    plan = TrainingPlan(precision="bf16_autocast", recompute="full", sequence_length=length, global_batch_size=2)
    memory = estimate_training(spec, plan).memory
    assert memory.peak.name == "end of the forward pass"
    measured = measure_training_memory(spec, 1, length, "bf16_autocast", recompute="full", accumulates=True)
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured.total_bytes, rel=0.02)
