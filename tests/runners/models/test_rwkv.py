"""RWKV-4's mixes against their equations position by position, and their training memory as measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import TrainingPlan, estimate_training, parse_spec
from runners.models import build
from runners.models.rwkv import RWKVChannelMix, RWKVTimeMix, weighted_values
from tests.planner.test_training import measured_peak_bytes


def model_of(width: int = 64, hidden_size: int = 64, **without: None) -> dict[str, Any]:
    mixers = {
        "sequence_mixer": {"kind": "rwkv_time_mix", "attention_hidden_size": width},
        "channel_mixer": {"kind": "rwkv_channel_mix", "intermediate_size": 3 * hidden_size},
    }
    return {
        "vocab_size": 64,
        "hidden_size": hidden_size,
        "positions": {"kind": "none"},
        "norm": {"kind": "layer_norm"},
        "layer_groups": [{"repeats": 3, "layers": [{**mixers, **without}]}],
    }


def plain_values(key: Tensor, value: Tensor, time_decay: Tensor, bonus: Tensor) -> Tensor:
    """Equation 16 of arXiv:2305.13048 in its own words: at each position a quotient of two sums over all before."""
    w, outputs = torch.exp(time_decay), []
    for t in range(key.shape[1]):
        above, below = torch.exp(bonus + key[:, t]) * value[:, t], torch.exp(bonus + key[:, t])
        for i in range(t):
            weight = torch.exp(-(t - 1 - i) * w + key[:, i])
            above, below = above + weight * value[:, i], below + weight
        outputs.append(above / below)
    return torch.stack(outputs, 1)


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """Equation 11: a mixture with the position before, which is zero before the first."""
    mixtures = []
    for t in range(x.shape[1]):
        before = x[:, t - 1] if t else torch.zeros_like(x[:, 0])
        mixtures.append(weight[0, 0] * x[:, t] + (1 - weight[0, 0]) * before)
    return torch.stack(mixtures, 1)


def shaken(mixer: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_the_weighted_values_and_their_gradients_are_the_loops(length: int) -> None:
    torch.manual_seed(length)
    raw = [torch.randn(2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    raw += [torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    fast, plain = weighted_values(*raw), plain_values(*raw)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    found = torch.autograd.grad((fast * weights).sum(), raw)
    expected = torch.autograd.grad((plain * weights).sum(), raw, allow_unused=True)
    for one, other in zip(found, expected, strict=True):  # one position alone reads no decay
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [80.0, 2000.0])
def test_large_keys_overflow_nothing_in_single_precision(size: float) -> None:
    torch.manual_seed(0)
    raw = [size * torch.randn(1, 24, 4), torch.randn(1, 24, 4), torch.randn(4), torch.randn(4)]
    leaves = [part.requires_grad_() for part in raw]
    y = weighted_values(*leaves)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.isfinite(part).all() for part in (y, *gradients))
    if size < 100:  # what plain exponentials in double precision can hold
        torch.testing.assert_close(y.double(), plain_values(*(part.double() for part in raw)), rtol=1e-4, atol=1e-5)


def test_the_time_mix_is_its_equations() -> None:
    mixer = shaken(build(parse_spec(model_of(12, 16)), dtype=torch.float64).layers[0].sequence_mixer)
    assert isinstance(mixer, RWKVTimeMix)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    key = mixer.k_proj(shifted(x, mixer.time_mix_key))
    value = mixer.v_proj(shifted(x, mixer.time_mix_value))
    receptance = torch.sigmoid(mixer.receptance_proj(shifted(x, mixer.time_mix_receptance)))
    expected = mixer.o_proj(receptance * plain_values(key, value, mixer.time_decay, mixer.time_first))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


def test_the_channel_mix_is_its_equations() -> None:
    mixer = shaken(build(parse_spec(model_of(12, 16)), dtype=torch.float64).layers[0].channel_mixer)
    assert isinstance(mixer, RWKVChannelMix)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    up = torch.relu(mixer.up_proj(shifted(x, mixer.time_mix_key))) ** 2
    receptance = torch.sigmoid(mixer.receptance_proj(shifted(x, mixer.time_mix_receptance)))
    torch.testing.assert_close(mixer(x), receptance * mixer.down_proj(up), rtol=1e-12, atol=1e-12)


def test_a_cache_in_half_precision_makes_up_for_its_rounded_exponent() -> None:
    """An exponent of 200.3 is off by up to half in bf16, a factor of 1.6 that the sums must not keep."""
    mixer = build(parse_spec(model_of(8, 16))).layers[0].sequence_mixer
    key, value = torch.full((1, 6, 8), 200.3), torch.randn(1, 6, 8)
    parts = mixer.time_decay.detach(), mixer.time_first.detach()
    state = torch.zeros(1, 3, 8, dtype=torch.bfloat16)
    mixer._continued(key[:, :5], value[:, :5], *parts, state, True)
    last = mixer._continued(key[:, 5:], value[:, 5:], *parts, state, False)
    expected = plain_values(key.double(), value.double(), *(part.double() for part in parts))[:, 5:]
    torch.testing.assert_close(last.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("without", ["neither", "sequence_mixer", "channel_mixer"])
def test_training_memory_is_the_measured_peak(precision: Any, without: str) -> None:
    spec = parse_spec(model_of(**({} if without == "neither" else {without: None})))
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=128)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.06)
