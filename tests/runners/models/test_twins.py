"""The built model against the planner, over drawn specifications, and against itself in generation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from planner import ArchitectureSpec, cache_bytes, flops, size
from planner.components.patterns import MaskPattern
from runners.models import build
from tests.runners.models.specs import specs

DRAWN = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@given(specs())
@DRAWN
def test_tensors_are_the_planners_name_by_name_and_shape_by_shape(spec: ArchitectureSpec) -> None:
    model = build(spec, device="meta")
    sized = size(spec)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {t.name: t.shape for t in sized.tensors}
    assert {name: tuple(b.shape) for name, b in model.named_buffers()} == {t.name: t.shape for t in sized.buffers}
    assert sum(p.numel() for p in model.parameters()) == sized.parameters.total


@given(specs(), st.integers(1, 3), st.integers(2, 19))
@DRAWN
def test_flops_are_what_the_counter_counts(spec: ArchitectureSpec, batch: int, length: int) -> None:
    """Forward and training, masks executed over the whole square, padding to chunks paid."""
    model = build(spec, kernels="reference")
    tokens = torch.randint(0, spec.vocab_size, (batch, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens)
    assert counter.get_total_flops() == flops(spec, length, batch).total
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, labels=tokens).loss.backward()
    assert counter.get_total_flops() == flops(spec, length, batch, training=True).total


@given(specs(), st.integers(1, 3), st.integers(1, 20))
@DRAWN
def test_cache_has_the_planners_bytes(spec: ArchitectureSpec, batch: int, context: int) -> None:
    cache = build(spec, dtype=torch.bfloat16).new_cache(batch, context)
    assert cache.bytes == cache_bytes(spec, context, batch, "bf16")


@given(specs(), st.integers(0, 5))
@DRAWN
def test_reading_through_the_cache_gives_the_same_logits(spec: ArchitectureSpec, seed: int) -> None:
    """A prompt longer than the windows, then single tokens, then several at once; in float64, to rounding."""
    model = build(spec, dtype=torch.float64, seed=seed)
    tokens = torch.randint(0, spec.vocab_size, (2, 16), generator=torch.Generator().manual_seed(seed))
    whole = model(tokens).logits
    cache = model.new_cache(2, 16)
    pieces = [model(part, cache=cache).logits for part in tokens.split([10, 1, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-10)


@given(specs())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_generation_with_a_cache_equals_generation_without(spec: ArchitectureSpec) -> None:
    model = build(spec, dtype=torch.float64)
    prompt = torch.randint(0, spec.vocab_size, (2, 5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.generate(prompt, 10), model.generate(prompt, 10, use_cache=False))


@given(specs())
@DRAWN
def test_the_fast_path_equals_plain_pytorch(spec: ArchitectureSpec) -> None:
    """Loss and every gradient of ``eager`` against ``reference``, in float64."""
    tokens = torch.randint(0, spec.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
    models = [build(spec, dtype=torch.float64, kernels=kernels) for kernels in ("eager", "reference")]
    losses = [model(tokens, labels=tokens).loss for model in models]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-12)
    for loss in losses:
        loss.backward()
    for (name, fast), (_, plain) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        if plain.grad is None:
            assert fast.grad is None, name
        else:
            torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@given(specs())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_step_under_bf16_autocast_lowers_the_loss(spec: ArchitectureSpec) -> None:
    model = build(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.arange(16).remainder(7).repeat(2, 1)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "window, dilation, seen_by_the_last", [(None, None, {0, 1, 2, 3, 4, 5}), (3, None, {3, 4, 5}), (2, 3, {2, 5})]
)
def test_what_a_query_sees(window: int | None, dilation: int | None, seen_by_the_last: set[int]) -> None:
    row = MaskPattern(window, dilation).sees(5, torch.arange(6))
    assert set(row.nonzero().flatten().tolist()) == seen_by_the_last


@given(specs())
@settings(max_examples=5, deadline=None)
def test_equal_seeds_give_equal_models_and_leave_the_callers_random_numbers_alone(spec: ArchitectureSpec) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = build(spec, seed=3).state_dict()
    assert torch.equal(torch.rand(1), expected)
    second = build(spec, seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
