"""Generation: how the next token is chosen, and prompts read with a cache of whatever kind the layers keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.spec import LearnedPositions

if TYPE_CHECKING:
    from runners.models.decoder import Decoder

Prompts = Tensor | Sequence[Tensor]
"""Token ids (batch, positions), or a tensor (positions,) for each prompt where their lengths differ."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Filters apply in the order of the fields, each to what the one before has left."""

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the likeliest token, whatever the filters are."""
    top_k: int | None = None
    """Only so many of the likeliest tokens, of equals the lower ids (Fan et al. 2018, arXiv:1805.04833)."""
    top_p: float | None = None
    """Only the fewest likeliest tokens that have this probability together (Holtzman et al. 2019, arXiv:1904.09751)."""
    min_p: float | None = None
    """Only tokens with this share of the likeliest one's probability or more (Nguyen et al. 2024, arXiv:2407.01082)."""
    seed: int = 0
    """Row ``r`` of a batch is drawn with ``seed + r``, as a batch of that prompt alone would be."""

    def __post_init__(self) -> None:
        wrong = {
            "temperature: a finite number of at least 0": not 0 <= self.temperature < math.inf,
            "top_k: at least 1": self.top_k is not None and self.top_k < 1,
            "top_p: more than 0 and at most 1": self.top_p is not None and not 0 < self.top_p <= 1,
            "min_p: from 0 to 1": self.min_p is not None and not 0 <= self.min_p <= 1,
            "seed: at least 0": self.seed < 0,
        }
        for rule, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(f"{rule}, not {getattr(self, rule.partition(':')[0])!r}")


GREEDY = Sampling()
NOT_NUMBERS = "the model's logits are not numbers: there is no next token to choose"


@dataclass(frozen=True, slots=True)
class GeneratedStep:
    """The tokens at one position, for each row of the batch, and how likely they were."""

    tokens: Tensor
    """(batch,)"""
    is_new: Tensor
    """(batch,) of bool: false in rows that are still reading their prompt, or have all their tokens."""
    probabilities: Tensor
    """(batch,) of float64: the token's probability under the model itself, at temperature 1 and without filters."""
    sampling_probabilities: Tensor
    """(batch,) of float64: its probability in the distribution that tokens are drawn from; 1 at temperature 0."""
    alternatives: Tensor
    """(batch, alternatives): the likeliest tokens under the model itself, likeliest first."""
    alternative_probabilities: Tensor
    """(batch, alternatives) of float64, as ``probabilities``."""


def model_distribution(logits: Tensor) -> Tensor:
    """Probabilities (..., vocab_size) in float64 under the model itself; ``ArithmeticError`` where there are none."""
    probabilities = torch.softmax(logits.double(), -1)
    if not bool(torch.isfinite(probabilities).all()):
        raise ArithmeticError(NOT_NUMBERS)
    return probabilities


def likeliest_token(logits: Tensor) -> Tensor:
    """The token (...) of the largest of ``logits`` (..., vocab_size), of equals the lowest; errors as above."""
    largest = logits.max(-1)
    if not bool(torch.isfinite(largest.values).all()):
        raise ArithmeticError(NOT_NUMBERS)
    return largest.indices


def sampling_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (..., vocab_size) in float64 that tokens are drawn from; they sum to 1."""
    if sampling.temperature == 0:
        certain = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
        return certain.scatter_(-1, likeliest_token(logits)[..., None], 1.0)
    probabilities = model_distribution(logits)
    if sampling.temperature != 1:
        wide = logits.double()
        # Less the largest before the division: a very small temperature makes no infinity.
        probabilities = torch.softmax((wide - wide.amax(-1, keepdim=True)) / sampling.temperature, -1)
    if sampling.top_k is not None or sampling.top_p is not None:
        ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
        if sampling.top_k is not None:
            ordered[..., sampling.top_k :] = 0
        if sampling.top_p is not None and sampling.top_p < 1:
            # A token stays while those before it have less than the share: the last one kept reaches it.
            before = F.pad(ordered.cumsum(-1)[..., :-1], (1, 0))
            ordered = ordered.masked_fill(before >= sampling.top_p * ordered.sum(-1, keepdim=True), 0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    if sampling.min_p is not None:
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """The token (batch,) at which the running sum of ``probabilities`` (batch, vocab_size) passes a number (batch,).

    Numbers are uniform from 0 to less than 1. Tokens are taken in the order of their ids, so that rounding of the
    probabilities moves the bounds between tokens by as little, and none of probability 0 is ever drawn.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    numbers = torch.minimum(numbers[:, None].to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, numbers, right=True)[:, 0]


def changing_rotation(model: Decoder) -> int | None:
    """The length of text beyond which its positions turn by frequencies that depend on the length, if there is one."""
    rotations = [getattr(module, "rotation", None) for module in model.modules()]
    lengths = [rotation.changes_beyond for rotation in rotations if rotation is not None]
    return min((length for length in lengths if length is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts side by side from position 0 on. Behind the shorter ones stands nothing that is ever read."""

    tokens: Tensor
    """(batch, longest prompt + new tokens)"""
    lengths: Tensor
    """(batch,): tokens of each prompt."""
    shortest: int
    end: int
    """Positions when the longest prompt has its last token."""


def _batch_for(model: Decoder, prompts: Prompts, max_new_tokens: int) -> _Batch:
    device, positions = model.embed_tokens.weight.device, model.spec.positions
    rows = [row.to(device) for row in prompts]
    lengths = [len(row) for row in rows]
    if not rows or min(lengths) == 0:
        raise ValueError("prompts: each needs at least one token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: at least 0, not {max_new_tokens}")
    end = max(lengths) + max_new_tokens
    if isinstance(positions, LearnedPositions) and end > positions.num_positions:
        raise ValueError(f"max_new_tokens: the model reads {positions.num_positions} positions, not {end}")
    tokens = torch.zeros(len(rows), end, dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return _Batch(tokens, torch.tensor(lengths, device=device), min(lengths), end)


def stream(
    model: Decoder,
    prompts: Prompts,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    alternatives: int = 0,
    use_cache: bool = True,
) -> Iterator[GeneratedStep]:
    """Position after position of a batch, as they come; each prompt gets ``max_new_tokens``.

    Nothing is padded: a state that is carried from token to token could not leave padding out. Prompts of different
    lengths are read together up to the end of the shortest. From there on all rows go token by token, each with its
    own prompt's while it lasts, and with what it generates after that. So every row is what it would be alone, to
    rounding, at the price of ``longest - shortest`` more positions one by one.

    Without a cache the whole text is read anew for every token.

    Raises
    ------
    ValueError
        before anything is computed, where a prompt is empty, the model has fewer positions than are asked for, or
        prompts of different lengths would be turned by each other's.
    """
    vocabulary = model.spec.vocab_size
    if not 0 <= alternatives <= vocabulary:
        raise ValueError(f"alternatives: from 0 to the vocabulary's {vocabulary}, not {alternatives}")
    batch = _batch_for(model, prompts, max_new_tokens)
    changes = changing_rotation(model)
    if changes is not None and batch.end > changes and len(set(batch.lengths.tolist())) > 1:
        raise ValueError(
            f"prompts: beyond {changes} tokens positions turn by a text's length: give those of one length"
        )
    return _steps(model, batch, max_new_tokens, sampling, alternatives, use_cache)


def _steps(
    model: Decoder, batch: _Batch, max_new_tokens: int, sampling: Sampling, alternatives: int, use_cache: bool
) -> Iterator[GeneratedStep]:
    positions = range(batch.shortest, batch.end)
    choices = _choices(model, batch, max_new_tokens, sampling, use_cache)
    for position, (logits, drawn_from, chosen) in zip(positions, choices, strict=False):
        own = model_distribution(logits)
        if drawn_from is None:
            drawn_from = sampling_distribution(logits, sampling)
        likeliest = own.topk(alternatives, -1)
        yield GeneratedStep(
            chosen,
            (batch.lengths <= position) & (position < batch.lengths + max_new_tokens),
            own.gather(-1, chosen[:, None])[:, 0],
            drawn_from.gather(-1, chosen[:, None])[:, 0],
            likeliest.indices,
            likeliest.values,
        )


@torch.no_grad()
def _choices(
    model: Decoder, batch: _Batch, max_new_tokens: int, sampling: Sampling, use_cache: bool
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Position after position the logits (batch, vocab_size), what is drawn from, and the tokens (batch,).

    ``batch.tokens`` receives the tokens. Without a temperature nothing is drawn: the largest logit says enough.
    """
    tokens, lengths = batch.tokens, batch.lengths.tolist()
    # On the CPU, so that a seed draws the same numbers on every device.
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(lengths))]
    cache = model.new_cache(len(lengths), batch.end) if use_cache else None
    read = 0
    for position in range(batch.shortest, batch.end if max_new_tokens else 0):
        if cache is not None and model.reread_beyond is not None and read <= model.reread_beyond < position:
            cache, read = model.new_cache(len(lengths), batch.end), 0
        logits = model.next_logits(tokens[:, read:position], cache)
        read = position if use_cache else 0
        drawn_from = None
        if sampling.temperature == 0:
            chosen = likeliest_token(logits)
        else:
            drawn_from = sampling_distribution(logits, sampling)
            # A number for each new token of a row, none for its prompt: the row draws what it would draw alone.
            numbers = [
                float(torch.rand((), generator=generator, dtype=torch.float64))
                if length <= position < length + max_new_tokens
                else 0.0
                for generator, length in zip(generators, lengths, strict=True)
            ]
            chosen = draw(drawn_from, torch.tensor(numbers, dtype=torch.float64))
        if position < max(lengths):
            chosen = torch.where(position < batch.lengths, tokens[:, position], chosen)
        tokens[:, position] = chosen
        yield logits, drawn_from, chosen


def generate(
    model: Decoder, prompts: Prompts, max_new_tokens: int, sampling: Sampling = GREEDY, *, use_cache: bool = True
) -> list[Tensor]:
    """Each prompt with ``max_new_tokens`` more, (positions,) a row."""
    if changing_rotation(model) is not None and len({len(row) for row in prompts}) > 1:  # not side by side
        return [
            generate(
                model, row[None], max_new_tokens, replace(sampling, seed=sampling.seed + index), use_cache=use_cache
            )[0]
            for index, row in enumerate(prompts)
        ]
    batch = _batch_for(model, prompts, max_new_tokens)
    for _ in _choices(model, batch, max_new_tokens, sampling, use_cache):
        pass
    return [row[: length + max_new_tokens] for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)]
