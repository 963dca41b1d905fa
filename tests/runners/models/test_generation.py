"""Which tokens may be drawn, against a reference in plain Python; and that neither cache nor batch changes a text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner import ArchitectureSpec, parse_spec
from runners.models import GREEDY, Sampling, build
from runners.models.generation import draw, sampling_distribution
from tests.runners.models.specs import specs

ATTENTION = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
SMALL = {
    "vocab_size": 20,
    "hidden_size": 12,
    "layer_groups": [{"repeats": 2, "layers": [{"sequence_mixer": ATTENTION}]}],
}


def reference(logits: list[float], sampling: Sampling) -> list[float]:
    """The distribution by the definitions: temperature, top-k, top-p of what is left, min-p of what is left."""
    largest = max(logits)
    weights = {token: math.exp((logit - largest) / sampling.temperature) for token, logit in enumerate(logits)}
    if sampling.top_k is not None:
        ranked = sorted(weights, key=lambda token: (-weights[token], token))
        weights = {token: weights[token] for token in ranked[: sampling.top_k]}
    if sampling.top_p is not None:
        kept: dict[int, float] = {}
        whole = math.fsum(weights.values())
        for token in sorted(weights, key=lambda token: (-weights[token], token)):
            kept[token] = weights[token]
            if math.fsum(kept.values()) >= sampling.top_p * whole:
                break
        weights = kept
    if sampling.min_p is not None:
        least = sampling.min_p * max(weights.values())
        weights = {token: weight for token, weight in weights.items() if weight >= least}
    whole = math.fsum(weights.values())
    return [weights.get(token, 0.0) / whole for token in range(len(logits))]


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(st.sampled_from([0.3, 1.0, 1.7])),
        top_k=draw(st.sampled_from([None, 1, 4, 100])),
        top_p=draw(st.sampled_from([None, 0.05, 0.6, 0.97])),
        min_p=draw(st.sampled_from([None, 0.0, 0.04, 0.5])),
        seed=draw(st.integers(0, 100)),
    )


@given(samplings(), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_the_distribution_that_is_drawn_from_is_that_of_the_definitions(sampling: Sampling, seed: int) -> None:
    logits = torch.randn(3, 17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    expected = torch.tensor([reference(row, sampling) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sampling_distribution(logits, sampling), expected, rtol=1e-12, atol=1e-14)


@given(samplings(), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_distribution_that_is_drawn_from_is_that_of_transformers(sampling: Sampling, seed: int) -> None:
    from transformers.generation import logits_process as theirs

    logits = torch.randn(3, 17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    warpers: list[Any] = [theirs.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        warpers.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        warpers.append(theirs.MinPLogitsWarper(sampling.min_p))
    warped = logits
    for warper in warpers:
        warped = warper(torch.zeros(3, 1, dtype=torch.long), warped)
    torch.testing.assert_close(sampling_distribution(logits, sampling), warped.softmax(-1), rtol=1e-12, atol=1e-14)


def test_equals_and_extremes() -> None:
    """Of equally likely tokens top-k keeps the lower ids; neither tiny temperatures nor excluded tokens do harm."""
    equal = torch.zeros(1, 4)
    half = torch.tensor([[0.5, 0.5, 0, 0]], dtype=torch.float64)
    assert torch.equal(sampling_distribution(equal, Sampling(1.0, top_k=2)), half)
    assert torch.equal(sampling_distribution(equal, Sampling(1.0, top_p=0.5)), half)
    excluded = torch.tensor([[1.0, -math.inf, 3.0, -math.inf]])
    assert torch.equal(sampling_distribution(excluded, Sampling(1e-300)).long(), torch.tensor([[0, 0, 1, 0]]))
    assert torch.equal(sampling_distribution(excluded, GREEDY).long(), torch.tensor([[0, 0, 1, 0]]))
    for broken in (math.nan, math.inf):
        with pytest.raises(ArithmeticError, match="not numbers"):
            sampling_distribution(torch.tensor([[1.0, broken]]), Sampling(1.0))


def test_each_token_is_drawn_as_often_as_it_is_likely() -> None:
    """Of numbers evenly spread from 0 to 1, each token has its share, to one number at either of its bounds."""
    probabilities = torch.tensor([0.0, 0.2, 0.0, 0.05, 0.7, 0.05, 0.0], dtype=torch.float64)
    count = 4000
    numbers = torch.arange(count, dtype=torch.float64) / count
    drawn = draw(probabilities.expand(count, -1), numbers)
    shares = torch.bincount(drawn, minlength=7) / count
    assert torch.equal(shares[probabilities == 0], torch.zeros(3))
    torch.testing.assert_close(shares.double(), probabilities, rtol=0, atol=1.5 / count)
    last = torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64)
    assert draw(probabilities.expand(2, -1), last).tolist() == [5, 1]


def prompts_of(lengths: list[int], vocabulary: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]


@given(specs(), st.sampled_from([GREEDY, Sampling(1.3, 12, 0.95, 0.02, 5)]))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_neither_cache_nor_the_other_prompts_change_a_text(spec: ArchitectureSpec, sampling: Sampling) -> None:
    """Prompts of three lengths, beyond the windows, over every mixer; alone each is drawn with its own row's seed."""
    model = build(spec, dtype=torch.float64)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)  # an untrained model is too sure of nothing for greedy texts to differ
    prompts = prompts_of([6, 9, 4], spec.vocab_size)
    together = model.generate_each(prompts, 6, sampling)
    anew = model.generate_each(prompts, 6, sampling, use_cache=False)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row], anew[row])
        own = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed + row)
        assert torch.equal(together[row], model.generate(prompt[None], 6, own)[0])
        assert torch.equal(together[row][: len(prompt)], prompt)
        assert len(together[row]) == len(prompt) + 6


def test_what_streams_is_as_likely_as_it_says() -> None:
    """Every probability again, from the logits of the whole text read at once."""
    model = build(parse_spec(SMALL), dtype=torch.float64)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(40)
    prompts = prompts_of([3, 5], 20)
    sampling = Sampling(0.8, top_k=6, top_p=0.9, seed=3)
    steps = list(model.stream(prompts, 4, sampling, alternatives=3))
    assert [step.is_new.tolist() for step in steps] == [[True, False]] * 2 + [[True, True]] * 2 + [[False, True]] * 2
    texts = model.generate_each(prompts, 4, sampling)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        new = [step for step in steps if step.is_new[row]]
        assert [int(step.tokens[row]) for step in new] == text[len(prompt) :].tolist()
        logits = model(text[None]).logits[0, len(prompt) - 1 : -1]
        for step, at in zip(new, logits.tolist(), strict=True):
            token = int(step.tokens[row])
            own = reference(at, Sampling(1.0))
            assert float(step.probabilities[row]) == pytest.approx(own[token], rel=1e-9)
            assert float(step.sampling_probabilities[row]) == pytest.approx(reference(at, sampling)[token], rel=1e-9)
            ranked = sorted(range(20), key=lambda t, own=own: -own[t])[:3]
            assert step.alternatives[row].tolist() == ranked
            assert step.alternative_probabilities[row].tolist() == pytest.approx([own[t] for t in ranked], rel=1e-9)


def test_tokens_come_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reads the prompt for the first token, and one token for each after it."""
    model = build(parse_spec(SMALL))
    read: list[int] = []
    model.embed_tokens.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    steps = model.stream(prompts_of([3, 3], 20), 5)
    assert read == []
    next(steps)
    assert read == [3]
    next(steps)
    assert read == [3, 1]


def test_seeds_differ_and_repeat() -> None:
    model = build(parse_spec(SMALL))
    prompt = torch.zeros(2, 1, dtype=torch.long)
    texts = [model.generate(prompt, 12, Sampling(1.0, seed=seed)) for seed in (0, 0, 7)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0][0], texts[0][1])  # equal prompts of a batch go on differently


@pytest.mark.parametrize(
    "field, value",
    [
        *(("temperature", value) for value in (-1.0, math.inf, math.nan)),
        *(("top_p", value) for value in (0.0, 1.1)),
        *(("min_p", value) for value in (-0.1, math.nan)),
        ("top_k", 0),
        ("seed", -1),
    ],
)
def test_a_wrong_option_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_what_cannot_be_generated_is_refused_before_the_first_token() -> None:
    model = build(parse_spec({**SMALL, "positions": {"kind": "learned", "num_positions": 8}}))
    with pytest.raises(ValueError, match="max_new_tokens: the model reads 8 positions, not 9"):
        model.stream(prompts_of([2, 5], 20), 4)
    with pytest.raises(ValueError, match="prompts: each needs at least one token"):
        model.stream(prompts_of([2, 0], 20), 4)
    with pytest.raises(ValueError, match="alternatives: from 0 to the vocabulary's 20, not 21"):
        model.stream(prompts_of([2], 20), 1, alternatives=21)
    assert len(list(model.stream(prompts_of([2, 5], 20), 3))) == 6
    assert list(model.stream(prompts_of([2, 5], 20), 0)) == []
