"""Speculative decoding: a small model proposes tokens, a large one reads them all in one pass and keeps what it may.

Leviathan et al. 2022 (arXiv:2211.17192, algorithm 1) and Chen et al. 2023 (arXiv:2302.01318). Every token has the
distribution that the large model alone would draw it from; at temperature 0 it is the large model's own text, to
rounding: a pass over several tokens rounds otherwise than one over a single token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.errors import UnsupportedPlan
from planner.spec import LearnedPositions
from runners.models.attention import AttentionCache
from runners.models.decoder import Decoder
from runners.models.generation import (
    GREEDY,
    GeneratedStep,
    Sampling,
    changing_rotation,
    draw,
    model_distribution,
    sampling_distribution,
)
from runners.models.latent_attention import LatentCache
from runners.models.parallel_mixers import ParallelCache

DRAFT_TOKENS = 4
"""Tokens proposed at a time, unless told otherwise."""


def _overwritten(entry: Any, context_length: int) -> Sequence[Tensor]:
    """What a mixer keeps that later tokens take the place of, so that going back to fewer tokens has to restore it.

    A place of its own for every position needs nothing restored: what stands behind the last position is never read.
    """
    if isinstance(entry, LatentCache):
        return ()
    if isinstance(entry, AttentionCache) and entry.ring >= context_length:
        return ()
    if isinstance(entry, ParallelCache):
        return [tensor for part in entry.entries.values() for tensor in _overwritten(part, context_length)]
    return entry.tensors


class _Reader:
    """A model with its cache, which can go back to a text that is shorter than what it has read."""

    def __init__(self, model: Decoder, context_length: int) -> None:
        self._model = model
        self._cache = model.new_cache(1, context_length)
        entries = [entry for layer in self._cache.entries for entry in layer.values()]
        self._states = [tensor for entry in entries for tensor in _overwritten(entry, context_length)]
        self._marked = 0
        self._copies: list[Tensor] = []

    @property
    def read(self) -> int:
        """Positions that the cache stands for."""
        return self._cache.length

    @property
    def has_states(self) -> bool:
        """Whether going back means reading some of the text anew."""
        return bool(self._states)

    def logits(self, text: Tensor, end: int) -> Tensor:
        """Logits (positions, vocab_size) of what has not been read yet of the text (1, positions) up to ``end``."""
        return self._model(text[:, self.read : end], cache=self._cache).logits[0]

    def mark(self) -> None:
        """Keep the states as they are now: no later return goes back further."""
        if self._states and not (self._copies and self._marked == self.read):
            self._copies = [tensor.clone() for tensor in self._states]
        self._marked = self.read

    def go_back(self, length: int) -> None:
        """Stand for the first ``length`` positions at most; states are those at the mark, from where reading goes on.

        The positions from the mark on that are still true are read anew together with what comes next.
        """
        if length >= self.read:
            return
        for tensor, copy in zip(self._states, self._copies, strict=True):
            tensor.copy_(copy)
        self._cache.length = self._marked if self._states else length


@dataclass(frozen=True, slots=True)
class SpeculatedToken:
    """A token of the large model's distribution, and whether the small one had proposed it."""

    step: GeneratedStep
    """Of a batch of one."""
    is_proposed: bool


class Speculation:
    """One prompt's generation by ``target`` with the proposals of ``draft``: iterate over it for the tokens.

    Parameters
    ----------
    prompt
        Token ids (positions,).
    draft_tokens
        Tokens that the draft proposes before the target reads them.
    alternatives
        How many of the likeliest tokens each step names.

    Raises
    ------
    UnsupportedPlan
        where the two do not have the same number of tokens in their vocabularies.
    ValueError
        where the prompt is empty, or either model has fewer positions than are asked for.
    """

    def __init__(
        self,
        target: Decoder,
        draft: Decoder,
        prompt: Tensor,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        draft_tokens: int = DRAFT_TOKENS,
        alternatives: int = 0,
    ) -> None:
        vocabulary = target.spec.vocab_size
        if draft.spec.vocab_size != vocabulary:
            raise UnsupportedPlan.of(
                f"The draft has {draft.spec.vocab_size:,} tokens and the target {vocabulary:,}: what one proposes, the "
                "other cannot read.",
                path="draft",
                remedy="Choose a draft with the target's own vocabulary.",
                code="other_vocabulary",
            )
        if len(prompt) == 0:
            raise ValueError("prompt: needs at least one token")
        if draft_tokens < 1:
            raise ValueError(f"draft_tokens: at least 1, not {draft_tokens}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens: at least 0, not {max_new_tokens}")
        if not 0 <= alternatives <= vocabulary:
            raise ValueError(f"alternatives: from 0 to the vocabulary's {vocabulary}, not {alternatives}")
        self._end = len(prompt) + max_new_tokens
        for role, model in (("target", target), ("draft", draft)):
            positions = model.spec.positions
            if isinstance(positions, LearnedPositions) and self._end > positions.num_positions:
                raise ValueError(
                    f"max_new_tokens: the {role} reads {positions.num_positions} positions, not {self._end}"
                )
            changes = changing_rotation(model)
            if changes is not None and self._end > changes:
                raise UnsupportedPlan.of(
                    f"Beyond {changes:,} tokens the {role}'s positions turn by the length of the text, so tokens that "
                    "are read together are not what they are one by one.",
                    path=role,
                    remedy="Ask for fewer tokens, or generate without a draft.",
                    code="rotation_by_length",
                )
        self._target, self._draft = target, draft
        self._prompt, self._sampling = prompt, sampling
        self._draft_tokens, self._alternatives = draft_tokens, alternatives
        self.proposed = 0
        """Tokens that the draft has proposed so far."""
        self.accepted = 0
        """Those of them that the target took."""
        self.target_passes = 0
        """Passes of the target over one or more tokens, that over the prompt among them."""
        self.tokens = 0
        """Tokens made so far."""

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the proposed tokens that were taken; ``None`` before any was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens made a pass of the target; 1 is what it would make alone."""
        return self.tokens / self.target_passes if self.target_passes else None

    @torch.no_grad()
    def __iter__(self) -> Iterator[SpeculatedToken]:
        device = self._target.embed_tokens.weight.device
        text = torch.zeros(1, self._end, dtype=torch.long, device=device)
        length = len(self._prompt)
        text[0, :length] = self._prompt.to(device)
        # On the CPU, so that a seed draws the same numbers on every device.
        generator = torch.Generator().manual_seed(self._sampling.seed)
        target, draft = _Reader(self._target, self._end), _Reader(self._draft, self._end)
        while length < self._end:
            count = min(self._draft_tokens, self._end - length - 1)
            proposals = self._proposals(draft, text, length, count, generator)
            logits = self._verification(target, text, length, count)
            for place in range(count + 1):
                wanted = sampling_distribution(logits[place], self._sampling)
                is_proposed = place < count
                if is_proposed:
                    token = int(text[0, length])
                    likely = float(proposals[place][token]), float(wanted[token])
                    # Taken with probability min(1, wanted / proposed).
                    is_proposed = _number(generator) * likely[0] < likely[1]
                if not is_proposed:
                    left = (wanted - proposals[place]).clamp(min=0) if place < count else wanted
                    token = _drawn(left if float(left.sum()) > 0 else wanted, generator)
                    text[0, length] = token
                length += 1
                self.tokens += 1
                self.accepted += is_proposed
                yield SpeculatedToken(self._step(logits[place], wanted, token), is_proposed)
                if not is_proposed:
                    break
            # The last token has been read by neither: it was drawn by what they said of those before it.
            target.go_back(length - 1)
            draft.go_back(length - 1)

    def _proposals(
        self, draft: _Reader, text: Tensor, length: int, count: int, generator: torch.Generator
    ) -> list[Tensor]:
        """Write ``count`` tokens of the draft behind the text; the distributions that they were drawn from."""
        found: list[Tensor] = []
        for place in range(length, length + count):
            logits = draft.logits(text, place)[-1]
            if place == length:
                draft.mark()
            distribution = sampling_distribution(logits, self._sampling)
            text[0, place] = _drawn(distribution, generator)
            found.append(distribution)
        self.proposed += count
        return found

    def _verification(self, target: _Reader, text: Tensor, length: int, count: int) -> Tensor:
        """The target's logits (count + 1, vocab_size) of the token after the text and after each proposal."""
        if target.has_states and length - target.read > self._draft_tokens + 1:
            # So much would be read anew after every refusal: it is read for good first.
            target.logits(text, length - 1)
            self.target_passes += 1
        target.mark()
        self.target_passes += 1
        return target.logits(text, length + count)[-count - 1 :]

    def _step(self, logits: Tensor, wanted: Tensor, token: int) -> GeneratedStep:
        own = model_distribution(logits)
        likeliest = own.topk(self._alternatives)
        return GeneratedStep(
            torch.tensor([token], device=own.device),
            torch.ones(1, dtype=torch.bool, device=own.device),
            own[token][None],
            wanted[token][None],
            likeliest.indices[None],
            likeliest.values[None],
        )


def _number(generator: torch.Generator) -> float:
    """Uniform from 0 to less than 1."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _drawn(weights: Tensor, generator: torch.Generator) -> int:
    """A token, by its weight among all (vocab_size,)."""
    return int(draw(weights[None], torch.tensor([_number(generator)], dtype=torch.float64)))
