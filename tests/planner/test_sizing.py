"""Parameters, FLOPs and caches of published models against published counts and arithmetic done by hand here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from planner import ArchitectureSpec, UnsupportedPlan, cache_bytes, flops, size
from tests.planner.published import (
    DEEPSEEK_V3,
    GEMMA_2_2B,
    JAMBA,
    LLAMA_2_7B,
    LLAMA_2_70B,
    MAMBA_2_130M,
    MAMBA_130M,
    MISTRAL_7B,
    MIXTRAL_8X7B,
    PUBLISHED,
    QWEN_2_HALF,
)
from tests.planner.strategies import specs


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_parameters(name: str) -> None:
    spec, expected = PUBLISHED[name]
    assert size(spec).parameters.total == expected


@pytest.mark.parametrize(
    "spec, billions",
    [
        pytest.param(MIXTRAL_8X7B, 13, id="arXiv:2401.04088, table 1"),
        pytest.param(DEEPSEEK_V3, 37, id="arXiv:2412.19437, abstract"),
        pytest.param(JAMBA, 12, id="arXiv:2403.19887, table 1"),
    ],
)
def test_active_parameters_are_those_of_the_papers(spec: ArchitectureSpec, billions: int) -> None:
    assert size(spec).parameters.active == pytest.approx(billions * 1e9, rel=0.02)


def test_mixtral_is_active_by_two_of_eight_experts() -> None:
    h, f, layers = 4096, 14_336, 32
    attention = h * 4096 + 2 * h * 1024 + 4096 * h
    by_hand = 2 * 32_000 * h + h + layers * (attention + 8 * h + 2 * 3 * h * f + 2 * h)
    assert size(MIXTRAL_8X7B).parameters.active == by_hand


@settings(max_examples=40, deadline=None)
@given(spec=specs())
def test_totals_are_the_sums_of_the_tensors(spec: ArchitectureSpec) -> None:
    sized = size(spec)
    assert sum(tensor.count for tensor in sized.tensors) == sized.parameters.total
    assert sum(sized.parameters.by_component.values()) == sized.parameters.total
    assert 0 < sized.parameters.active <= sized.parameters.total
    names = [tensor.name for tensor in sized.tensors]
    assert len(set(names)) == len(names)


def test_a_tied_matrix_is_counted_once() -> None:
    untied = QWEN_2_HALF.model_copy(update={"tie_word_embeddings": False})
    assert size(untied).parameters.total - size(QWEN_2_HALF).parameters.total == 151_936 * 896


def test_a_buffer_is_no_parameter() -> None:
    """DeepSeek-V3's biases of the router: 256 in each of 58 layers."""
    assert sum(buffer.count for buffer in size(DEEPSEEK_V3).buffers) == 58 * 256


def test_flops_of_llama_by_hand() -> None:
    """Two FLOPs a weight of every matrix and token, and two squares of scores a layer."""
    length, h, f, layers = 4096, 4096, 11_008, 32
    matrices = layers * (4 * h * h + 3 * h * f) + 32_000 * h
    squares = layers * 2 * (2 * length * length * h)
    counted = flops(LLAMA_2_7B, length)
    assert counted.total == 2 * length * matrices + squares
    # The mask leaves T (T + 1) / 2 of T² pairs.
    assert counted.needed_total == 2 * length * matrices + squares * (length + 1) // (2 * length)
    assert flops(LLAMA_2_7B, length, training=True).total == 3 * counted.total
    assert flops(LLAMA_2_7B, length, batch_size=3).total == 3 * counted.total
    assert sum(counted.by_component.values()) == counted.total


def test_a_window_saves_needed_flops_alone() -> None:
    windowed = flops(MISTRAL_7B, 32_768)
    layer = MISTRAL_7B.layer_groups[0].layers[0]
    everything = MISTRAL_7B.model_copy(
        update={
            "layer_groups": (
                MISTRAL_7B.layer_groups[0].model_copy(
                    update={
                        "layers": (
                            layer.model_copy(
                                update={
                                    "sequence_mixer": layer.sequence_mixer.model_copy(update={"sliding_window": None})
                                }
                            ),
                        )
                    }
                ),
            )
        }
    )
    whole = flops(everything, 32_768)
    assert windowed.total == whole.total
    assert windowed.needed_total < whole.needed_total


@pytest.mark.parametrize(
    "spec, context, by_hand",
    [
        # keys and values × layers × KV heads × head size × tokens × bytes
        pytest.param(LLAMA_2_7B, 4096, 2 * 32 * 32 * 128 * 4096 * 2, id="multi-head"),
        pytest.param(LLAMA_2_70B, 4096, 2 * 80 * 8 * 128 * 4096 * 2, id="grouped-query"),
        pytest.param(MISTRAL_7B, 32_768, 2 * 32 * 8 * 128 * 4096 * 2, id="window"),
        pytest.param(GEMMA_2_2B, 8192, 2 * 13 * 4 * 256 * (4096 + 8192) * 2, id="window every other layer"),
        # DeepSeek-V3 keeps 512 + 64 numbers a token and layer (arXiv:2412.19437, section 2.1.1).
        pytest.param(DEEPSEEK_V3, 1000, 61 * (512 + 64) * 1000 * 2, id="latent"),
        pytest.param(MAMBA_130M, 10**6, 24 * 1536 * (16 + 4) * 2, id="state, whatever the context"),
        pytest.param(MAMBA_2_130M, 10**6, 24 * (24 * 64 * 128 + (1536 + 2 * 128) * 4) * 2, id="state of heads"),
        pytest.param(JAMBA, 4096, 4 * (2 * 8 * 128 * 4096 + 7 * 8192 * (16 + 4)) * 2, id="hybrid"),
    ],
)
def test_cache_by_hand(spec: ArchitectureSpec, context: int, by_hand: int) -> None:
    assert cache_bytes(spec, context) == by_hand
    assert cache_bytes(spec, context, batch_size=7) == 7 * by_hand
    assert cache_bytes(spec, context, dtype="fp32") == 2 * by_hand


def test_a_dilated_window_keeps_what_it_spans() -> None:
    """Four keys, three apart, reach back over ten positions."""
    layer = LLAMA_2_7B.layer_groups[0].layers[0]
    mixer = layer.sequence_mixer.model_copy(update={"sliding_window": 4, "dilation": 3})
    group = LLAMA_2_7B.layer_groups[0].model_copy(
        update={"layers": (layer.model_copy(update={"sequence_mixer": mixer}),)}
    )
    spec = LLAMA_2_7B.model_copy(update={"layer_groups": (group,)})
    assert cache_bytes(spec, 1000) == cache_bytes(LLAMA_2_7B, 10)


def test_an_unknown_cache_type_names_the_field() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        cache_bytes(LLAMA_2_7B, 10, dtype="int3")
    assert caught.value.path == "cache_dtype"
    assert "bf16" in caught.value.remedy
