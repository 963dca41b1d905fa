"""The delta rule with decays of single channels, over chunks, against its recurrence position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import InvalidSpec, TrainingPlan, estimate_training, parse_spec, scale_down
from runners.models.channel_decay import below_diagonal
from runners.models.kimi_delta_attention import (
    channel_delta_step,
    chunked_channel_delta,
    recomputed_channel_delta,
)
from tests.planner.test_training import measured_peak_bytes

MIXER = {"kind": "kimi_delta_attention", "num_heads": 4, "head_dim": 16, "gate_rank": 8}


def model_of(mixer: dict[str, Any]) -> dict[str, Any]:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 128}}
    return {
        "vocab_size": 64,
        "hidden_size": 64,
        "positions": {"kind": "none"},
        "layer_groups": [{"repeats": 3, "layers": [layer]}],
    }


def drawn(length: int, heads: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys, values, logarithms of decays from mild to harsh, and strengths; in float64."""
    made = torch.Generator().manual_seed(seed)
    shapes = [(2, length, heads, 6)] * 4 + [(2, length, heads)]
    return tuple(torch.randn(*shape, generator=made, dtype=torch.float64).requires_grad_() for shape in shapes)


def in_range(raw: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return raw[0], raw[1], raw[2], -3 * raw[3].exp(), torch.sigmoid(raw[4])


def plain_delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """Equation 1 of arXiv:2510.26692 in its own words: S = (I - b k k^T) Diag(a) S + b k v^T, o = S^T q."""
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    channels = k.shape[-1]
    state = torch.zeros(v.shape[0], v.shape[2], channels, v.shape[-1], dtype=v.dtype)
    identity, outputs = torch.eye(channels, dtype=v.dtype), []
    for t in range(v.shape[1]):
        key, strength = k[:, t], beta[:, t, :, None, None]
        forget = identity - strength * key[..., :, None] * key[..., None, :]
        state = forget @ torch.diag_embed(decay[:, t].exp()) @ state
        state = state + strength * key[..., :, None] * v[:, t, ..., None, :]
        outputs.append((q[:, t, ..., None, :] @ state)[..., 0, :] / channels**0.5)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length, chunk", [(1, 4), (8, 4), (11, 4), (5, 16), (9, 1), (12, 8)])
def test_the_chunks_and_their_gradients_are_the_loops(length: int, chunk: int) -> None:
    raw = drawn(length)
    plain = plain_delta(*in_range(raw))
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), raw)
    fasts = (chunked_channel_delta(*in_range(raw), chunk)[0], recomputed_channel_delta(*in_range(raw), chunk))
    for fast in fasts:
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
        for one, other in zip(torch.autograd.grad((fast * weights).sum(), raw), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_it_goes_on_from_a_state_by_chunks_and_by_single_positions() -> None:
    parts = in_range(drawn(14))
    outputs, state = [], torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    for start, end in ((0, 7), (7, 12), (12, 13), (13, 14)):
        q, k, v, decay, beta = (part[:, start:end] for part in parts)
        if end - start == 1:
            made, state = channel_delta_step(q, k, v, decay, beta, state)
        else:
            made, after = chunked_channel_delta(q, k, v, decay, beta, 4, state)
            assert after is not None
            state = after
        outputs.append(made)
    torch.testing.assert_close(torch.cat(outputs, 1), plain_delta(*parts), rtol=1e-12, atol=1e-12)


def test_the_squares_of_two_positions_by_hand() -> None:
    """Queries (1, 2) and (3, 4), keys (5, 6) and (7, 8), decays that halve one channel and keep the other."""
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    k = torch.tensor([[5.0, 6.0], [7.0, 8.0]], dtype=torch.float64)
    decay = torch.log(torch.tensor([[0.5, 1.0], [0.25, 1.0]], dtype=torch.float64))
    scores, likeness = below_diagonal(q, k, decay, True)
    below = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(likeness, below * (7 * 5 * 0.5 + 8 * 6))
    torch.testing.assert_close(scores, below * (3 * 5 * 0.5 + 4 * 6))


def test_gradients_of_the_squares_are_those_of_the_whole_sum() -> None:
    q, k, _, raw, _ = drawn(8)
    found = below_diagonal(*(part.transpose(1, 2) for part in (q, k, -raw.exp().cumsum(1))), True)
    weights = [torch.randn_like(each) for each in found]
    decay = -raw.exp().cumsum(1).transpose(1, 2)
    factors = torch.exp((decay[..., :, None, :] - decay[..., None, :, :]).clamp(max=0))
    below = torch.ones(8, 8, dtype=torch.float64).tril(-1)
    expected = [
        (rows.transpose(1, 2)[..., :, None, :] * k.transpose(1, 2)[..., None, :, :] * factors).sum(-1) * below
        for rows in (q, k)
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    totals = [sum((e * w).sum() for e, w in zip(each, weights, strict=True)) for each in (found, expected)]
    grads = [torch.autograd.grad(total, (q, k, raw)) for total in totals]  # type: ignore[arg-type]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_harsh_decays_stay_finite_in_single_precision() -> None:
    """A channel may forget all that came before, and its neighbour nothing: nothing is divided by a decay."""
    q, k, v, _, beta = (part.detach().float() for part in in_range(drawn(64)))
    decay = torch.full_like(k, -60.0)
    decay[..., ::2] = -1e-3
    y, _ = chunked_channel_delta(q, k, v, decay, beta, 32)
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


def test_a_chunk_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(model_of({**MIXER, "chunk_size": 48}))
    assert refused.value.path.endswith("sequence_mixer.chunk_size")
    assert refused.value.remedy


def test_a_prototype_narrows_the_gates_with_the_heads() -> None:
    wide = model_of({**MIXER, "num_heads": 16, "head_dim": 128, "gate_rank": 128})
    small: Any = scale_down(parse_spec({**wide, "hidden_size": 2048}), 200_000).spec
    mixer = small.layer_groups[0].layers[0].sequence_mixer
    assert mixer.gate_rank == mixer.head_dim < 128
