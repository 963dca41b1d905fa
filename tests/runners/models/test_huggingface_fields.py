"""Fields whose other values once changed transformers' logits and not ours: each is the same now, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runners.models import load_huggingface
from tests.runners.models.test_huggingface import CONFIGS, transformers_model

SAME: list[tuple[str, dict[str, Any]]] = [
    ("cohere2", {}),  # the rotary base of a file that has none
    ("bloom", {"pretraining_tp": 2}),
    ("deepseek_v3", {"num_nextn_predict_layers": "none"}),
]
"""Families with changes of their small configuration, as a file says them: without what transformers adds."""
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "slow_but_exact"),
]


@pytest.mark.parametrize("model_type, changes", SAME)
def test_logits_are_those_of_transformers(model_type: str, changes: dict[str, Any]) -> None:
    theirs = transformers_model(model_type, **changes)
    ours = load_huggingface(theirs.state_dict(), {"model_type": model_type, **CONFIGS[model_type], **changes})
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type, changes, field", REFUSED)
def test_what_no_specification_says_is_refused_by_name(model_type: str, changes: dict[str, Any], field: str) -> None:
    theirs = transformers_model(model_type, **changes)
    with pytest.raises(ValueError, match=field):
        load_huggingface(theirs.state_dict(), {"model_type": model_type, **CONFIGS[model_type], **changes})
    plain = transformers_model(model_type)
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():  # the refusal is for a reason
        assert not torch.allclose(plain(input_ids=tokens).logits, theirs(input_ids=tokens).logits, rtol=1e-3)
