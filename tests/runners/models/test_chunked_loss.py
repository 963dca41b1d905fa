"""The loss in chunks against PyTorch's own head and cross-entropy: value, gradients, FLOPs, and what is never made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from planner import ArchitectureSpec
from runners.models import build, chunked_loss
from runners.models.chunked_loss import chunked_cross_entropy
from runners.models.decoder import IGNORED_LABEL, next_tokens
from tests.runners.models.specs import specs

ROWS, CHANNELS, VOCABULARY, CHUNK = 23, 6, 41, 5


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale: Any, softcap: Any) -> Tensor:
    logits = hidden @ weight.T + bias
    logits = logits if scale is None else logits * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL)


def drawn(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    shapes = (ROWS, CHANNELS), (VOCABULARY, CHANNELS), (VOCABULARY,)
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    targets[[2, 7, 8, 9, 10, 11, 12, 22]] = IGNORED_LABEL  # rows 5 to 9 are a chunk, and so is 20 to 22
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes], targets


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_loss_and_its_gradients_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, scale: float | None, softcap: float | None
) -> None:
    monkeypatch.setattr(chunked_loss, "LOSS_CHUNK_TOKENS", CHUNK)
    leaves, targets = drawn(torch.float64)
    found = chunked_cross_entropy(*leaves, targets, IGNORED_LABEL, scale, softcap)
    expected = plain(*leaves, targets, scale, softcap)
    torch.testing.assert_close(found, expected)
    made = torch.autograd.grad(3 * found, leaves)  # a factor behind it reaches every gradient
    for one, other in zip(made, torch.autograd.grad(3 * expected, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_no_logits_of_all_positions_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "LOSS_CHUNK_TOKENS", CHUNK)
    leaves, targets = drawn(torch.float32)
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(part.numel() for part in (result,) if isinstance(part, Tensor))
            return result

    with Sizes():
        chunked_cross_entropy(*leaves, targets, IGNORED_LABEL).backward()
    assert max(made) == max(CHUNK * VOCABULARY, VOCABULARY * CHANNELS)
    made.clear()
    with Sizes():
        plain(*leaves, targets, None, None).backward()
    assert max(made) == ROWS * VOCABULARY


def test_it_takes_the_flops_of_the_plain_head() -> None:
    leaves, targets = drawn(torch.float32)
    with FlopCounterMode(display=False) as counter:
        chunked_cross_entropy(*leaves, targets, IGNORED_LABEL).backward()
    assert counter.get_total_flops() == 3 * 2 * ROWS * CHANNELS * VOCABULARY
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        chunked_cross_entropy(*leaves, targets, IGNORED_LABEL)
    assert counter.get_total_flops() == 2 * ROWS * CHANNELS * VOCABULARY


def test_its_backward_pass_runs_once() -> None:
    leaves, targets = drawn(torch.float32)
    loss = chunked_cross_entropy(*leaves, targets, IGNORED_LABEL)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss anew"):
        loss.backward()


@given(specs())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_model_trains_by_it_as_by_its_logits(spec: ArchitectureSpec) -> None:
    """Tied heads, biases, bounds and narrow embeddings too; in float64, and nearly so under autocast."""
    tokens = torch.randint(0, spec.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
    labels = tokens.clone()
    labels[0, 3:6] = IGNORED_LABEL
    models = [build(spec, dtype=torch.float64) for _ in range(2)]
    losses = models[0].loss(tokens, next_tokens(labels)), models[1](tokens, labels=labels).loss
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.backward()
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        narrow = build(spec)
        torch.testing.assert_close(
            narrow.loss(tokens, next_tokens(labels)), narrow(tokens, labels=labels).loss, rtol=1e-5, atol=1e-5
        )
