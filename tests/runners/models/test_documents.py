"""Documents packed into one sequence, against each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner import parse_spec
from runners.models import build
from tests.planner.strategies import mask_fields

ATTENTION = {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LATENT = {
    "kind": "latent_attention",
    "num_attention_heads": 2,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
MLP = {"kind": "mlp", "intermediate_size": 16}


def model_of(*mixers: dict[str, Any], positions: dict[str, Any], **options: Any) -> Any:
    layers = [{"sequence_mixer": mixer, "channel_mixer": MLP} for mixer in mixers]
    data = {"vocab_size": 24, "hidden_size": 16, "positions": positions, "layer_groups": [{"layers": layers}]}
    return build(parse_spec(data), dtype=torch.float64, **options)


def tokens_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Two sequences of documents of these lengths, the second with the lengths turned round; ids and document ids."""
    tokens = torch.randint(24, (2, sum(lengths)), generator=torch.Generator().manual_seed(1))
    rows = [
        [number % 2 for number, length in enumerate(order) for _ in range(length)] for order in (lengths, lengths[::-1])
    ]
    return tokens, torch.tensor(rows)


@given(
    fields=mask_fields(8),
    positions=st.sampled_from([{"kind": "rotary"}, {"kind": "learned", "num_positions": 9}, {"kind": "alibi"}]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    kernels=st.sampled_from(["reference", "eager", "block_sparse"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_document_is_read_as_if_it_stood_alone(
    fields: dict[str, int], positions: dict[str, Any], lengths: list[int], kernels: str
) -> None:
    mixers = [{**ATTENTION, **fields}, {**ATTENTION, **fields, "sinks": True}]
    if positions["kind"] == "rotary":
        mixers.append(LATENT)
    model = model_of(*mixers, positions=positions, kernels=kernels)
    tokens, ids = tokens_of(lengths)
    packed = model(tokens, labels=tokens, document_ids=ids)
    losses, counts, gradients = [], [], []
    for row, order in enumerate((lengths, lengths[::-1])):
        start = 0
        for length in order:
            document = tokens[row : row + 1, start : start + length]
            alone = model(document, labels=document if length > 1 else None)
            torch.testing.assert_close(
                packed.logits[row, start : start + length], alone.logits[0], rtol=1e-9, atol=1e-10
            )
            if length > 1:
                losses.append(alone.loss * (length - 1))
                counts.append(length - 1)
            start += length
    if counts:
        mean = torch.stack(losses).sum() / sum(counts)
        torch.testing.assert_close(packed.loss, mean, rtol=1e-9, atol=1e-10)
        for loss in (packed.loss, mean):
            gradients.append(torch.autograd.grad(loss, model.embed_tokens.weight, retain_graph=True)[0])
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


def test_what_carries_a_state_is_refused() -> None:
    mamba = {"kind": "mamba2", "num_heads": 2, "head_dim": 8, "state_size": 4, "chunk_size": 4}
    tokens, ids = tokens_of([3, 4])
    with pytest.raises(ValueError, match="Mamba2 carries a state"):
        model_of(ATTENTION, mamba, positions={"kind": "rotary"})(tokens, document_ids=ids)
    # One document or several: without their ids the sequence is one text.
    assert model_of(ATTENTION, mamba, positions={"kind": "rotary"})(tokens).logits.shape == (2, 7, 24)


def test_lengths_and_caches_that_do_not_go_with_documents_are_refused() -> None:
    tokens, ids = tokens_of([3, 4])
    scaling = {"kind": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4}
    with pytest.raises(ValueError, match="depends on the length"):
        model_of(ATTENTION, positions={"kind": "rotary", "scaling": scaling})(tokens, document_ids=ids)
    with pytest.raises(ValueError, match="reads 3 positions, not 4"):
        model_of(ATTENTION, positions={"kind": "learned", "num_positions": 3})(tokens, document_ids=ids)
    model = model_of(ATTENTION, positions={"kind": "rotary"})
    with pytest.raises(ValueError, match="one document a sequence"):
        model(tokens, cache=model.new_cache(2, 7), document_ids=ids)
