"""A mask's picture and numbers, against countings by hand."""

from __future__ import annotations

import pytest

from planner import load
from planner.components import Mamba2
from planner.components.patterns import CAUSAL, MaskPattern
from planner.mask_view import LONGEST_REACH, mask_view, pattern_of


def test_a_windows_numbers_by_hand() -> None:
    spec = load("mistral-7b")
    pattern = pattern_of(spec.layer_groups[0].layers[0].sequence_mixer)  # type: ignore[arg-type]
    assert pattern == MaskPattern(sliding_window=4096)
    view = mask_view(spec, pattern, 8192, 32_768)
    assert view.pairs == 8192 * 4096 - 4096 * 4095 // 2
    assert view.density == view.pairs / 8192**2
    assert view.kept == 4096
    # A window sees 4,095 positions further back a layer, until the sequence begins.
    assert view.reach == ((1, 4096), (2, 8191), (4, 8192), (8, 8192), (16, 8192), (32, 8192))
    # 64 rows of blocks of 128: 33 blocks at most, and one to 32 in the first rows.
    assert view.block_density == pytest.approx((33 * 32 + 32 * 33 / 2) / 64**2, abs=1e-12)
    assert (view.picture.block_size, view.picture.some.shape) == (128, (64, 64))


def test_short_and_long_sequences_have_a_picture_too() -> None:
    spec = load("llama-3.2-1b")
    view = mask_view(spec, CAUSAL, 1, 1)
    assert (view.pairs, view.density, view.kept, view.picture.some.tolist()) == (1, 1.0, 1, [[True]])
    assert mask_view(spec, CAUSAL, 5, 8).picture.every.sum() == 15  # a cell is a query and a key
    view = mask_view(spec, MaskPattern(sliding_window=16), 2**20, 2**20)
    assert view.block_density is None
    assert view.reach_length == LONGEST_REACH
    assert view.picture.some.sum() == 64 + 63  # the diagonal, and the corner that the window leans over
    assert view.pairs == 16 * 2**20 - 15 * 16 // 2


def test_mixers_without_scores_have_no_mask() -> None:
    assert pattern_of(Mamba2(num_heads=2, head_dim=8, state_size=8)) is None
    parallel = load("falcon-h1-7b").layer_groups[0].layers[0].sequence_mixer
    assert parallel is not None
    assert pattern_of(parallel) == CAUSAL
    latent = load("deepseek-v3").layer_groups[0].layers[0].sequence_mixer
    assert latent is not None
    assert pattern_of(latent) == CAUSAL
