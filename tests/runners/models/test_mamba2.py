"""Mamba-2's own backward passes: their gradients, and the peak of training where each of their moments is largest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planner import TrainingPlan, estimate_training, parse_spec
from planner.components import mamba2
from runners.models import gated_norm, state_space_dual
from runners.training.memory import measure_training_memory


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    "length, chunk, groups, tile", [(1, 4, 1, 1), (8, 4, 2, 64), (11, 4, 4, 130), (5, 16, 1, 2**20), (13, 3, 2, 2**20)]
)
def test_the_gradients_of_the_dual_are_its_differences(
    length: int, chunk: int, groups: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in tiles of one chunk and of several, the last of them smaller."""
    torch.manual_seed(length)
    monkeypatch.setattr(state_space_dual, "TILE_ELEMENTS", tile)
    mixed, raw, logs, D = drawn(2, length, 4 * 3 + 2 * groups * 5), drawn(2, length, 4), drawn(4), drawn(4)

    def run(mixed: Tensor, raw: Tensor, logs: Tensor, D: Tensor) -> Tensor:
        return state_space_dual.dual(mixed, F.softplus(raw), -logs.exp(), D, groups, 5, chunk)

    assert torch.autograd.gradcheck(run, (mixed, raw, logs, D))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradients_of_the_gated_norm_are_its_differences(
    groups: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(groups)
    monkeypatch.setattr(gated_norm, "TILE_ELEMENTS", 40)
    y, gate, weight = drawn(2, 6, 8), drawn(2, 6, 8), drawn(8)

    def run(y: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return gated_norm.gated_norm(y, gate, weight, 1e-3, groups, last)

    assert torch.autograd.gradcheck(run, (y, gate, weight))


def test_the_planner_knows_the_tiles() -> None:
    assert mamba2.DUAL_TILE == state_space_dual.TILE_ELEMENTS
    assert mamba2.GATE_TILE == gated_norm.TILE_ELEMENTS


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    "fields, length",
    [
        ({"chunk_size": 8}, 256),  # the norm
        ({"chunk_size": 64}, 256),  # inside chunks
        ({"chunk_size": 64, "state_size": 256, "norm": False}, 256),  # between them
        ({"chunk_size": 64}, 200),  # padded
        ({"chunk_size": 256}, 256),  # one chunk
        ({"chunk_size": 64, "num_heads": 8, "n_groups": 4, "norm_before_gate": True}, 256),
        ({"chunk_size": 256, "num_heads": 16}, 1024),  # several tiles
        ({"chunk_size": 32, "num_heads": 16}, 2048),  # several tiles of rows
    ],
)
def test_the_peak_is_the_measured_one(fields: dict[str, Any], length: int, precision: Any) -> None:
    mixer = {"kind": "mamba2", "num_heads": 4, "head_dim": 32, "state_size": 16, **fields}
    layers = [{"repeats": 2, "layers": [{"sequence_mixer": mixer}]}]
    spec = parse_spec({"vocab_size": 64, "hidden_size": 64, "layer_groups": layers})
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=length, chunked_loss=True)
    predicted = estimate_training(spec, plan).memory.allocated_bytes
    measured = measure_training_memory(spec, 2, length, precision, chunked_loss=True).total_bytes
    assert predicted == pytest.approx(measured, rel=0.01)
