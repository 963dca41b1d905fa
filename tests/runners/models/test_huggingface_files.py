"""Folders in the published format: what transformers writes is read, and what is written is read by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.auto import modeling_auto

from runners.models import Decoder, load_huggingface, save_huggingface
from runners.models.huggingface import COMPUTED
from tests.runners.models.test_huggingface import CONFIGS, transformers_model

ALONE = [name for name in CONFIGS if name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
"""Families whose language model is a model of its own in transformers."""


def written(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    """Those of a model of either kind."""
    found: Tensor = (
        model(tokens).logits if isinstance(model, Decoder) else model(input_ids=tokens, use_cache=False).logits
    )
    return found


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_folder_that_transformers_wrote_is_read(model_type: str, tmp_path: Path) -> None:
    theirs = transformers_model(model_type, initializer_range=0.1)
    theirs.save_pretrained(tmp_path)
    ours = load_huggingface(tmp_path)
    tokens = torch.randint(3, 96, (2, 21))
    torch.testing.assert_close(logits(ours, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ALONE)
def test_a_folder_is_written_as_transformers_writes_it(model_type: str, tmp_path: Path) -> None:
    # transformers cuts joined convolutions into equal parts, and so writes three of one width as they were.
    changes = {"linear_num_value_heads": 2, "linear_value_head_dim": 6} if model_type == "olmo_hybrid" else {}
    theirs = transformers_model(model_type, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    save_huggingface(ours, tmp_path / "ours", config=theirs.config.to_dict())
    expected, found = written(tmp_path / "theirs"), written(tmp_path / "ours")
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith(COMPUTED)}
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
