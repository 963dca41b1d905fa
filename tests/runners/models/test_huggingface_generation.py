"""Tokens that ours and transformers generate with the same weights and a cache, greedily: 64 are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runners.models import load_huggingface
from tests.runners.models.test_huggingface import CONFIGS, transformers_model

NEW_TOKENS = 64
ROWS = 16
"""So many that one of them has no near-tie in all its tokens, whatever rounding does to the others."""
CERTAIN = 1e-3
"""Lead of the likeliest token over the second, in logits, that rounding never turns round."""
GENERATING: dict[str, dict[str, Any]] = {
    # transformers' step of one token knows nothing of the limits of time steps that its scan keeps.
    "bamba": {"time_step_limit": (0.0, float("inf"))},
    "mamba2": {"time_step_limit": (0.0, float("inf"))},
    "nemotron_h": {"time_step_min": 1e-9},
    # With a window transformers generates other tokens with its cache than without.
    "minimax": {"sliding_window": None},
}
"""Fields without which transformers' own generation with a cache is not what it is without one."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_greedy_generation_is_that_of_transformers(model_type: str) -> None:
    theirs = transformers_model(model_type, **GENERATING.get(model_type, {}))
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    tokens = torch.randint(3, 96, (ROWS, 9))
    theirs.config.vision_start_token_id = 0  # Qwen's Omni looks for pictures, and only the whole assistant names it
    theirs.generation_config.eos_token_id = None  # neither stops early
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    assert expected.shape == (ROWS, 9 + NEW_TOKENS)
    found = ours.generate(tokens, NEW_TOKENS)
    # What each token is chosen from, read at once and without a cache: both must have taken the likeliest.
    likeliest = ours(expected[:, :-1]).logits[:, 8:].topk(2).values
    certain = (likeliest[..., 0] - likeliest[..., 1] > CERTAIN).cumprod(1).bool()  # after a tie texts may differ
    assert certain.all(1).any()
    assert torch.equal(found[:, 9:][certain], expected[:, 9:][certain])
    assert torch.equal(ours(expected[:, :-1]).logits[:, 8:].argmax(-1)[certain], expected[:, 9:][certain])
