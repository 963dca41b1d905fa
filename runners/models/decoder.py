"""The whole model: embedding, layers on the residual stream, final norm, head, loss and generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planner.components as components
from planner.spec import ArchitectureSpec, Layer, LearnedPositions, RotaryPositions
from runners.models.attention import Attention
from runners.models.context import BuildContext, Kernels
from runners.models.latent_attention import LatentAttention
from runners.models.mamba1 import Mamba1
from runners.models.mamba2 import Mamba2
from runners.models.mlp import MLP
from runners.models.moe import MoE
from runners.models.norms import stream_norm

TWINS: dict[type[components.Component], Callable[[Any, BuildContext], nn.Module]] = {
    components.Attention: Attention,
    components.LatentAttention: LatentAttention,
    components.Mamba1: Mamba1,
    components.Mamba2: Mamba2,
    components.MLP: MLP,
    components.MoE: MoE,
}
"""The module of each of the planner's components."""

INITIAL_DEVIATION = 0.02
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """``logits`` (batch, positions, vocab_size); ``loss``, the mean over next tokens, where labels were given."""

    logits: Tensor
    loss: Tensor | None = None


class ModelCache:
    """What generation keeps: one entry a sequence mixer, and how many positions were read."""

    def __init__(self, entries: list[Any], context_length: int) -> None:
        self.entries = entries
        self.context_length = context_length
        self.length = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All cached tensors."""
        return tuple(tensor for entry in self.entries if entry is not None for tensor in entry.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of all cached tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


class DecoderLayer(nn.Module):
    """A sequence mixer and a channel mixer on the stream, with norms before or after each, or both."""

    def __init__(self, layer: Layer, context: BuildContext) -> None:
        super().__init__()
        self.has_sequence, self.has_channel = layer.sequence_mixer is not None, layer.channel_mixer is not None
        for name in layer.norm_names:
            self.add_module(name, stream_norm(context))
        if layer.sequence_mixer is not None:
            self.sequence_mixer = TWINS[type(layer.sequence_mixer)](layer.sequence_mixer, context)
        if layer.channel_mixer is not None:
            self.channel_mixer = TWINS[type(layer.channel_mixer)](layer.channel_mixer, context)
        self.norm_names = frozenset(layer.norm_names)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x) if name in self.norm_names else x

    def forward(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        if self.has_sequence:
            mixed = self.sequence_mixer(self._normed("sequence_norm", x), cache, start)
            x = x + self._normed("sequence_post_norm", mixed)
        if self.has_channel:
            x = x + self._normed("channel_post_norm", self.channel_mixer(self._normed("channel_norm", x)))
        return x


class Decoder(nn.Module):
    """A decoder-only language model built from a specification; its tensors are the planner's, name by name."""

    def __init__(self, spec: ArchitectureSpec, kernels: Kernels) -> None:
        super().__init__()
        self.spec = spec
        theta = spec.positions.theta if isinstance(spec.positions, RotaryPositions) else None
        context = BuildContext(spec.hidden_size, spec.norm, theta, kernels)
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        if isinstance(spec.positions, LearnedPositions):
            self.embed_positions = nn.Embedding(spec.positions.num_positions, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(layer, context) for _, layer in spec.iterate_layers())
        if spec.final_norm:
            self.final_norm = stream_norm(context)
        if not spec.tie_word_embeddings or spec.lm_head_bias:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=spec.lm_head_bias)
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
            if isinstance(module, (Mamba1, Mamba2)):
                module.reset_special()

    def head(self, x: Tensor) -> Tensor:
        """Logits of the stream's last state."""
        if self.spec.final_norm:
            x = self.final_norm(x)
        if self.spec.tie_word_embeddings and not self.spec.lm_head_bias:
            logits = F.linear(x, self.embed_tokens.weight)
        else:
            logits = self.lm_head(x)
        softcap = self.spec.final_logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, cache: ModelCache | None = None) -> ModelOutput:
        """``input_ids`` and ``labels`` are (batch, positions); labels are shifted here, and -100 is left out."""
        start = cache.length if cache is not None else 0
        length = input_ids.shape[1]
        if cache is not None and start + length > cache.context_length:
            raise ValueError(f"the cache holds {cache.context_length} positions, not {start + length}")
        x = self.embed_tokens(input_ids)
        if self.spec.embedding_scale is not None:
            x = x * self.spec.embedding_scale
        if isinstance(self.spec.positions, LearnedPositions):
            if start + length > self.spec.positions.num_positions:
                raise ValueError(f"the model reads {self.spec.positions.num_positions} positions, not {start + length}")
            x = x + self.embed_positions(torch.arange(start, start + length, device=input_ids.device))
        for index, layer in enumerate(self.layers):
            x = layer(x, cache.entries[index] if cache is not None else None, start)
        if cache is not None:
            cache.length = start + length
        logits = self.head(x)
        if labels is None:
            return ModelOutput(logits)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        loss = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL)
        return ModelOutput(logits, loss)

    def new_cache(self, batch_size: int, context_length: int) -> ModelCache:
        """Empty caches for ``batch_size`` sequences of up to ``context_length`` positions."""
        weight = self.embed_tokens.weight
        entries = []
        layer: Any
        for layer in self.layers:
            mixer: Any = layer.sequence_mixer if layer.has_sequence else None
            entries.append(
                mixer.new_cache(batch_size, context_length, weight.device, weight.dtype) if mixer is not None else None
            )
        return ModelCache(entries, context_length)

    @torch.no_grad()
    def stream(
        self, input_ids: Tensor, max_new_tokens: int, temperature: float = 0.0, seed: int = 0, use_cache: bool = True
    ) -> Iterator[Tensor]:
        """Generated tokens (batch, 1), one after the other; temperature 0 takes the likeliest."""
        generator = torch.Generator(device=input_ids.device).manual_seed(seed)
        cache = self.new_cache(input_ids.shape[0], input_ids.shape[1] + max_new_tokens) if use_cache else None
        known, unread = input_ids, input_ids
        for _ in range(max_new_tokens):
            logits = self(unread if use_cache else known, cache=cache).logits[:, -1]
            if temperature == 0:
                token = logits.argmax(-1, keepdim=True)
            else:
                odds = torch.softmax(logits.float() / temperature, -1)
                token = torch.multinomial(odds, 1, generator=generator)
            known, unread = torch.cat((known, token), 1), token
            yield token

    def generate(
        self, input_ids: Tensor, max_new_tokens: int, temperature: float = 0.0, seed: int = 0, use_cache: bool = True
    ) -> Tensor:
        """``input_ids`` (batch, positions) with ``max_new_tokens`` more."""
        tokens = list(self.stream(input_ids, max_new_tokens, temperature, seed, use_cache))
        return torch.cat((input_ids, *tokens), 1)
