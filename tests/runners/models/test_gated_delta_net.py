"""The gated delta rule over chunks against the recurrence position by position, and its training memory as measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import InvalidSpec, TrainingPlan, estimate_training, parse_spec, scale_down
from runners.models.delta_rule import chunked_delta, delta_step, recomputed_delta, unit_lower_inverse
from tests.planner.test_training import measured_peak_bytes

MIXER = {"kind": "gated_delta_net", "num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 16, "value_head_dim": 16}


def model_of(mixer: dict[str, Any]) -> dict[str, Any]:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 128}}
    return {
        "vocab_size": 64,
        "hidden_size": 64,
        "positions": {"kind": "none"},
        "layer_groups": [{"repeats": 3, "layers": [layer]}],
    }


def drawn(batch: int, length: int, key_heads: int, heads: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys, values, logarithms of decays from mild to harsh, and strengths up to two; in float64."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64).requires_grad_()

    return (
        normal(batch, length, key_heads, 6),
        normal(batch, length, key_heads, 6),
        normal(batch, length, heads, 5),
        normal(batch, length, heads),
        normal(batch, length, heads),
    )


def plain_delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """Equation 10 of arXiv:2412.06464 in its own words: S = S (a (I - b k k^T)) + b v k^T, y = S q."""
    shared = v.shape[2] // k.shape[2]
    q, k = (
        (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(shared, 2) for part in (q, k)
    )
    state, outputs = torch.zeros(*v.shape[:1], v.shape[2], v.shape[3], k.shape[3], dtype=v.dtype), []
    identity = torch.eye(k.shape[3], dtype=v.dtype)
    for t in range(v.shape[1]):
        key, strength = k[:, t], beta[:, t, :, None, None]
        forget = identity - strength * key[..., :, None] * key[..., None, :]
        state = decay[:, t].exp()[..., None, None] * state @ forget + strength * v[:, t, ..., None] * key[..., None, :]
        outputs.append((state @ q[:, t, ..., None])[..., 0] / k.shape[3] ** 0.5)
    return torch.stack(outputs, 1)


def in_range(raw: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return raw[0], raw[1], raw[2], -3 * raw[3].exp(), 2 * torch.sigmoid(raw[4])


@pytest.mark.parametrize("length, chunk", [(1, 4), (8, 4), (11, 4), (5, 16), (9, 1)])
@pytest.mark.parametrize("key_heads, heads", [(1, 1), (2, 4)])
def test_the_chunks_and_their_gradients_are_the_loops(length: int, chunk: int, key_heads: int, heads: int) -> None:
    raw = drawn(2, length, key_heads, heads)
    plain = plain_delta(*in_range(raw))
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), raw)
    for fast in (chunked_delta(*in_range(raw), chunk)[0], recomputed_delta(*in_range(raw), chunk)):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad((fast * weights).sum(), raw)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_it_goes_on_from_a_state_by_chunks_and_by_single_positions() -> None:
    q, k, v, decay, beta = in_range(drawn(2, 9, 2, 4))
    first, state = chunked_delta(q[:, :7], k[:, :7], v[:, :7], decay[:, :7], beta[:, :7], 3, v.new_zeros(2, 4, 6, 5))
    parts = [first]
    for t in (7, 8):
        assert state is not None
        step, state = delta_step(*(part[:, t : t + 1] for part in (q, k, v, decay, beta)), state)
        parts.append(step)
    torch.testing.assert_close(torch.cat(parts, 1), plain_delta(q, k, v, decay, beta), rtol=1e-12, atol=1e-12)


def test_the_inverse_of_a_unit_triangle_and_its_gradient() -> None:
    lower = torch.randn(3, 5, 5, dtype=torch.float64).requires_grad_()
    full = torch.eye(5, dtype=torch.float64) + lower.tril(-1)
    expected, found = torch.linalg.inv(full), unit_lower_inverse(lower)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    (one,) = torch.autograd.grad((found * weights).sum(), lower)
    (other,) = torch.autograd.grad((expected * weights).sum(), lower)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_harsh_decays_stay_finite_in_single_precision() -> None:
    """A position may forget all that came before: nothing is divided by a decay."""
    q, k, v, _, beta = (part.detach().float() for part in in_range(drawn(1, 64, 1, 1)))
    decay = torch.full((1, 64, 1), -60.0)
    y, _ = chunked_delta(q, k, v, decay, beta, 16)
    assert torch.isfinite(y).all()
    wide = plain_delta(*(part.double() for part in (q, k, v, decay, beta)))
    torch.testing.assert_close(y.double(), wide, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_training_memory_is_the_measured_peak(precision: Any, chunk_size: int) -> None:
    spec = parse_spec(model_of({**MIXER, "chunk_size": chunk_size}))
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=128)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.06)


def test_heads_that_do_not_share_evenly_are_refused() -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(model_of({**MIXER, "num_value_heads": 3}))
    assert refused.value.path.endswith("sequence_mixer.num_value_heads")
    assert refused.value.remedy


def test_a_prototype_keeps_the_heads_of_values_a_head_of_keys() -> None:
    wide = model_of({**MIXER, "num_key_heads": 16, "num_value_heads": 32, "key_head_dim": 128, "value_head_dim": 128})
    small = scale_down(parse_spec({**wide, "hidden_size": 2048}), 200_000).spec.layer_groups[0].layers[0].sequence_mixer
    assert small is not None
    assert small.kind == "gated_delta_net"
    assert small.num_value_heads == 2 * small.num_key_heads
    assert small.key_head_dim < 128
