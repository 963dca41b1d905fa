"""Masks of every pattern in the models: by blocks against a dense reference, generated against read at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner import cache_bytes, parse_spec
from planner.components import Attention
from planner.components.patterns import CAUSAL, MaskPattern
from runners.models import build
from runners.models.block_sparse import block_sparse_attention, takes_blocks
from tests.planner.strategies import mask_fields
from tests.planner.test_patterns import is_seen

LENGTH = 29
HEADS = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
DRAWN = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
KINDS: list[dict[str, Any]] = [
    {},
    {"sliding_window": 5},
    {"sliding_window": 4, "dilation": 3},
    {"sliding_window": 4, "global_tokens": 3},
    {"sliding_window": 3, "dilation": 2, "global_tokens": 2},
    {"attention_chunk_size": 6},
    {"attention_chunk_size": 4, "previous_chunks": 2},
    {"attention_chunk_size": 5, "chunk_summaries": 2},
    {"attention_chunk_size": 5, "chunk_summaries": 1, "previous_chunks": 1, "global_tokens": 7},
    {"stride": 4},
    {"sliding_window": 4, "stride": 5, "global_tokens": 2},
    {"block_size": 4, "block_offsets": (1, 3)},
    {"block_size": 3, "block_offsets": (2,), "random_blocks": 2, "random_seed": 5, "global_tokens": 4},
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(query: Tensor, key: Tensor, value: Tensor, layer: Attention, scale: float) -> Tensor:
    """The whole square in float64, behind a mask that is written out pair by pair."""
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    seen = torch.tensor([[is_seen(layer, i, j) for j in range(length)] for i in range(length)])
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    return torch.softmax(scores, -1) @ value


@given(
    fields=mask_fields(12), block=st.integers(1, 12), length=st.integers(1, LENGTH), value_dim=st.sampled_from([8, 5])
)
@DRAWN
def test_blocks_give_what_the_whole_square_gives_and_its_gradients(
    fields: dict[str, Any], block: int, length: int, value_dim: int
) -> None:
    layer = Attention.model_validate({**HEADS, **fields})
    inputs = [drawn(2, 4, length, 8, seed=1), drawn(2, 2, length, 8, seed=2), drawn(2, 2, length, value_dim, seed=3)]
    weights = drawn(2, 4, length, value_dim, seed=4)
    found = []
    for compute in (
        lambda q, k, v: dense(q, k, v, layer, 0.3),
        lambda q, k, v: block_sparse_attention(q, k, v, layer.pattern, 0.3, block),
    ):
        parts = [part.clone().requires_grad_() for part in inputs]
        mixed = compute(*parts)
        found.append([mixed, *torch.autograd.grad((mixed * weights).sum(), parts)])
    for expected, computed in zip(*found, strict=True):
        torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-10)


def test_blocks_without_a_pair_are_left_out() -> None:
    """Keys of NaN in a block that no query sees would spoil any product that they took part in."""
    query, key, value = (drawn(1, 2, 64, 8, seed=seed) for seed in range(3))
    whole = block_sparse_attention(query, key, value, MaskPattern(sliding_window=8), 0.3, 8)
    for spoiled in (key, value):
        spoiled[:, :, :16] = float("nan")
    mixed = block_sparse_attention(query, key, value, MaskPattern(sliding_window=8), 0.3, 8)
    assert torch.equal(mixed[:, :, 24:], whole[:, :, 24:])
    assert mixed[:, :, 8:16].isnan().all()


def test_blocks_take_whole_sequences_alone() -> None:
    query, key = drawn(1, 2, 3, 8), drawn(1, 2, 5, 8)
    with pytest.raises(ValueError, match="3 queries, 5 keys"):
        block_sparse_attention(query, key, key, MaskPattern(2), 1.0)
    assert not takes_blocks("block_sparse", MaskPattern(2), query, key)
    assert not takes_blocks("block_sparse", CAUSAL, key, key)
    assert not takes_blocks("eager", MaskPattern(2), key, key)
    assert takes_blocks("block_sparse", MaskPattern(2), key, key)


def model_of(*fields: dict[str, Any], positions: str = "rotary") -> Any:
    layers = [{"sequence_mixer": {**HEADS, **each}} for each in fields]
    return parse_spec(
        {"vocab_size": 24, "hidden_size": 16, "positions": {"kind": positions}, "layer_groups": [{"layers": layers}]}
    )


def test_a_model_by_blocks_is_the_model_of_the_whole_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_sparse_attention, "__defaults__", (4,))
    spec = model_of(*KINDS, {"sliding_window": 4, "sinks": True})
    tokens = torch.randint(24, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    models = [build(spec, dtype=torch.float64, kernels=kernels) for kernels in ("reference", "block_sparse")]
    outputs = [model(tokens, labels=tokens) for model in models]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-10, atol=1e-10)
    for output in outputs:
        output.loss.backward()
    for plain, by_blocks in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(by_blocks.grad, plain.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kernels", ["reference", "eager", "block_sparse"])
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_what_is_generated_is_what_is_read_at_once(fields: dict[str, Any], positions: str, kernels: Any) -> None:
    """With the cache that the planner counts, however the text is cut."""
    spec = model_of(fields, {**fields, "shares_key_values": True}, positions=positions)
    model = build(spec, dtype=torch.float64, kernels=kernels)
    tokens = torch.randint(24, (2, LENGTH), generator=torch.Generator().manual_seed(6))
    whole = model(tokens).logits
    for reads in ([LENGTH], [1] * LENGTH, [7, 1, 1, 9, 1, 10]):
        cache, start, parts = model.new_cache(2, LENGTH), 0, []
        assert cache.bytes == cache_bytes(spec, LENGTH, 2, "fp32") * 2  # float64
        for length in reads:
            parts.append(model(tokens[:, start : start + length], cache=cache).logits)
            start += length
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)
