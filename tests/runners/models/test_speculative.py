"""Speculative decoding: the target's own text and distribution, whatever the layers keep, and fewer of its passes."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from planner import ArchitectureSpec, UnsupportedPlan, parse_spec
from runners.models import Decoder, Sampling, Speculation, build
from runners.models.generation import sampling_distribution
from tests.runners.models.specs import specs

ATTENTION = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
WINDOW = {**ATTENTION, "sliding_window": 3}
STATE = {
    "kind": "mamba2",
    "num_heads": 2,
    "head_dim": 4,
    "state_size": 4,
    "n_groups": 1,
    "conv_kernel": 2,
    "chunk_size": 8,
}


def spec_of(*mixers: dict[str, Any], vocab_size: int = 20, **fields: Any) -> ArchitectureSpec:
    layers = [{"sequence_mixer": mixer} for mixer in mixers]
    groups = [{"repeats": 1, "layers": layers}]
    return parse_spec({"vocab_size": vocab_size, "hidden_size": 8, "layer_groups": groups, **fields})


def pair(spec: ArchitectureSpec, noise: float) -> tuple[Decoder, Decoder]:
    """A target that is sure of something, and a draft that differs from it by noise: some proposals are refused."""
    target, draft = build(spec, dtype=torch.float64), build(spec, dtype=torch.float64)
    with torch.no_grad():
        target.embed_tokens.weight.mul_(20)
        if not spec.tie_word_embeddings:
            target.lm_head.weight.mul_(30)
        draft.load_state_dict(target.state_dict())
        generator = torch.Generator().manual_seed(5)
        weight = draft.embed_tokens.weight
        weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return target, draft


def text_of(speculation: Speculation) -> list[int]:
    return [int(token.step.tokens) for token in speculation]


@given(specs(), st.integers(1, 5), st.sampled_from([0.3, 1.0]))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_likeliest_tokens_are_the_targets_own(spec: ArchitectureSpec, draft_tokens: int, noise: float) -> None:
    """Over every mixer, beyond the windows: what is refused leaves no trace in any cache."""
    target, draft = pair(spec, noise)
    prompt = torch.randint(0, spec.vocab_size, (5,), generator=torch.Generator().manual_seed(1))
    expected = target.generate(prompt[None], 14)[0, 5:].tolist()
    assert text_of(Speculation(target, draft, prompt[None], 14, draft_tokens=draft_tokens)) == expected


@given(specs(), st.integers(1, 4), st.permutations([1, 4, 6, 9]))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_row_of_a_batch_is_the_targets_own_text(
    spec: ArchitectureSpec, draft_tokens: int, sizes: list[int]
) -> None:
    """Prompts of four lengths, one of a single token, against reading the whole text anew for every token."""
    target, draft = pair(spec, 0.6)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, spec.vocab_size, (size,), generator=generator) for size in sizes]
    found = Speculation(target, draft, prompts, 11, draft_tokens=draft_tokens).generate()
    for prompt, text in zip(prompts, found, strict=True):
        assert text.tolist() == target.generate(prompt[None], 11, use_cache=False)[0].tolist()


@pytest.mark.parametrize("mixers", [(ATTENTION,), (WINDOW, STATE)])
def test_rows_go_on_apart_and_draw_what_they_would_draw_alone(mixers: tuple[dict[str, Any], ...]) -> None:
    """Rows take differently many proposals: where one has its tokens, others have some to come."""
    target, draft = pair(spec_of(*mixers), 0.8)
    prompts = [torch.tensor([3, 1, 4]), torch.tensor([1]), torch.tensor([5, 9])]
    speculation = Speculation(target, draft, prompts, 20, Sampling(0.9, seed=6), draft_tokens=3)
    tokens = list(speculation)
    for row, prompt in enumerate(prompts):
        alone = Speculation(target, draft, prompt[None], 20, Sampling(0.9, seed=6 + row), draft_tokens=3)
        own = [token for token in tokens if token.row == row]
        assert [int(token.step.tokens) for token in own] == text_of(alone)
        assert [token.is_proposed for token in own] == [token.is_proposed for token in alone]
    taken = [sum(token.is_proposed for token in tokens if token.row == row) for row in range(3)]
    assert len(set(taken)) > 1
    assert 0 < speculation.accepted == sum(taken) < speculation.proposed
    assert speculation.tokens == 60
    assert (speculation.tokens_per_pass or 0) > 3.5  # alone the target would make one behind each prompt


@pytest.mark.parametrize("mixers", [(ATTENTION,), (WINDOW, ATTENTION), (STATE, ATTENTION)])
def test_refusals_and_acceptances_are_both_met_and_counted(mixers: tuple[dict[str, Any], ...]) -> None:
    target, draft = pair(spec_of(*mixers), 1.0)
    prompt = torch.tensor([3, 1, 4])
    speculation = Speculation(target, draft, prompt[None], 40, draft_tokens=3)
    tokens = list(speculation)
    assert [int(token.step.tokens) for token in tokens] == target.generate(prompt[None], 40)[0, 3:].tolist()
    assert speculation.tokens == 40
    assert speculation.accepted == sum(token.is_proposed for token in tokens)
    assert 0 < speculation.accepted < speculation.proposed
    assert speculation.acceptance_rate == speculation.accepted / speculation.proposed
    assert 1 < (speculation.tokens_per_pass or 0) < 4


def test_a_draft_that_is_the_target_is_always_right() -> None:
    """Four tokens a pass: three proposals and the one that the pass itself gives; states are never gone back to."""
    for mixers in ((ATTENTION,), (STATE, WINDOW)):
        target, _ = pair(spec_of(*mixers), 0.0)
        speculation = Speculation(target, target, torch.tensor([[3, 1]]), 40, Sampling(1.0, seed=2), draft_tokens=3)
        assert len(text_of(speculation)) == 40
        assert speculation.acceptance_rate == 1
        assert speculation.tokens_per_pass == 4


def sequence_probabilities(
    target: Decoder, prompt: Tensor, new: int, sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """The probability of every text of ``new`` tokens, by the target's own distributions over the whole text."""
    vocabulary = target.spec.vocab_size
    texts = list(itertools.product(range(vocabulary), repeat=new))
    rows = torch.cat((prompt.expand(len(texts), -1), torch.tensor(texts)), 1)
    with torch.no_grad():
        distributions = sampling_distribution(target(rows).logits[:, len(prompt) - 1 : -1], sampling)
    chosen = distributions.gather(-1, rows[:, len(prompt) :, None])[..., 0]
    return dict(zip(texts, chosen.prod(1).tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mixers", [(ATTENTION,), (STATE,)])
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_k=3, top_p=0.95)])
def test_texts_come_as_often_as_from_the_target_alone(mixers: tuple[dict[str, Any], ...], sampling: Sampling) -> None:
    """Chi-square over all texts of three tokens: right code fails for one choice of seeds in a million."""
    target, draft = pair(spec_of(*mixers, vocab_size=4), 0.8)
    prompt, draws = torch.tensor([1, 3]), 1200
    expected = sequence_probabilities(target, prompt, 3, sampling)
    found: collections.Counter[tuple[int, ...]] = collections.Counter()
    refused, rows = 0, 40
    # Every second row has another prompt, of another length, and is not counted.
    prompts = [prompt, torch.tensor([2, 0, 1, 3, 3])] * rows
    for seed in range(0, 2 * draws, len(prompts)):
        seeded = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed=seed)
        speculation = Speculation(target, draft, prompts, 3, seeded, draft_tokens=2)
        found.update(tuple(text[2:].tolist()) for text in speculation.generate()[::2])
        refused += speculation.proposed - speculation.accepted
    assert found.total() == draws
    assert refused > draws / 10  # else the draft would be the target, and nothing would be tried
    assert all(expected[text] > 0 for text in found)
    # Texts that are expected fewer than five times are counted together, as the test's approximation asks.
    common = [text for text, share in expected.items() if share * draws >= 5]
    counts = [found[text] for text in common]
    shares = [expected[text] * draws for text in common]
    rest = draws - sum(shares)
    if rest > 1e-6:
        counts.append(draws - sum(counts))
        shares.append(rest)
    assert len(shares) > 4
    assert stats.chisquare(counts, shares, sum_check=False).pvalue > 1e-6


def test_probabilities_are_the_targets() -> None:
    target, draft = pair(spec_of(ATTENTION), 0.4)
    prompt, sampling = torch.tensor([3, 1, 4]), Sampling(0.7, top_k=5, seed=4)
    tokens = list(Speculation(target, draft, prompt[None], 12, sampling, alternatives=2))
    text = torch.tensor([*prompt.tolist(), *(int(token.step.tokens) for token in tokens)])
    with torch.no_grad():
        own = target(text[None]).logits[0, 2:-1].softmax(-1)
    for token, row in zip(tokens, own, strict=True):
        assert float(token.step.probabilities) == pytest.approx(float(row[int(token.step.tokens)]), rel=1e-9)
        assert token.step.alternatives[0].tolist() == row.argsort(descending=True)[:2].tolist()


def test_what_cannot_go_together_is_refused() -> None:
    target, _ = pair(spec_of(ATTENTION), 0.0)
    other = build(spec_of(ATTENTION, vocab_size=21))
    with pytest.raises(UnsupportedPlan, match="21 tokens and the target 20") as refused:
        Speculation(target, other, torch.tensor([[1]]), 4)
    assert refused.value.path == "draft"
    assert refused.value.remedy == "Choose a draft with the target's own vocabulary."
    short = build(spec_of(ATTENTION, positions={"kind": "learned", "num_positions": 6}))
    with pytest.raises(ValueError, match="max_new_tokens: the draft reads 6 positions, not 7"):
        Speculation(target, short, torch.tensor([[1, 2, 3]]), 4)
    with pytest.raises(ValueError, match="prompts: "):
        Speculation(target, target, torch.tensor([[]], dtype=torch.long), 4)
    with pytest.raises(ValueError, match="draft_tokens: at least 1"):
        Speculation(target, target, torch.tensor([[1]]), 4, draft_tokens=0)
    assert text_of(Speculation(target, target, torch.tensor([[1]]), 0)) == []


def test_positions_that_turn_by_the_length_of_the_text_are_not_read_ahead() -> None:
    scaling = {"kind": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}
    target, draft = pair(spec_of(ATTENTION, positions={"kind": "rotary", "scaling": scaling}), 1.0)
    prompt = torch.arange(5)
    assert text_of(Speculation(target, draft, prompt[None], 11)) == target.generate(prompt[None], 11)[0, 5:].tolist()
    with pytest.raises(UnsupportedPlan) as refused:
        Speculation(target, draft, prompt[None], 12)
    assert refused.value.code == "rotation_by_length"
