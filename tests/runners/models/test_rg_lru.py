"""The recurrent block of Griffin against its equations position by position, and its training memory as measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import TrainingPlan, estimate_training, parse_spec, scale_down
from runners.models import build
from runners.models.rg_lru import RGLRU, recur, recurrence
from tests.planner.test_training import measured_peak_bytes

MIXER = {"kind": "rg_lru", "num_heads": 4, "head_dim": 16}


def model_of(mixer: dict[str, Any], hidden_size: int = 64) -> dict[str, Any]:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 2 * hidden_size}}
    return {
        "vocab_size": 64,
        "hidden_size": hidden_size,
        "positions": {"kind": "none"},
        "layer_groups": [{"repeats": 3, "layers": [layer]}],
    }


def plain_recurrence(x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, decay: Tensor) -> Tensor:
    """Equations 1 to 4 of arXiv:2402.19427, one position after the other; sigmoid(-decay) is their sigmoid(Lambda)."""
    state, outputs = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        r, i = torch.sigmoid(recurrence_gate[:, t]), torch.sigmoid(input_gate[:, t])
        a = torch.sigmoid(-decay) ** (8 * r)
        entering = i * x[:, t]
        state = a * state + torch.sqrt(1 - a**2) * entering if t else entering
        outputs.append(state)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13])
def test_the_recurrence_and_its_gradients_are_the_loops(length: int) -> None:
    torch.manual_seed(length)
    raw = [torch.randn(2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    raw.append(torch.randn(5, dtype=torch.float64).requires_grad_())
    fast, plain = recurrence(*raw), plain_recurrence(*raw)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    found = torch.autograd.grad((fast * weights).sum(), raw)
    expected = torch.autograd.grad((plain * weights).sum(), raw, allow_unused=True)
    for one, other in zip(found, expected, strict=True):  # one position alone reads no decay
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-10, atol=1e-11)


def test_the_block_is_its_two_branches() -> None:
    mixer = build(parse_spec(model_of(MIXER)), dtype=torch.float64).layers[0].sequence_mixer
    assert isinstance(mixer, RGLRU)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 9, 64, dtype=torch.float64)
    entering = mixer.in_proj(x).transpose(1, 2)
    filtered = torch.nn.functional.conv1d(entering, mixer.conv1d.weight, mixer.conv1d.bias, padding=3, groups=64)
    filtered = filtered[..., :9].transpose(1, 2)
    gates = [
        torch.einsum("bthi,hio->btho", filtered.unflatten(-1, (4, 16)), gate.weight) + gate.bias
        for gate in (mixer.input_gate, mixer.recurrence_gate)
    ]
    states = plain_recurrence(filtered, gates[0].flatten(2), gates[1].flatten(2), mixer.decay)
    expected = mixer.out_proj(torch.nn.functional.gelu(mixer.gate_proj(x), approximate="tanh") * states)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


def test_a_channel_that_forgets_nothing_has_finite_gradients() -> None:
    """The root in the input's factor has no derivative where the decay is one to rounding."""
    x, gate = torch.randn(1, 6, 3).requires_grad_(), torch.zeros(1, 6, 3).requires_grad_()
    decay = torch.full((3,), -40.0).requires_grad_()
    recurrence(x, gate, gate, decay).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in (x, gate, decay) if leaf.grad is not None)


def test_long_sequences_stay_exact_in_single_precision() -> None:
    decay, inputs = torch.rand(1, 1000, 4), torch.randn(1, 1000, 4)
    state, states = torch.zeros(1, 4).double(), []
    for t in range(1000):
        state = decay[:, t].double() * state + inputs[:, t].double()
        states.append(state)
    torch.testing.assert_close(
        recur(decay.clone(), inputs.clone()).double(), torch.stack(states, 1), rtol=1e-5, atol=1e-5
    )


def test_decays_start_between_nine_tenths_and_almost_one() -> None:
    decay = build(parse_spec(model_of(MIXER))).layers[0].sequence_mixer.decay
    fully_open = torch.sigmoid(-decay) ** 8
    assert 0.9 - 1e-4 <= fully_open.min() < 0.92
    assert 0.98 < fully_open.max() <= 0.999 + 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("alone", [False, True])
def test_training_memory_is_the_measured_peak(precision: Any, alone: bool) -> None:
    """Where an MLP decides the peak, and where the recurrence does."""
    model = model_of(MIXER)
    if alone:
        model["layer_groups"][0]["layers"][0].pop("channel_mixer")
    spec = parse_spec(model)
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=128)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.06)


def test_a_prototype_keeps_the_channels_in_whole_heads() -> None:
    wide = model_of({**MIXER, "num_heads": 10, "head_dim": 256}, 2560)
    small = scale_down(parse_spec(wide), 200_000).spec
    mixer = small.layer_groups[0].layers[0].sequence_mixer
    assert mixer is not None
    assert mixer.kind == "rg_lru"
    assert mixer.head_dim % 8 == 0
    assert mixer.num_heads * mixer.head_dim == pytest.approx(small.hidden_size, abs=8)
