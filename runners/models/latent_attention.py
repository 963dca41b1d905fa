"""Multi-head latent attention, the twin of :mod:`planner.components.latent_attention`."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

import planner.components as components
from planner.components.patterns import CAUSAL
from runners.models.attention import rotation_of
from runners.models.context import BuildContext, empty_cache, in_compute_type
from runners.models.documents import Documents, check_documents
from runners.models.norms import inner_norm
from runners.models.places import Places
from runners.models.rotary import joined, rotated
from runners.models.scores import Scores, attend


class LatentCache:
    """The normalized latent and the rotated key of each position, shared by all heads."""

    def __init__(self, latent: Tensor, rotated: Tensor) -> None:
        self.latent, self.rotated = latent, rotated

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return self.latent, self.rotated

    @cached_property
    def rows(self) -> list[LatentCache]:
        """The cache of each sequence, which holds the same memory."""
        return [LatentCache(*parts) for parts in zip(self.latent.split(1), self.rotated.split(1), strict=True)]

    def write(self, latent: Tensor, rotated: Tensor, places: Places) -> None:
        """Hold what is new, (batch, positions, channels) each."""
        if places.rows:
            for each in zip(self.rows, latent.split(1), rotated.split(1), places.rows, strict=True):
                LatentCache.write(*each)
            return
        end = places.start + places.length
        self.latent[:, places.start : end] = latent
        self.rotated[:, places.start : end] = rotated


class LatentAttention(nn.Module):
    """Latent attention over x (batch, positions, hidden_size).

    Without a cache keys and values are expanded from the latent. With one, where few positions read many, the expansion
    is absorbed into queries and outputs (DeepSeek-V2, arXiv:2405.04434, section 2.1.2), so that nothing wider than the
    latent is read. Long pieces of a prompt take the fewer FLOPs of the two.
    """

    def __init__(self, component: components.LatentAttention, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        self.rotation = rotation_of(component, context) if component.rotated else None
        hidden, heads = context.hidden_size, component.num_attention_heads
        query_width = heads * (component.qk_nope_head_dim + component.qk_rope_head_dim)
        bias = component.attention_bias
        if component.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, query_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, component.q_lora_rank, bias=bias)
            self.q_a_norm = inner_norm(context, component.q_lora_rank, component.latent_norm_epsilon)
            self.q_b_proj = nn.Linear(component.q_lora_rank, query_width, bias=False)
        self.kv_a_proj = nn.Linear(hidden, component.kv_lora_rank + component.qk_rope_head_dim, bias=bias)
        self.kv_a_norm = inner_norm(context, component.kv_lora_rank, component.latent_norm_epsilon)
        expanded = heads * (component.qk_nope_head_dim + component.v_head_dim)
        self.kv_b_proj = nn.Linear(component.kv_lora_rank, expanded, bias=False)
        self.o_proj = nn.Linear(heads * component.v_head_dim, hidden, bias=bias)

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        component = self.component
        return component.softmax_scale or (component.qk_nope_head_dim + component.qk_rope_head_dim) ** -0.5

    def new_cache(self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype) -> LatentCache:
        """An empty cache with the shapes that the planner counts."""
        entries = self.component.cache(self.o_proj.out_features, context_length)
        return LatentCache(*empty_cache(entries, batch_size, device, dtype))

    def forward(
        self,
        x: Tensor,
        cache: LatentCache | None = None,
        start: int = 0,
        documents: Documents | None = None,
        places: Places | None = None,
    ) -> Tensor:
        x = in_compute_type(x)
        component = self.component
        batch, length, _ = x.shape
        if places is None:
            places = Places(start, length, x.device)
        heads, nope, rope = component.num_attention_heads, component.qk_nope_head_dim, component.qk_rope_head_dim
        query = self.q_proj(x) if component.q_lora_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        query = query.view(batch, length, heads, nope + rope).transpose(1, 2)
        latent, key_rope = self.kv_a_proj(x).split((component.kv_lora_rank, rope), dim=-1)
        latent = self.kv_a_norm(latent)
        query_nope, query_rope = query.split((nope, rope), dim=-1)
        query_rope = rotated(query_rope, places, self.rotation, self.kernels)
        key_rope = rotated(key_rope, places, self.rotation, self.kernels)
        if cache is not None:
            cache.write(latent, key_rope, places)
            if start > 0:
                return self.o_proj(self._continued(query_nope, query_rope, cache, places))
        seen = None
        if documents is not None:
            check_documents(self.rotation)
            seen = documents.sees(CAUSAL)
        mixed = self._expanded(query_nope, query_rope, latent, key_rope, seen)
        return self.o_proj(mixed)

    def _continued(self, query_nope: Tensor, query_rope: Tensor, cache: LatentCache, places: Places) -> Tensor:
        """Mixed values of queries (batch, heads, positions, channels) against all that is cached."""
        if places.rows:
            parts = zip(query_nope.split(1), query_rope.split(1), cache.rows, places.rows, strict=True)
            return torch.cat([self._continued(*each) for each in parts])
        keys = places.start + places.length
        latent, key_rope = cache.latent[:, :keys].to(query_nope.dtype), cache.rotated[:, :keys].to(query_rope.dtype)
        seen = None
        if places.length > 1:
            seen = places.once(
                "seen",
                lambda: CAUSAL.sees(places.positions[:, None], torch.arange(keys, device=places.device)[None, :]),
            )
        costs = [self.component.mixing_flops(places.length, keys, absorbed) for absorbed in (False, True)]
        if costs[0] <= costs[1]:
            return self._expanded(query_nope, query_rope, latent, key_rope, seen)
        return self._absorbed(query_nope, query_rope, latent, key_rope, seen)

    def _expanded(
        self, query_nope: Tensor, query_rope: Tensor, latent: Tensor, key_rope: Tensor, seen: Tensor | None
    ) -> Tensor:
        """Keys and values of each head from the latents; ``seen`` as :func:`attend` takes it."""
        component = self.component
        heads = component.num_attention_heads
        expanded = self.kv_b_proj(latent).unflatten(-1, (heads, -1)).transpose(1, 2)
        key_nope, value = expanded.split((component.qk_nope_head_dim, component.v_head_dim), dim=-1)
        key = joined(key_nope, key_rope[:, None].expand(-1, heads, -1, -1))
        query = joined(query_nope, query_rope)
        mixed = attend(query, key, value.contiguous(), seen, Scores(self.scale), self.kernels)
        return mixed.transpose(1, 2).flatten(2).contiguous()

    def _absorbed(
        self, query_nope: Tensor, query_rope: Tensor, latent: Tensor, key_rope: Tensor, seen: Tensor | None
    ) -> Tensor:
        """Queries in the latent space: one head of latents and rotated keys for all of them."""
        component = self.component
        weight = self.kv_b_proj.weight.view(component.num_attention_heads, -1, component.kv_lora_rank)
        to_key, to_value = weight.to(latent.dtype).split((component.qk_nope_head_dim, component.v_head_dim), dim=1)
        narrow = torch.einsum("bhtd,hdc->bhtc", query_nope, to_key)
        scores = torch.einsum("bhtc,bsc->bhts", narrow, latent) + torch.einsum("bhtr,bsr->bhts", query_rope, key_rope)
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
        weights = torch.softmax(scores * self.scale, -1, dtype=wide)
        mixed = torch.einsum("bhts,bsc->bhtc", weights.to(latent.dtype), latent)
        return torch.einsum("bhtc,hvc->bthv", mixed, to_value).flatten(2)
