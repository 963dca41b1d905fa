"""Memory of training in fp8: what Transformer Engine keeps, by hand, and what Megatron's own tests allocated."""

from __future__ import annotations

from typing import Any

import pytest

from planner import ArchitectureSpec, PlannerError, TrainingPlan, estimate_training, load
from planner.measured import training_rows
from planner.measured.predicted import memory_of
from planner.training.engine import division_of
from planner.training.estimate import shape_of, stage_memories
from planner.training.layers import layer_cost
from tests.planner.published import LLAMA_2_7B, MIXTRAL_8X7B

HIDDEN, INNER, HEADS, LAYERS, TABLE = 4096, 11_008, 32, 32, 32_000 * 4096
MATRICES = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
NORMS = (2 * LAYERS + 1) * HIDDEN
FP8: dict[str, Any] = {"precision": "fp8", "gradient_dtype": "fp32", "sequence_length": 2048}


def kept_a_token(spec: ArchitectureSpec, **fields: Any) -> float:
    """Bytes that a layer keeps of a token."""
    plan = TrainingPlan(**FP8 | fields)
    layer = spec.layer_groups[0].layers[0]
    return float(layer_cost(spec, layer, plan, division_of(plan), shape_of(plan, 2048, 1)).kept) / 2048


def copies(**fields: Any) -> int:
    memory = estimate_training(LLAMA_2_7B, TrainingPlan(**FP8 | fields)).memory
    return sum(int(buffer.bytes) for buffer in memory.buffers if "in fp8" in buffer.name)


def test_megatron_s_own_tests_in_fp8_come_out() -> None:
    """Tensorwise with weights in fp8: an H100, which needs transposed copies, and a GB200, which does not."""
    found = {row.plan.hardware: row for row in training_rows() if row.plan.precision == "fp8" and row.memory}
    assert set(found) == {"h100", "gb200"}
    for row in found.values():
        reading = memory_of(row)
        assert reading is not None
        assert abs(reading.error or 1.0) < 0.02
        # Between two steps there are parameters, states, workspaces, and what stays of weights in fp8.
        assert row.memory is not None
        last = list(stage_memories(row.spec, row.plan, row.plan.sequence_length, row.plan.micro_batch_size))[-1]
        stays = [buffer.bytes for buffer in last.buffers if "workspace" in buffer.name or "fp8" in buffer.name]
        states = last.parameters_bytes + last.gradients_bytes + last.optimizer_bytes
        assert states + sum(stays) == pytest.approx(row.memory.between_steps_bytes, rel=0.015)


def test_weights_have_copies_in_fp8_by_rows_and_by_columns() -> None:
    assert copies() == 2 * MATRICES  # no device: as before Blackwell
    assert copies(hardware="h100", fp8_recipe="tensorwise") == 2 * MATRICES
    assert copies(hardware="b200", fp8_recipe="tensorwise") == MATRICES
    # A scale of four bytes for 128 by 128 elements, one of a byte for 32: each for rows and for columns.
    assert copies(hardware="b200", fp8_recipe="blockwise") == 2 * MATRICES + 2 * 4 * MATRICES // 128**2
    assert copies(hardware="b200", fp8_recipe="mxfp8") == 2 * MATRICES + 2 * MATRICES // 32


@pytest.mark.parametrize("hardware, transposed", [("h100", MATRICES), ("b200", 0)])
def test_weights_that_are_gathered_in_fp8_have_a_byte_each(hardware: str, transposed: int) -> None:
    plan = TrainingPlan(**FP8, hardware=hardware, zero_stage=1, data_parallel=4, fp8_param_gather=True)
    memory = estimate_training(LLAMA_2_7B, plan).memory
    rest = 2 * TABLE + NORMS
    assert memory.parameters_bytes == MATRICES + 2 * rest
    assert memory.gradients_bytes == 4 * (MATRICES + rest)
    assert memory.optimizer_bytes == 12 * (MATRICES + rest) // 4
    assert copies(hardware=hardware, zero_stage=1, data_parallel=4, fp8_param_gather=True) == transposed


def test_products_keep_their_inputs_in_fp8() -> None:
    """Llama 2 7B: a norm keeps its input and a statistic; attention queries, keys, values, its output and a statistic
    a head in 16 and 32 bits; a gated MLP both projections in 16 bits. Inputs of the four products have a byte."""
    outside = 2 * (2 * HIDDEN + 4)
    attention = HIDDEN + 2 * 4 * HIDDEN + 4 * HEADS + HIDDEN
    mlp = HIDDEN + 2 * 2 * INNER + INNER
    assert kept_a_token(LLAMA_2_7B) == outside + attention + mlp
    # Scales: four bytes for 128 elements, or one for 32.
    inputs = 3 * HIDDEN + INNER
    assert kept_a_token(LLAMA_2_7B, fp8_recipe="blockwise") == outside + attention + mlp + 4 * inputs / 128
    assert kept_a_token(LLAMA_2_7B, fp8_recipe="mxfp8") == outside + attention + mlp + inputs / 32


def test_experts_keep_their_rows_in_fp8_and_the_router_its_tokens_in_sixteen_bits() -> None:
    """Mixtral 8x7B: two rows a token, of 4,096 channels and of 14,336 inside."""
    wide = kept_a_token(MIXTRAL_8X7B, precision="bf16_mixed", engine="megatron")
    narrow = kept_a_token(MIXTRAL_8X7B)
    # Attention's input is half as wide and its output has a copy; rows and what is activated are half as wide.
    assert wide - narrow == HIDDEN - HIDDEN + 2 * HIDDEN + 2 * 14_336


def test_recomputed_layers_keep_the_stream_in_sixteen_bits() -> None:
    assert kept_a_token(LLAMA_2_7B, recompute="full") == 2 * HIDDEN


def test_an_exchange_beside_products_has_workspaces_of_its_own() -> None:
    plan = TrainingPlan(engine="megatron", gradient_dtype="fp32", tensor_parallel=2, sequence_parallel=True)
    alone, beside = (
        estimate_training(LLAMA_2_7B, each).memory.communication_bytes
        for each in (plan, plan.model_copy(update={"tp_comm_overlap": True}))
    )
    assert beside - alone == 3 * 32 * 2**20


def test_a_mixer_of_which_nothing_is_known_in_fp8_is_refused_by_name() -> None:
    with pytest.raises(PlannerError, match=r"mamba") as caught:
        estimate_training(load("mamba-2.8b"), TrainingPlan(precision="fp8"))
    assert caught.value.path == "precision"
