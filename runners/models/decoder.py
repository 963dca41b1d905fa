"""The whole model: embedding, layers on the residual stream, final norm, head, loss and generation."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.components import Component
from planner.sizing import embedding_width
from planner.spec import AlibiPositions, ArchitectureSpec, Layer, LearnedPositions, RotaryPositions
from runners.models.chunked_loss import chunked_cross_entropy
from runners.models.context import BuildContext, Kernels, in_compute_type
from runners.models.documents import Documents, documents_of
from runners.models.generation import GREEDY, GeneratedStep, Prompts, Sampling, generate, stream
from runners.models.norms import stream_norm
from runners.models.places import Places

INITIAL_DEVIATION = 0.02
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """``logits`` (batch, positions, vocab_size); ``loss``, the mean over next tokens, where labels were given."""

    logits: Tensor
    loss: Tensor | None = None


def next_tokens(tokens: Tensor) -> Tensor:
    """What follows each of ``tokens`` (batch, positions), which of the last is left out."""
    return F.pad(tokens[:, 1:], (0, 1), value=IGNORED_LABEL)


LayerCache = dict[str, Any]
"""What the mixers of a layer keep between tokens, by ``sequence`` and ``channel``; each has ``tensors``."""


class ModelCache:
    """What generation keeps: in each layer what its mixers keep, and how many positions were read."""

    def __init__(self, entries: list[LayerCache], context_length: int) -> None:
        self.entries = entries
        self.context_length = context_length
        self.length = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All cached tensors."""
        return tuple(tensor for layer in self.entries for entry in layer.values() for tensor in entry.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of all cached tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def twin(component: Component, context: BuildContext) -> nn.Module:
    """The module of a component: the class of its name in the module of ``runners.models`` named as the planner's.

    A twin takes the component and the context. One that needs an initialization of its own has ``reset_special()``;
    matrices of two and more dimensions are drawn before it is called, biases are zero. One that keeps something while
    generating has ``new_cache()``, and its ``forward`` takes the cache and the number of positions read; one whose
    ``forward`` takes ``shared`` as well is given a dictionary that goes from layer to layer, where the model has a
    layer that reads what another put there, and one whose ``forward`` takes ``places`` is given those of the pass. One
    that keeps the documents of a sequence apart takes ``documents``; of
    those that do not, the ones that keep something would carry it from a document into the next.
    """
    kind = type(component)
    module = importlib.import_module(f"runners.models.{kind.__module__.rpartition('.')[2]}")
    made: nn.Module = getattr(module, kind.__name__)(component, context)
    return made


class DecoderLayer(nn.Module):
    """A sequence mixer and a channel mixer on the stream, one after the other or in parallel, each with its norms."""

    def __init__(self, layer: Layer, context: BuildContext, residual_multiplier: float | None = None) -> None:
        super().__init__()
        self.has_sequence, self.has_channel = layer.sequence_mixer is not None, layer.channel_mixer is not None
        self.residual = layer.residual
        self.residual_multiplier = residual_multiplier
        self.multipliers = {"sequence": layer.sequence_multipliers, "channel": layer.channel_multipliers}
        self.after_residual = layer.norm_placement == "after_residual"
        for name in layer.norm_names:
            self.add_module(name, stream_norm(context, keeps_type=self.after_residual))
        if layer.sequence_mixer is not None:
            self.sequence_mixer = twin(layer.sequence_mixer, context)
        if layer.channel_mixer is not None:
            self.channel_mixer = twin(layer.channel_mixer, context)
        self.norm_names = frozenset(layer.norm_names)
        self.stems = tuple(
            stem for stem, present in (("sequence", self.has_sequence), ("channel", self.has_channel)) if present
        )
        self.reads_shared, self.reads_documents, self.reads_places = (
            frozenset(stem for stem in self.stems if name in inspect.signature(self._mixer(stem).forward).parameters)
            for name in ("shared", "documents", "places")
        )

    def _mixer(self, stem: str) -> Any:
        return self.get_submodule(f"{stem}_mixer")

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x) if name in self.norm_names else x

    def _read(self, stem: str, x: Tensor) -> Tensor:
        """What a mixer reads of the stream."""
        return x if self.after_residual else self._normed(f"{stem}_norm", x)

    def _added(self, stem: str, x: Tensor, mixed: Tensor) -> Tensor:
        """The stream with a mixer's output."""
        mixed = self._normed(f"{stem}_post_norm", mixed)
        factors = self.multipliers[stem]
        if factors is not None:
            return x * factors[0] + mixed * factors[1]
        return x + (mixed if self.residual_multiplier is None else mixed * self.residual_multiplier)

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """Empty caches of the mixers that keep something."""
        made = {
            stem: self._mixer(stem).new_cache(batch_size, context_length, device, dtype)
            for stem in self.stems
            if hasattr(self._mixer(stem), "new_cache")
        }
        return {stem: entry for stem, entry in made.items() if entry is not None}

    def _mixed(
        self,
        stem: str,
        x: Tensor,
        cache: LayerCache | None,
        start: int,
        shared: Any,
        documents: Documents | None,
        places: Places | None,
    ) -> Tensor:
        mixer = self._mixer(stem)
        handed: dict[str, Any] = {"shared": shared} if stem in self.reads_shared else {}
        if stem in self.reads_documents:
            handed["documents"] = documents
        elif documents is not None and hasattr(mixer, "new_cache"):
            raise ValueError(f"{type(mixer).__name__} carries a state across documents: leave document_ids out")
        if stem in self.reads_places:
            handed["places"] = places
        mixed: Tensor
        if hasattr(mixer, "new_cache"):
            mixed = mixer(x, None if cache is None else cache.get(stem), start, **handed)
        else:
            mixed = mixer(x, **handed)
        return mixed

    def forward(
        self,
        x: Tensor,
        cache: LayerCache | None = None,
        start: int = 0,
        shared: Any = None,
        documents: Documents | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """``shared``: keys and values that attention layers hand on to later ones, where the model has such.

        ``places``: what layers that ask about positions share in this pass.
        """
        if self.residual != "sequential":
            # Without norms before them both mixers read the stream itself, which is cast once for both.
            sequence_input = in_compute_type(self._read("sequence", x))
            channel_input = self._read("channel", x) if "channel_norm" in self.norm_names else sequence_input
            mixed = self._mixed("sequence", sequence_input, cache, start, shared, documents, places)
            x = self._added("sequence", x, mixed)
            return self._added(
                "channel", x, self._mixed("channel", channel_input, cache, start, shared, documents, places)
            )
        if self.has_sequence:
            mixed = self._mixed("sequence", self._read("sequence", x), cache, start, shared, documents, places)
            x = self._added("sequence", x, mixed)
            x = self._normed("sequence_norm", x) if self.after_residual else x
        if self.has_channel:
            mixed = self._mixed("channel", self._read("channel", x), cache, start, shared, documents, places)
            x = self._added("channel", x, mixed)
            x = self._normed("channel_norm", x) if self.after_residual else x
        return x


class Decoder(nn.Module):
    """A decoder-only language model built from a specification; its tensors are the planner's, name by name."""

    def __init__(self, spec: ArchitectureSpec, kernels: Kernels) -> None:
        super().__init__()
        self.spec = spec
        self.reread_beyond: int | None = None
        """Length that a text is read anew for, all of it, once it grows longer while it is generated (Phi-3)."""
        positions = spec.positions
        theta, scaling = (
            (positions.theta, positions.scaling) if isinstance(positions, RotaryPositions) else (None, None)
        )
        alibi = positions if isinstance(positions, AlibiPositions) else None
        context = BuildContext(spec.hidden_size, spec.norm, theta, kernels, alibi, scaling)
        width = embedding_width(spec)
        self.embed_tokens = nn.Embedding(spec.vocab_size, width)
        if spec.embedding_size is not None:
            self.embedding_in = nn.Linear(width, spec.hidden_size, bias=False)
            self.embedding_out = nn.Linear(spec.hidden_size, width, bias=False)
        if spec.embedding_norm:
            self.embedding_norm = stream_norm(context, keeps_type=True)
        if isinstance(spec.positions, LearnedPositions):
            rows = spec.positions.num_positions + spec.positions.offset
            self.embed_positions = nn.Embedding(rows, spec.hidden_size)
        self.shares_key_values = any(
            getattr(layer.sequence_mixer, "shares_key_values", False) for _, layer in spec.iterate_layers()
        )
        multiplier = spec.residual_multiplier
        context = replace(context, num_layers=spec.num_layers)
        self.layers = nn.ModuleList(
            DecoderLayer(layer, replace(context, layer=index), multiplier) for index, layer in spec.iterate_layers()
        )
        if spec.final_norm:
            self.final_norm = stream_norm(context)
        if not spec.tie_word_embeddings or spec.lm_head_bias:
            self.lm_head = nn.Linear(width, spec.vocab_size, bias=spec.lm_head_bias)
            if spec.tie_word_embeddings:
                self.lm_head.weight = self.embed_tokens.weight

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Normal with deviation 0.02; projections onto the stream narrower by the root of their number (GPT-2)."""
        torch.manual_seed(seed)
        residual = INITIAL_DEVIATION / math.sqrt(2 * self.spec.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2 and not name.endswith(("conv1d.weight", "A_log")):
                onto_stream = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj"))
                parameter.normal_(0.0, residual if onto_stream else INITIAL_DEVIATION)
            elif name.endswith(".bias"):
                parameter.zero_()
        for module in self.modules():
            reset_special = getattr(module, "reset_special", None)
            if reset_special is not None:
                reset_special()

    def embed(self, input_ids: Tensor, places: Places | None = None, documents: Documents | None = None) -> Tensor:
        """The stream before the first layer, (batch, positions, hidden_size); without ``places`` from position 0 on."""
        x = self.embed_tokens(input_ids)
        if self.spec.embedding_scale is not None:
            x = x * self.spec.embedding_scale
        if self.spec.embedding_size is not None:
            x = self.embedding_in(x).to(x.dtype)  # autocast would make the stream narrower here, and nowhere else
        if self.spec.embedding_norm:
            x = self.embedding_norm(x)
        positions = self.spec.positions
        if isinstance(positions, LearnedPositions):
            if places is None:
                places = Places(0, input_ids.shape[1], input_ids.device)
            rows = places.positions if documents is None else documents.positions
            if places.rows:
                rows = rows.clamp(max=positions.num_positions - 1)  # what fills a row up may stand behind the last
            end = places.start + places.length if documents is None else int(rows.max()) + 1
            if end > positions.num_positions and not places.rows:
                raise ValueError(f"the model reads {positions.num_positions} positions, not {end}")
            x = x + self.embed_positions(rows + positions.offset)
        return x

    def before_head(self, x: Tensor) -> Tensor:
        """What the head multiplies, of the stream's last state."""
        if self.spec.final_norm:
            x = self.final_norm(x)
        return x if self.spec.embedding_size is None else self.embedding_out(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits of the stream's last state."""
        x = self.before_head(x)
        if self.spec.tie_word_embeddings and not self.spec.lm_head_bias:
            logits = F.linear(x, self.embed_tokens.weight)
        else:
            logits = self.lm_head(x)
        if self.spec.logit_scale is not None:
            logits = logits * self.spec.logit_scale
        softcap = self.spec.final_logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: ModelCache | None = None,
        document_ids: Tensor | None = None,
    ) -> ModelOutput:
        """``input_ids`` and ``labels`` are (batch, positions); labels are shifted here, and -100 is left out.

        ``document_ids`` (batch, positions) tell the documents of a sequence apart, where it holds several: one goes on
        as long as its id does, each is read as if it stood alone, and none predicts the beginning of the next.
        """
        documents = None if document_ids is None else documents_of(document_ids)
        logits = self.head(self.last_states(input_ids, cache, documents))
        if labels is None:
            return ModelOutput(logits)
        if documents is not None:
            labels = labels.masked_fill(documents.positions == 0, IGNORED_LABEL)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(wide.flatten(0, 1), next_tokens(labels).flatten(), ignore_index=IGNORED_LABEL)
        return ModelOutput(logits, loss)

    def next_logits(self, input_ids: Tensor, cache: ModelCache | None = None) -> Tensor:
        """Logits (batch, vocab_size) of the token behind ``input_ids`` (batch, positions)."""
        return self.head(self.last_states(input_ids, cache)[:, -1:])[:, 0]

    def last_states(
        self,
        input_ids: Tensor,
        cache: ModelCache | None = None,
        documents: Documents | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """The stream behind the last layer, (batch, positions, hidden_size).

        ``places`` are those of the tokens where the cache's length does not tell, as rows have read differently far.
        """
        if cache is not None and documents is not None:
            raise ValueError("a cache goes on with one document a sequence: leave document_ids out")
        length = input_ids.shape[1]
        if places is None:
            places = Places(cache.length if cache is not None else 0, length, input_ids.device)
        start = places.start
        if cache is not None and start + length > cache.context_length:
            raise ValueError(f"the cache holds {cache.context_length} positions, not {start + length}")
        x = self.embed(input_ids, places, documents)
        shared: dict[Any, Any] | None = {} if self.shares_key_values else None
        for index, layer in enumerate(self.layers):
            x = layer(x, cache.entries[index] if cache is not None else None, start, shared, documents, places)
        if cache is not None and not places.rows:
            cache.length = start + length
        return x

    def loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of ``targets``, in nats, without logits of all positions: for training.

        Both are (batch, positions). A target is what the logits at its own position should give, so for text the next
        token (:func:`next_tokens`); -100 is left out. Its backward pass runs once.
        """
        states = in_compute_type(self.before_head(self.last_states(input_ids))).flatten(0, 1)
        is_tied = self.spec.tie_word_embeddings and not self.spec.lm_head_bias
        head: Any = self.embed_tokens if is_tied else self.lm_head
        bias = self.lm_head.bias if self.spec.lm_head_bias else None
        scale, softcap = self.spec.logit_scale, self.spec.final_logit_softcap
        return chunked_cross_entropy(states, head.weight, bias, targets.flatten(), IGNORED_LABEL, scale, softcap)

    def new_cache(self, batch_size: int, context_length: int) -> ModelCache:
        """Empty caches for ``batch_size`` sequences of up to ``context_length`` positions."""
        weight = self.embed_tokens.weight
        layers: Any = self.layers
        entries = [layer.new_cache(batch_size, context_length, weight.device, weight.dtype) for layer in layers]
        return ModelCache(entries, context_length)

    def stream(
        self,
        prompts: Prompts,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        alternatives: int = 0,
        use_cache: bool = True,
    ) -> Iterator[GeneratedStep]:
        """Generated tokens as they come, with their probabilities: see :func:`runners.models.generation.stream`."""
        return stream(self, prompts, max_new_tokens, sampling, alternatives=alternatives, use_cache=use_cache)

    def generate(
        self, input_ids: Tensor, max_new_tokens: int, sampling: Sampling = GREEDY, *, use_cache: bool = True
    ) -> Tensor:
        """``input_ids`` (batch, positions) with ``max_new_tokens`` more."""
        return torch.stack(generate(self, input_ids, max_new_tokens, sampling, use_cache=use_cache))

    def generate_each(
        self, prompts: Sequence[Tensor], max_new_tokens: int, sampling: Sampling = GREEDY, *, use_cache: bool = True
    ) -> list[Tensor]:
        """Each prompt (positions,) of a batch, however long, with ``max_new_tokens`` more."""
        return generate(self, prompts, max_new_tokens, sampling, use_cache=use_cache)
