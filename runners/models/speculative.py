"""Speculative decoding: a small model proposes tokens, a large one reads them all in one pass and keeps what it may.

Leviathan et al. 2022 (arXiv:2211.17192, algorithm 1) and Chen et al. 2023 (arXiv:2302.01318). Every token has the
distribution that the large model alone would draw it from; at temperature 0 it is the large model's own text, to
rounding: a pass over several tokens rounds otherwise than one over a single token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    Prompts,
    Sampling,
    changing_rotation,
    draw,
    model_distribution,
    sampling_distribution,
)
from runners.models.latent_attention import LatentCache
from runners.models.parallel_mixers import ParallelCache
from runners.models.places import Places, places_of_rows

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
    """A model with its caches of some texts, of which it has read differently far, and can go back in each."""

    def __init__(self, model: Decoder, text: Tensor) -> None:
        """``text`` (rows, positions), as it grows."""
        self._model, self._text = model, text
        rows, context_length = text.shape
        self._cache = model.new_cache(rows, context_length)
        entries = [entry for layer in self._cache.entries for entry in layer.values()]
        self._states = [tensor for entry in entries for tensor in _overwritten(entry, context_length)]
        self.read = [0] * rows
        """Positions of each row that the caches stand for."""
        self.last = torch.zeros(rows, model.spec.vocab_size, dtype=model.embed_tokens.weight.dtype, device=text.device)
        """Logits (rows, vocab_size) behind what :meth:`read_to` has read."""
        self.passes = 0
        self._marks: list[int] = []
        self._copies: list[Tensor] = []

    @property
    def has_states(self) -> bool:
        """Whether going back means reading some of the text anew."""
        return bool(self._states)

    def step(self, count: int) -> Tensor:
        """Logits (rows, count, vocab_size) of the next ``count`` tokens of each row, whatever stands there."""
        device = self._text.device
        if len(set(self.read)) == 1:
            places = Places(self.read[0], count, device)
        else:
            places = places_of_rows(self.read, count, device)
        tokens = torch.stack([row[start : start + count] for row, start in zip(self._text, self.read, strict=True)])
        self.read = [start + count for start in self.read]
        self.passes += 1
        return self._model.head(self._model.last_states(tokens, self._cache, places=places))

    def read_to(self, ends: Sequence[int]) -> None:
        """Read each row's text up to its end for good.

        States take no more than a row has left: a pass is as long as what the row with the least has left, and rows
        that have nothing left are put back. Else the shorter rows read something more, which is never looked at.
        """
        while any(end > read for end, read in zip(ends, self.read, strict=True)):
            left = [end - read for end, read in zip(ends, self.read, strict=True)]
            count = min(each for each in left if each > 0) if self._states else max(left)
            self.mark()
            starts, logits = self.read, self.step(count)
            self.go_back(ends)
            for row, (start, read) in enumerate(zip(starts, self.read, strict=True)):
                if read > start:
                    self.last[row] = logits[row, read - start - 1]

    def mark(self) -> None:
        """Keep the states as they are now: no later return goes back further."""
        if self._states and not (self._copies and self._marks == self.read):
            self._copies = [tensor.clone() for tensor in self._states]
        self._marks = self.read

    def go_back(self, lengths: Sequence[int]) -> None:
        """Stand for so many positions of each row at most; states are those at the mark, from where reading goes on.

        The positions from the mark on that are still true are read anew together with what comes next.
        """
        beyond = [row for row, (read, length) in enumerate(zip(self.read, lengths, strict=True)) if read > length]
        for tensor, copy in zip(self._states, self._copies, strict=True):
            tensor[beyond] = copy[beyond]
        back = self._marks if self._states else lengths
        self.read = [back[row] if row in beyond else read for row, read in enumerate(self.read)]


@dataclass(frozen=True, slots=True)
class SpeculatedToken:
    """A token of the large model's distribution, and whether the small one had proposed it."""

    row: int
    """Of the prompt behind which it stands."""
    step: GeneratedStep
    """Of a batch of one."""
    is_proposed: bool


class Speculation:
    """Generation by ``target`` with the proposals of ``draft``: iterate over it for the tokens of all prompts.

    The prompts go on together, and each takes its own number of proposals: what a row becomes it would become alone.

    Parameters
    ----------
    prompts
        Token ids (batch, positions), or (positions,) of each.
    max_new_tokens
        Tokens that each prompt gets.
    sampling
        Row ``r`` is drawn with ``seed + r``.
    draft_tokens
        Tokens that the draft proposes before the target reads them.
    alternatives
        How many of the likeliest tokens each step names.

    Raises
    ------
    UnsupportedPlan
        where the two do not have the same number of tokens in their vocabularies, or one's positions turn by the length
        of the text, as it would be.
    ValueError
        where a prompt is empty, or either model has fewer positions than are asked for.
    """

    def __init__(
        self,
        target: Decoder,
        draft: Decoder,
        prompts: Prompts,
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
        self._lengths = [len(prompt) for prompt in prompts]
        if not self._lengths or min(self._lengths) == 0:
            raise ValueError("prompts: each needs at least one token")
        if draft_tokens < 1:
            raise ValueError(f"draft_tokens: at least 1, not {draft_tokens}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens: at least 0, not {max_new_tokens}")
        if not 0 <= alternatives <= vocabulary:
            raise ValueError(f"alternatives: from 0 to the vocabulary's {vocabulary}, not {alternatives}")
        end, spread = max(self._lengths) + max_new_tokens, max(self._lengths) - min(self._lengths)
        # Rows read as many tokens as the one with the most to read, so that some read on behind their end.
        self._room = max(2 * draft_tokens + 2, spread) if len(self._lengths) > 1 else 0
        for role, model in (("target", target), ("draft", draft)):
            positions = model.spec.positions
            if isinstance(positions, LearnedPositions) and end > positions.num_positions:
                raise ValueError(f"max_new_tokens: the {role} reads {positions.num_positions} positions, not {end}")
            changes = changing_rotation(model)
            if changes is not None and end + self._room > changes:
                raise UnsupportedPlan.of(
                    f"Beyond {changes:,} tokens the {role}'s positions turn by the length of the text, so tokens that "
                    "are read together are not what they are one by one.",
                    path=role,
                    remedy="Ask for fewer tokens, or of fewer prompts at a time, or generate without a draft.",
                    code="rotation_by_length",
                )
        self._target, self._draft = target, draft
        self._prompts, self._sampling, self._max_new_tokens = prompts, sampling, max_new_tokens
        self._draft_tokens, self._alternatives = draft_tokens, alternatives
        self.proposed = 0
        """Tokens that the draft has proposed so far."""
        self.accepted = 0
        """Those of them that the target took."""
        self.target_passes = 0
        """Passes of the target over one or more tokens of the prompts, those that read the prompts among them."""
        self.tokens = 0
        """Tokens made so far."""

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the proposed tokens that were taken; ``None`` before any was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens made a pass of the target, behind all prompts together; alone it would make one behind each."""
        return self.tokens / self.target_passes if self.target_passes else None

    @torch.no_grad()
    def __iter__(self) -> Iterator[SpeculatedToken]:
        lengths = list(self._lengths)
        ends = [length + self._max_new_tokens for length in lengths]
        device = self._target.embed_tokens.weight.device
        text = torch.zeros(len(lengths), max(ends) + self._room, dtype=torch.long, device=device)
        for row, prompt in enumerate(self._prompts):
            text[row, : len(prompt)] = prompt.to(device)
        # On the CPU, so that a seed draws the same numbers on every device.
        generators = [torch.Generator().manual_seed(self._sampling.seed + row) for row in range(len(lengths))]
        target, draft = _Reader(self._target, text), _Reader(self._draft, text)
        if target.has_states and len(lengths) > 1:
            # A beginning is read by all rows or by none: some states are told where they begin.
            target.read_to([min(lengths)] * len(lengths))
        while going := [row for row, length in enumerate(lengths) if length < ends[row]]:
            counts = {row: min(self._draft_tokens, ends[row] - lengths[row] - 1) for row in going}
            proposals = self._proposals(draft, text, lengths, counts, generators)
            verified = self._verified(target, lengths, counts)
            for row in going:
                for place in range(counts[row] + 1):
                    logits, proposed = verified[row][place], None
                    if place < counts[row]:
                        proposed = int(text[row, lengths[row]]), proposals[place][row]
                    wanted = sampling_distribution(logits, self._sampling)
                    token, is_proposed = _taken(wanted, proposed, generators[row])
                    text[row, lengths[row]] = token
                    lengths[row] += 1
                    self.tokens += 1
                    self.accepted += is_proposed
                    self.target_passes = target.passes
                    yield SpeculatedToken(row, self._step(logits, wanted, token), is_proposed)
                    if not is_proposed:
                        break
            # The last token has been read by neither: it was drawn by what they said of those before it.
            known = [length - 1 for length in lengths]
            target.go_back(known)
            draft.go_back(known)

    def generate(self) -> list[Tensor]:
        """Each prompt with its new tokens, (positions,) a row."""
        rows = [[prompt] for prompt in self._prompts]
        for token in self:
            rows[token.row].append(token.step.tokens.to(rows[token.row][0].device))
        return [torch.cat(row) for row in rows]

    def _proposals(
        self,
        draft: _Reader,
        text: Tensor,
        lengths: Sequence[int],
        counts: Mapping[int, int],
        generators: Sequence[torch.Generator],
    ) -> list[Tensor]:
        """Write tokens of the draft behind the texts, as many as ``counts`` says of a row.

        Gives the distributions (rows, vocab_size) that they were drawn from, place by place.
        """
        found: list[Tensor] = []
        if not any(counts.values()):
            return found
        draft.read_to([lengths[row] if row in counts else read for row, read in enumerate(draft.read)])
        draft.mark()
        logits = draft.last
        for place in range(max(counts.values())):
            if place:
                logits = draft.step(1)[:, 0]
            found.append(torch.zeros(logits.shape, dtype=torch.float64, device=logits.device))
            for row, count in counts.items():
                if place < count:
                    found[place][row] = sampling_distribution(logits[row], self._sampling)
                    text[row, lengths[row] + place] = _drawn(found[place][row], generators[row])
        self.proposed += sum(counts.values())
        return found

    def _verified(self, target: _Reader, lengths: Sequence[int], counts: Mapping[int, int]) -> dict[int, Tensor]:
        """The target's logits (count + 1, vocab_size) of the token after each text and after each proposal."""
        if target.has_states:
            # What would be read anew after every refusal is read for good first, where it is much: by whole pieces, so
            # that rows share the passes.
            piece = self._draft_tokens + 1
            left = [lengths[row] - read if row in counts else 0 for row, read in enumerate(target.read)]
            target.read_to([read + max(0, left[row] - 1) // piece * piece for row, read in enumerate(target.read)])
        target.mark()
        starts = target.read
        logits = target.step(max(lengths[row] + count - starts[row] for row, count in counts.items()))
        logits = torch.cat((target.last[:, None].to(logits.dtype), logits), 1)
        return {row: logits[row, lengths[row] - starts[row] :][: count + 1] for row, count in counts.items()}

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


def _taken(wanted: Tensor, proposed: tuple[int, Tensor] | None, generator: torch.Generator) -> tuple[int, bool]:
    """A token of the distribution ``wanted`` (vocab_size,), and whether it is the proposed one.

    ``proposed`` is a token and the distribution that it was drawn from.
    """
    left = wanted
    if proposed is not None:
        token, distribution = proposed
        # Taken with probability min(1, wanted / proposed).
        if _number(generator) * float(distribution[token]) < float(wanted[token]):
            return token, True
        left = (wanted - distribution).clamp(min=0)
    return _drawn(left if float(left.sum()) > 0 else wanted, generator), False


def _number(generator: torch.Generator) -> float:
    """Uniform from 0 to less than 1."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _drawn(weights: Tensor, generator: torch.Generator) -> int:
    """A token, by its weight among all (vocab_size,)."""
    return int(draw(weights[None], torch.tensor([_number(generator)], dtype=torch.float64)))
