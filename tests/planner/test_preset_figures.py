"""Figures that papers and model cards state of presets besides the total: active parameters, parts, and the cache.

Whoever states active parameters chooses what to count: ``all``: the embedding and the head too; ``head``: the head, but
not an embedding that is only looked up; ``layers``: neither.
"""

from __future__ import annotations

from typing import Literal

import pytest

from planner import cache_bytes, load, size
from planner.presets import PRESETS, preset, preset_ids, read_yaml
from tests.planner.test_presets import agrees

Counted = Literal["all", "head", "layers"]


def without_embeddings(active: bool, name: str) -> int:
    """Parameters besides the matrices of the embedding and the head, of learned positions too."""
    spec = load(name)
    counts = size(spec).parameters
    total = counts.active if active else counts.total
    outer = [tensor for tensor in size(spec).tensors if not tensor.name.startswith("layers.")]
    matrices = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight")
    return total - sum(tensor.count for tensor in outer if tensor.name in matrices)


ACTIVE: dict[str, Counted] = {
    # arXiv:2405.04434, abstract (21 B) and appendix B (2.4 B).
    "deepseek-v2": "head",
    "deepseek-v2-lite": "head",
    # README_WEIGHTS.md of deepseek-ai/DeepSeek-V3: 36.6 B, including 0.9 B for the output head.
    "deepseek-v3": "head",
    # Their model cards: 14 B of 142 B; 1.5 B of 8.3 B.
    "dots.llm1": "all",
    "lfm2-8b-a1b": "all",
    # Granite 4.0's model card: 32 B, 9 B active.
    "granite-4.0-h-small": "all",
    # arXiv:2508.06471, table 1, which counts neither word embeddings nor the output layer.
    "glm-4.5-air": "layers",
    # arXiv:2508.10925, table 1: unembedding parameters are counted as active, but not embeddings.
    "gpt-oss-120b": "head",
    "gpt-oss-20b": "head",
    # arXiv:2403.19887, table 1: 12 B of 52 B.
    "jamba-v0.1": "all",
    # arXiv:2507.20534, abstract: 32 B activated of 1 T.
    "kimi-k2": "head",
    # Llama 4's model card: 17 B activated of 109 B.
    "llama-4-scout": "all",
    # arXiv:2501.08313, abstract: 45.9 B activated of 456 B, which is what the layers have.
    "minimax-text-01": "layers",
    # mistral.ai/news/mixtral-of-experts: 12.9 B of 46.7 B; mistral.ai/news/mixtral-8x22b: 39 B of 141 B.
    "mixtral-8x7b": "all",
    "mixtral-8x22b": "all",
    # arXiv:2409.02060, abstract and table 1: 1.3 B of 6.9 B.
    "olmoe-1b-7b": "all",
    # The model cards of the Qwen models: 2.7 B of 14.3 B; 14 B of 57.41 B; 3.3 B of 30.5 B; 22 B of 235 B. That of
    # Qwen3-Next (3 B of 80 B) does not say what it counts; what rounds to 3 B is without embedding and head.
    "qwen1.5-moe-a2.7b": "all",
    "qwen2-57b-a14b": "all",
    "qwen3-30b-a3b": "all",
    "qwen3-235b-a22b": "all",
    "qwen3-next-80b-a3b": "layers",
}


def test_every_published_active_count_has_its_definition() -> None:
    assert set(ACTIVE) == {name for name in preset_ids() if preset(name).published_active}


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_the_published_ones(name: str) -> None:
    counts = size(load(name)).parameters
    found = {
        "all": counts.active,
        "head": counts.active_without_embedding,
        "layers": without_embeddings(True, name),
    }[ACTIVE[name]]
    assert agrees(found, preset(name).published_active or "")


WITHOUT_EMBEDDINGS = {
    # The model card of bigscience/bloom: 3,596,615,680 of 176,247,271,424 parameters are embedding parameters.
    "bloom-176b": "172,650,655,744",
    # The model cards of the Pythia suite, from its table of exact counts.
    "pythia-6.9b": "6,444,163,072",
    # arXiv:2403.08295, table 2; arXiv:2408.00118, table 2; arXiv:2503.19786, table 1.
    "gemma-7b": "7,751,248,896",
    "gemma-2-2b": "2,024,517,888",
    "gemma-2-9b": "8,324,201,984",
    "gemma-3-4b": "3,209 M",
    # The model cards of the Qwen models: "number of parameters (non-embedding)".
    "qwen2-57b-a14b": "56.32 B",
    "qwen2.5-7b": "6.53 B",
    "qwen3-8b": "6.95 B",
    "qwen3-30b-a3b": "29.9 B",
    "qwen3-235b-a22b": "234 B",
    "qwen3-next-80b-a3b": "79 B",
    # arXiv:2404.07839, table 1.
    "recurrentgemma-2b": "2.0 B",
}


@pytest.mark.parametrize("name", WITHOUT_EMBEDDINGS)
def test_parameters_besides_embeddings_are_the_published_ones(name: str) -> None:
    assert agrees(without_embeddings(False, name), WITHOUT_EMBEDDINGS[name])


@pytest.mark.parametrize(
    "name, expected",
    [
        # "Insights into DeepSeek-V3", arXiv:2505.09343, table 1: kilobytes a token in bf16.
        ("deepseek-v3", 70_272),
        ("qwen2.5-72b", 327_680),
        ("llama-3.1-405b", 516_096),
        # Jamba, arXiv:2403.19887, table 1: gigabytes at 256 thousand tokens in 16 bits, of keys and values.
        ("llama-2-7b", 128 * 2**30 / 2**18),
        ("mixtral-8x7b", 32 * 2**30 / 2**18),
        ("jamba-v0.1", 4 * 2**30 / 2**18),
    ],
)
def test_the_cache_of_one_more_token_is_the_published_one(name: str, expected: float) -> None:
    """While no window is full; a state does not grow."""
    spec = load(name)
    assert cache_bytes(spec, 2) - cache_bytes(spec, 1) == expected


n = 32_768
"""Tokens of the context below."""


def kv(heads: int, head_dim: int, tokens: int = n) -> int:
    """Elements of keys and values in a layer: Shazeer 2019, arXiv:1911.02150; Ainslie et al. 2023, arXiv:2305.13245."""
    return 2 * heads * head_dim * tokens


def latent(compressed: int, rotated: int) -> int:
    """Elements of a latent and a rotated key: DeepSeek-V2, arXiv:2405.04434, table 1."""
    return (compressed + rotated) * n


def mamba(inner: int, state: int, kernel: int = 4) -> int:
    """Elements of state and convolution window: Gu & Dao 2023, arXiv:2312.00752, section 3.4 (D channels of N)."""
    return inner * state + inner * kernel


def ssd(heads: int, head_dim: int, state: int, groups: int, kernel: int = 4) -> int:
    """Elements of state and convolution window, which holds x, B and C: Dao & Gu 2024, arXiv:2405.21060, section 7."""
    return heads * head_dim * state + (heads * head_dim + 2 * groups * state) * kernel


def delta(key_heads: int, value_heads: int, head_dim: int, kernel: int = 4) -> int:
    """Elements of a matrix a value head and of the convolution window: Yang et al. 2024, arXiv:2412.06464."""
    return value_heads * head_dim**2 + (2 * key_heads + value_heads) * head_dim * kernel


def griffin(width: int, kernel: int = 4) -> int:
    """Elements of state and convolution window: De et al. 2024, arXiv:2402.19427, section 2.4."""
    return width + width * kernel


def lightning(heads: int, head_dim: int) -> int:
    """Elements of the sum of outer products of keys and values: Qin et al. 2024, arXiv:2401.04658."""
    return heads * head_dim**2


def rwkv(width: int) -> int:
    """Elements of the last input of both mixes, and of numerator, denominator and largest exponent of the time mix.

    Peng et al. 2023, arXiv:2305.13048, appendix on inference.
    """
    return 5 * width


ELEMENTS = {
    "bamba-9b": 3 * kv(8, 128) + 29 * ssd(128, 64, 128, 1),
    "bloom-176b": 70 * kv(112, 128),
    "command-r": 40 * kv(64, 128),
    "command-r7b": 8 * kv(8, 128) + 24 * kv(8, 128, 4096),  # every fourth layer sees everything
    "deepseek-v2": 60 * latent(512, 64),
    "deepseek-v2-lite": 27 * latent(512, 64),
    "deepseek-v3": 61 * latent(512, 64),
    "dots.llm1": 62 * kv(32, 128),
    "falcon-7b": 32 * kv(1, 64),
    "falcon-h1-7b": 44 * (kv(2, 128) + ssd(24, 128, 256, 1)),
    "falcon-mamba-7b": 64 * mamba(8192, 16),
    "gemma-2-2b": 13 * kv(4, 256) + 13 * kv(4, 256, 4096),
    "gemma-2-9b": 21 * kv(8, 256) + 21 * kv(8, 256, 4096),
    "gemma-3-4b": 5 * kv(4, 256) + 29 * kv(4, 256, 1024),  # five local layers to one global, of 34
    "gemma-7b": 28 * kv(16, 256),
    "glm-4-9b": 40 * kv(2, 128),
    "glm-4.5-air": 46 * kv(8, 128),
    "gpt-j-6b": 28 * kv(16, 256),
    "gpt-neox-20b": 44 * kv(64, 96),
    "gpt-oss-120b": 18 * kv(8, 64) + 18 * kv(8, 64, 128),
    "gpt-oss-20b": 12 * kv(8, 64) + 12 * kv(8, 64, 128),
    "gpt2": 12 * kv(12, 64),
    "gpt2-xl": 48 * kv(25, 64),
    "granite-3.1-8b": 40 * kv(8, 128),
    "granite-4.0-h-small": 4 * kv(8, 128) + 36 * ssd(128, 64, 128, 1),
    "jamba-v0.1": 4 * kv(8, 128) + 28 * mamba(8192, 16),
    "kimi-k2": 61 * latent(512, 64),
    "kimi-linear-48b-a3b": 7 * latent(512, 64) + 20 * delta(32, 32, 128),
    "lfm2-1.2b": 6 * kv(8, 64) + 10 * 2048 * 3,  # the inputs of a convolution over three tokens
    "lfm2-8b-a1b": 6 * kv(8, 64) + 18 * 2048 * 3,
    "llama-2-7b": 32 * kv(32, 128),
    "llama-3-8b": 32 * kv(8, 128),
    "llama-3.1-405b": 126 * kv(8, 128),
    "llama-3.1-70b": 80 * kv(8, 128),
    "llama-3.2-1b": 16 * kv(8, 64),
    "llama-4-scout": 12 * kv(8, 128) + 36 * kv(8, 128, 8192),  # three layers in chunks to one that sees everything
    "mamba-2.8b": 64 * mamba(5120, 16),
    "mamba2-2.7b": 64 * ssd(80, 64, 128, 1),
    "minimax-text-01": 10 * kv(8, 128) + 70 * lightning(64, 128),
    "mistral-7b": 32 * kv(8, 128, 4096),
    "mistral-small-24b": 40 * kv(8, 128),
    "mixtral-8x22b": 56 * kv(8, 128),
    "mixtral-8x7b": 32 * kv(8, 128),
    "mpt-7b": 32 * kv(32, 128),
    "nemotron-h-8b": 4 * kv(8, 128) + 24 * ssd(128, 64, 128, 8),
    "olmo-2-7b": 32 * kv(32, 128),
    "olmo-3-7b": 8 * kv(32, 128) + 24 * kv(32, 128, 4096),
    "olmoe-1b-7b": 16 * kv(16, 128),
    "opt-6.7b": 32 * kv(32, 128),
    "phi-2": 32 * kv(32, 80),
    "phi-3-mini": 32 * kv(32, 96, 2047),
    "pythia-6.9b": 32 * kv(32, 128),
    "qwen1.5-moe-a2.7b": 24 * kv(16, 128),
    "qwen2-57b-a14b": 28 * kv(4, 128),
    "qwen2.5-72b": 80 * kv(8, 128),
    "qwen2.5-7b": 28 * kv(4, 128),
    "qwen3-235b-a22b": 94 * kv(4, 128),
    "qwen3-30b-a3b": 48 * kv(4, 128),
    "qwen3-8b": 36 * kv(8, 128),
    "qwen3-next-80b-a3b": 12 * kv(2, 256) + 36 * delta(16, 32, 128),
    "recurrentgemma-2b": 8 * kv(1, 256, 2048) + 18 * griffin(2560),
    "rwkv-4-7b": 32 * rwkv(4096),
    "smollm3-3b": 36 * kv(4, 128),
    "stablelm-2-1.6b": 24 * kv(32, 64),
    "starcoder2-3b": 30 * kv(2, 128, 4096),
}
"""Cached elements of one sequence of ``n`` tokens, layer by layer from the numbers of each model's card or paper."""


def test_every_known_model_has_its_cache_calculated() -> None:
    known = {name for name in preset_ids() if "config" in read_yaml((PRESETS / f"{name}.yaml").read_text())}
    assert set(ELEMENTS) == known


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_cache_is_that_of_the_papers_formula(name: str) -> None:
    assert cache_bytes(load(name), n) == 2 * ELEMENTS[name]
