"""Gated linear attention over chunks against its recurrence position by position, and its training memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner import InvalidSpec, TrainingPlan, estimate_training, load, parse_spec, scale_down, size
from runners.models import build
from runners.models.gated_linear_attention import chunked_gated, gated_step, recomputed_gated
from tests.planner.test_training import measured_peak_bytes

MIXER = {"kind": "gated_linear_attention", "num_heads": 4, "key_head_dim": 8, "value_head_dim": 16, "gate_rank": 8}


def model_of(mixer: dict[str, Any]) -> dict[str, Any]:
    layer = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 128}}
    return {
        "vocab_size": 64,
        "hidden_size": 64,
        "positions": {"kind": "none"},
        "layer_groups": [{"repeats": 3, "layers": [layer]}],
    }


def drawn(length: int, heads: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys, values and logits of decays from mild to harsh; in float64."""
    made = torch.Generator().manual_seed(seed)
    shapes = [(2, length, heads, width) for width in (6, 6, 5, 6)]
    return tuple(torch.randn(*shape, generator=made, dtype=torch.float64).requires_grad_() for shape in shapes)


def in_range(raw: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return raw[0], raw[1], raw[2], -3 * raw[3].exp()


def plain_gated(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Equation 3 of arXiv:2312.06635 with gates on the keys' channels: S = Diag(a) S + k^T v, o = q S / sqrt(d_k)."""
    state = torch.zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1], dtype=v.dtype)
    outputs = []
    for t in range(v.shape[1]):
        state = torch.diag_embed(decay[:, t].exp()) @ state + torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhi,bhij->bhj", q[:, t], state) / k.shape[-1] ** 0.5)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length, chunk", [(1, 4), (8, 4), (11, 4), (5, 16), (9, 1), (12, 8)])
def test_the_chunks_and_their_gradients_are_the_loops(length: int, chunk: int) -> None:
    raw = drawn(length)
    plain = plain_gated(*in_range(raw))
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), raw)
    for fast in (chunked_gated(*in_range(raw), chunk)[0], recomputed_gated(*in_range(raw), chunk)):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
        for one, other in zip(torch.autograd.grad((fast * weights).sum(), raw), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_it_goes_on_from_a_state_by_chunks_and_by_single_positions() -> None:
    parts = in_range(drawn(14))
    outputs, state = [], torch.zeros(2, 2, 6, 5, dtype=torch.float64)
    for start, end in ((0, 7), (7, 12), (12, 13), (13, 14)):
        q, k, v, decay = (part[:, start:end] for part in parts)
        if end - start == 1:
            made, state = gated_step(q, k, v, decay, state)
        else:
            made, after = chunked_gated(q, k, v, decay, 4, state)
            assert after is not None
            state = after
        outputs.append(made)
    torch.testing.assert_close(torch.cat(outputs, 1), plain_gated(*parts), rtol=1e-12, atol=1e-12)


def test_harsh_decays_stay_finite_in_single_precision() -> None:
    """A channel may forget all that came before, and its neighbour nothing: nothing is divided by a decay."""
    raw = [part.detach().float().requires_grad_() for part in drawn(64)]
    harsh = torch.full_like(raw[3], -60.0)
    harsh[..., ::2] = -1e-3
    decay = harsh.requires_grad_()
    y, _ = chunked_gated(raw[0], raw[1], raw[2], decay, 32)
    gradients = torch.autograd.grad(y.square().sum(), (*raw[:3], decay))
    wide = [part.detach().double().requires_grad_() for part in (*raw[:3], decay)]
    plain = plain_gated(wide[0], wide[1], wide[2], wide[3])
    torch.testing.assert_close(y.double(), plain, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(plain.square().sum(), wide), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5 * other.abs().max().item())


def layer_in_words(layer: nn.Module, x: Tensor, mixer: dict[str, Any]) -> Tensor:
    """The layer as section 4.4 and appendix A of arXiv:2312.06635 have it, with a loop over the positions."""
    weights = dict(layer.named_parameters())
    heads = mixer["num_heads"]

    def heads_of(name: str) -> Tensor:
        return (x @ weights[f"{name}.weight"].T).unflatten(-1, (heads, -1))

    logits = x @ weights["decay_a_proj.weight"].T @ weights["decay_b_proj.weight"].T + weights["decay_b_proj.bias"]
    decay = torch.sigmoid(logits).log().unflatten(-1, (heads, -1)) / 16
    o = plain_gated(heads_of("q_proj"), heads_of("k_proj"), heads_of("v_proj"), decay)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["norm.weight"]
    gate = heads_of("gate_proj")
    return (o * gate * torch.sigmoid(gate)).flatten(2) @ weights["o_proj.weight"].T


@pytest.mark.parametrize("kernels", ["eager", "reference"])
def test_the_layer_and_its_gradients_are_those_of_the_papers_words(kernels: Any) -> None:
    model = build(parse_spec(model_of({**MIXER, "chunk_size": 4})), dtype=torch.float64, kernels=kernels)
    layer = model.get_submodule("layers.0.sequence_mixer")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) / 3)
    x = torch.randn(2, 11, 64, dtype=torch.float64)
    found, expected = layer(x), layer_in_words(layer, x, MIXER)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    parameters = list(layer.parameters())
    ours, theirs = (torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    "change, length",
    [
        ({"chunk_size": 16}, 128),
        ({"chunk_size": 64}, 128),
        ({"chunk_size": 128}, 200),
        # States that are larger than all else.
        ({"chunk_size": 16, "num_heads": 1, "key_head_dim": 128, "value_head_dim": 128}, 256),
    ],
    ids=str,
)
def test_training_memory_is_the_measured_peak(precision: Any, change: dict[str, Any], length: int) -> None:
    spec = parse_spec(model_of({**MIXER, **change}))
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=length)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.06)


def test_a_chunk_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(model_of({**MIXER, "chunk_size": 48}))
    assert refused.value.path.endswith("sequence_mixer.chunk_size")
    assert refused.value.remedy


def test_a_prototype_keeps_values_twice_as_wide_as_keys() -> None:
    wide = model_of({**MIXER, "num_heads": 4, "key_head_dim": 256, "value_head_dim": 512, "gate_rank": 16})
    small: Any = scale_down(parse_spec({**wide, "hidden_size": 2048}), 200_000).spec
    mixer = small.layer_groups[0].layers[0].sequence_mixer
    assert mixer.key_head_dim < 256
    assert mixer.value_head_dim == pytest.approx(2 * mixer.key_head_dim, abs=8)


def test_the_known_model_has_the_tensors_that_its_authors_print() -> None:
    """Layer by layer as the flash-linear-attention README shows the module of its default configuration."""
    mixer = 2 * 2048 * 1024 + 2 * 2048 * 2048 + (2048 * 16 + 16 * 1024 + 1024) + 2048 * 2048 + 512
    layer = 2048 + mixer + 2048 + 2048 * 11264 + 5632 * 2048
    assert size(load("gla-1.3b")).parameters.total == 32000 * 2048 + 24 * layer + 2048 + 2048 * 32000
