"""The gated short convolution against its definition position by position, and its training memory as measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import TrainingPlan, estimate_training, parse_spec
from runners.models import build
from runners.models.short_convolution import ShortConvolution
from tests.planner.test_training import measured_peak_bytes


def model_of(mixer: dict[str, Any], hidden_size: int = 16) -> dict[str, Any]:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 2 * hidden_size}}
    return {
        "vocab_size": 256,
        "hidden_size": hidden_size,
        "positions": {"kind": "none"},
        "layer_groups": [{"repeats": 3, "layers": [layer]}],
    }


def plain(mixer: ShortConvolution, x: Tensor) -> Tensor:
    """y[t] = out(C[t] * sum over j of w[j] B[t-j] x[t-j]), one position after the other."""
    before, after, inputs = mixer.in_proj(x).chunk(3, -1)
    gated, weight = before * inputs, mixer.conv1d.weight[:, 0]
    taps, outputs = weight.shape[1], []
    for t in range(x.shape[1]):
        total = torch.zeros_like(gated[:, 0]) if mixer.conv1d.bias is None else mixer.conv1d.bias.expand_as(gated[:, 0])
        for back in range(min(taps, t + 1)):
            total = total + weight[:, taps - 1 - back] * gated[:, t - back]
        outputs.append(after[:, t] * total)
    return mixer.out_proj(torch.stack(outputs, 1))


@pytest.mark.parametrize("conv_kernel, use_bias", [(1, False), (3, True), (5, False)])
def test_it_is_the_sum_over_the_positions_before(conv_kernel: int, use_bias: bool) -> None:
    spec = parse_spec(model_of({"kind": "short_convolution", "conv_kernel": conv_kernel, "use_bias": use_bias}))
    mixer = build(spec, dtype=torch.float64).layers[0].sequence_mixer
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), plain(mixer, x), rtol=1e-12, atol=1e-12)


def test_the_filter_starts_as_pytorchs_convolutions_do() -> None:
    weight = build(parse_spec(model_of({"kind": "short_convolution"}, 64))).layers[0].sequence_mixer.conv1d.weight
    assert 0.9 * 3**-0.5 < weight.abs().max() <= 3**-0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_training_memory_is_the_measured_peak(precision: Any) -> None:
    spec = parse_spec(model_of({"kind": "short_convolution"}, 64))
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=64)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.06)
