"""Attention in blocks against PyTorch's in float64, output and gradients, and what it saves against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runners.models import blocked_attention
from runners.models.blocked_attention import LONGEST, SHORTEST, blocked_causal_attention, takes_blocks
from runners.models.scores import Scores, attend

SCALE = 0.2
BF16_STEP = 2**-8


def drawn(batch: int, heads: int, key_heads: int, length: int, width: int, value_width: int) -> list[Tensor]:
    """Queries, keys and values, laid out positions before heads as the projections leave them."""
    torch.manual_seed(0)
    shapes = (heads, width), (key_heads, width), (key_heads, value_width)
    return [
        torch.randn(batch, length, count, channels).bfloat16().transpose(1, 2).requires_grad_()
        for count, channels in shapes
    ]


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE, enable_gqa=True)


@pytest.mark.parametrize(
    "heads, key_heads, length, width, value_width",
    [(4, 4, 256, 16, 16), (4, 2, 200, 16, 16), (2, 1, 300, 24, 8), (3, 3, 128, 8, 16)],
)
@pytest.mark.parametrize("most_scores", [2**21, 128 * 300])
def test_it_is_attention_to_the_rounding_of_bf16(
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    key_heads: int,
    length: int,
    width: int,
    value_width: int,
    most_scores: int,
) -> None:
    """Whole blocks and broken ones, heads that share keys, other widths of values, and heads group by group."""
    monkeypatch.setattr(blocked_attention, "MOST_SCORES", most_scores)
    leaves = drawn(2, heads, key_heads, length, width, value_width)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = blocked_causal_attention(*leaves, SCALE), exact(*wide)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    gradients = zip(
        torch.autograd.grad((found.double() * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), wide),
        strict=True,
    )
    for one, other in ((found, expected), *gradients):
        assert (one.double() - other).norm() < 3 * BF16_STEP * other.norm()


def test_large_scores_neither_overflow_nor_vanish() -> None:
    query, key, value = (leaf.detach() for leaf in drawn(1, 2, 2, 128, 16, 16))
    found = blocked_causal_attention(200 * query, 200 * key, value, SCALE)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :, 0], value[:, :, 0])  # the first query sees one key alone


def test_it_keeps_what_fused_attention_keeps() -> None:
    """To the byte: queries, keys, values, the output and a logarithm a query."""
    leaves = drawn(2, 4, 2, 256, 16, 16)

    def kept(call: object) -> int:
        assert callable(call)
        found: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: found.setdefault(t.untyped_storage()._cdata, t), lambda t: t
        ):
            call()
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    assert kept(lambda: blocked_causal_attention(*leaves, SCALE)) == kept(lambda: exact(*leaves))


def test_short_wide_and_continued_attention_stays_with_pytorch() -> None:
    query, key, _ = drawn(1, 1, 1, SHORTEST, 8, 8)
    assert takes_blocks(query, key)
    assert not takes_blocks(query.float(), key.float())
    assert not takes_blocks(query[:, :, 1:], key)
    assert not takes_blocks(query[:, :, 1:], key[:, :, 1:])
    long = query.new_empty(1, 1, LONGEST + 1, 8)
    assert not takes_blocks(long, long)


def test_the_models_attention_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = blocked_causal_attention

    def counted(*arguments: object) -> Tensor:
        calls.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("runners.models.scores.blocked_causal_attention", counted)
    leaves = [leaf.detach() for leaf in drawn(1, 2, 2, 256, 16, 16)]
    fast = attend(*leaves, None, Scores(SCALE), "eager")
    plain = attend(*(leaf.double() for leaf in leaves), None, Scores(SCALE), "reference")
    assert calls == [1]
    torch.testing.assert_close(fast.double(), plain, rtol=0.02, atol=0.02)
