"""What is exported is what would be imported, and the rest is refused."""

from __future__ import annotations

import pytest

from planner import ArchitectureSpec, UnsupportedArchitecture, from_huggingface, to_huggingface
from tests.planner.published import (
    DEEPSEEK_V3,
    GPT_2,
    JAMBA,
    LLAMA_2_7B,
    LLAMA_2_70B,
    MAMBA_130M,
    MISTRAL_7B,
    MIXTRAL_8X7B,
    QWEN_2_HALF,
)


@pytest.mark.parametrize(
    "spec, family",
    [
        (LLAMA_2_7B, "llama"),
        (LLAMA_2_70B, "llama"),
        (MISTRAL_7B, "mistral"),
        (MIXTRAL_8X7B, "mixtral"),
        (QWEN_2_HALF, "qwen2"),
    ],
    ids=lambda value: value.name if isinstance(value, ArchitectureSpec) else value,
)
def test_there_and_back(spec: ArchitectureSpec, family: str) -> None:
    config = to_huggingface(spec)
    assert config["model_type"] == family
    assert from_huggingface(config).content_hash() == spec.content_hash()


@pytest.mark.parametrize("spec", [GPT_2, DEEPSEEK_V3, JAMBA, MAMBA_130M], ids=lambda spec: spec.name)
def test_what_cannot_be_said_is_refused(spec: ArchitectureSpec) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        to_huggingface(spec)
    assert caught.value.remedy


def test_transformers_reads_it() -> None:
    transformers = pytest.importorskip("transformers")
    config = to_huggingface(LLAMA_2_70B)
    read = transformers.AutoConfig.for_model(**config)
    assert (read.num_key_value_heads, read.intermediate_size) == (8, 28_672)
