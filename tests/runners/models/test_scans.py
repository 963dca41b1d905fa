"""The chunked scans and the grouped expert product against plain loops in float64, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runners.models import state_space_dual
from runners.models.expert_matmul import expert_matmul
from runners.models.mamba2 import chunked_dual, recurrent_step
from runners.models.selective_scan import selective_scan, selective_scan_from


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def plain_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Algorithm 2 of arXiv:2312.00752, one position after the other."""
    state, outputs = torch.zeros(x.shape[0], x.shape[2], A.shape[1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return torch.stack(outputs, 1)


def plain_dual(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence of arXiv:2405.21060, equation 1, with a scalar decay a head."""
    shared = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(shared, 2), C.repeat_interleave(shared, 2)
    state, outputs = torch.zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=x.dtype), []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length, chunk", [(1, 4), (8, 4), (11, 4), (13, 32)])
def test_selective_scan_and_its_gradients_are_the_loops(length: int, chunk: int) -> None:
    torch.manual_seed(length)
    raw = drawn(2, length, 5), drawn(2, length, 5), drawn(5, 3), drawn(2, length, 3), drawn(2, length, 3)
    arguments = raw[0], F.softplus(raw[1]), -raw[2].exp(), raw[3], raw[4]
    fast, plain = selective_scan(*arguments, chunk), plain_scan(*arguments)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    for found, expected in zip(
        torch.autograd.grad((fast * weights).sum(), raw, retain_graph=True),
        torch.autograd.grad((plain * weights).sum(), raw),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length, chunk, groups", [(1, 4, 1), (8, 4, 2), (11, 4, 4), (5, 16, 1)])
def test_chunked_dual_and_its_gradients_are_the_loops(length: int, chunk: int, groups: int) -> None:
    torch.manual_seed(length)
    raw = (
        drawn(2, length, 4, 3),
        drawn(2, length, 4),
        drawn(4),
        drawn(2, length, groups, 5),
        drawn(2, length, groups, 5),
    )
    arguments = raw[0], F.softplus(raw[1]), -raw[2].exp(), raw[3], raw[4]
    fast, plain = chunked_dual(*arguments, chunk)[0], plain_dual(*arguments)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    for found, expected in zip(
        torch.autograd.grad((fast * weights).sum(), raw, retain_graph=True),
        torch.autograd.grad((plain * weights).sum(), raw),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_scans_go_on_from_a_state() -> None:
    torch.manual_seed(0)
    x, dt, A = torch.randn(2, 9, 5).double(), torch.rand(2, 9, 5).double(), -torch.rand(5, 3).double()
    B, C = torch.randn(2, 9, 3).double(), torch.randn(2, 9, 3).double()
    first, state = selective_scan_from(torch.zeros(2, 5, 3).double(), x[:, :4], dt[:, :4], A, B[:, :4], C[:, :4], 3)
    second, _ = selective_scan_from(state, x[:, 4:], dt[:, 4:], A, B[:, 4:], C[:, 4:], 3)
    torch.testing.assert_close(torch.cat((first, second), 1), plain_scan(x, dt, A, B, C))

    x, dt, A = torch.randn(2, 9, 4, 3).double(), torch.rand(2, 9, 4).double(), -torch.rand(4).double()
    B, C = torch.randn(2, 9, 2, 5).double(), torch.randn(2, 9, 2, 5).double()
    nothing = torch.zeros(2, 4, 3, 5).double()
    first, state = chunked_dual(x[:, :8], dt[:, :8], A, B[:, :8], C[:, :8], 3, nothing)
    assert state is not None
    last, _ = recurrent_step(x[:, 8:], dt[:, 8:], A, B[:, 8:], C[:, 8:], state)
    torch.testing.assert_close(torch.cat((first, last), 1), plain_dual(x, dt, A, B, C))


@pytest.mark.parametrize("length, chunk, groups, tile", [(2, 4, 1, 1), (8, 4, 2, 64), (11, 4, 4, 2**20), (5, 16, 1, 1)])
def test_the_dual_goes_on_from_a_state_that_is_not_empty(
    length: int, chunk: int, groups: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is read in two parts is the loop over the whole of it; also the state at its end."""
    torch.manual_seed(length)
    monkeypatch.setattr(state_space_dual, "TILE_ELEMENTS", tile)
    x, dt, A = torch.randn(2, 2 * length, 4, 3).double(), torch.rand(2, 2 * length, 4).double(), -torch.rand(4).double()
    B, C = torch.randn(2, 2 * length, groups, 5).double(), torch.randn(2, 2 * length, groups, 5).double()
    D = torch.randn(4).double()
    mixed = torch.cat((x.flatten(2), B.flatten(2), C.flatten(2)), -1)
    state, found = torch.zeros(2, 4, 3, 5).double(), []
    for part in (slice(0, length), slice(length, None)):
        y, state = state_space_dual.dual_from(state, mixed[:, part], dt[:, part], A, D, groups, 5, chunk)
        found.append(y)
    expected = plain_dual(x, dt, A, B, C) + D[:, None] * x
    torch.testing.assert_close(torch.cat(found, 1), expected.flatten(2))
    left = torch.zeros_like(state)
    for t in range(2 * length):
        inputs = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t].repeat_interleave(4 // groups, 1)[..., None, :]
        left = left * torch.exp(dt[:, t] * A)[..., None, None] + inputs
    torch.testing.assert_close(state, left)


@pytest.mark.parametrize("dtype, width", [(torch.float64, 5), (torch.float32, 16), (torch.float32, 5)])
def test_the_expert_product_is_a_product_an_expert(dtype: torch.dtype, width: int) -> None:
    """Also with an expert that no row goes to."""
    torch.manual_seed(0)
    rows = torch.randn(12, 8, dtype=dtype).requires_grad_()
    weights = torch.randn(3, 8, width, dtype=dtype).requires_grad_()
    ends = torch.tensor([7, 7, 12], dtype=torch.int32)
    plain = torch.cat((rows[:7] @ weights[0], rows[7:] @ weights[2]))
    fast = expert_matmul(rows, weights, ends)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(fast.square().sum(), (rows, weights))
    expected = torch.autograd.grad(plain.square().sum(), (rows, weights))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
