"""Softmax attention, the twin of :mod:`planner.components.attention`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import planner.components as components
from planner.components.patterns import MaskPattern
from runners.kernels.attention_blocks import Places as KeyPlaces
from runners.kernels.causal_attention import LARGEST_HEAD_DIM, triton_causal_attention
from runners.kernels.choice import takes_triton
from runners.models.block_sparse import block_sparse_attention, takes_blocks
from runners.models.context import BuildContext, in_compute_type
from runners.models.documents import Documents, check_documents
from runners.models.norms import inner_norm
from runners.models.places import Places
from runners.models.query_key_norm import QueryKeyNorm
from runners.models.rotary import Rotation, rotated
from runners.models.scores import Scores, attend, linear_slopes


class AttentionCache:
    """Keys and values (batch, num_key_value_heads, slots, channels) of the positions that the mask still shows.

    Of the slots the first are a ring of the latest positions, where p stands at slot p modulo its size. Behind it stand
    the positions that are remembered for good and that the ring will have left, in their order.
    """

    def __init__(self, keys: Tensor, values: Tensor, pattern: MaskPattern, context_length: int) -> None:
        self.keys, self.values, self.pattern, self.context_length = keys, values, pattern, context_length
        self.ring = context_length if pattern.recent is None else min(context_length, pattern.recent)
        self.remembers = pattern.global_tokens is not None or pattern.chunk_summaries is not None
        if self.remembers:
            left = torch.arange(context_length - self.ring, device=keys.device)
            self.remembered = left[pattern.remembers(left)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        return self.keys, self.values

    @cached_property
    def rows(self) -> list[AttentionCache]:
        """The cache of each sequence, which holds the same memory."""
        parts = zip(self.keys.split(1), self.values.split(1), strict=True)
        return [AttentionCache(keys, values, self.pattern, self.context_length) for keys, values in parts]

    def before(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of what is held of the positions before ``start``, in order."""
        first = max(0, start - self.ring)
        positions = torch.arange(first, start, device=self.keys.device)
        slots = positions % self.ring
        if self.remembers:
            left = self.pattern.remembered(first)
            positions = torch.cat((self.remembered[:left], positions))
            slots = torch.cat((torch.arange(self.ring, self.ring + left, device=slots.device), slots))
        return self.keys[:, :, slots], self.values[:, :, slots], positions

    def held(self, end: int) -> Tensor:
        """The position of each slot that is taken when ``end`` positions were read; those slots come first."""
        slots = torch.arange(min(end, self.ring), device=self.keys.device)
        if end <= self.ring:
            return slots
        positions = end - 1 - (end - 1 - slots) % self.ring
        if self.remembers:
            positions = torch.cat((positions, self.remembered[: self.pattern.remembered(end - self.ring)]))
        return positions

    def extended(self, keys: Tensor, values: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """What is held with new keys and values, which are held from now on; the positions of all.

        Nothing is copied where what a query sees is still held when the last of the new is: until one leaves the ring,
        and for a single query.
        """
        start, end = places.start, places.start + places.length
        is_enough = end <= self.ring or places.length == 1
        if is_enough and keys.dtype == self.keys.dtype and not torch.is_grad_enabled():
            self.write(keys, values, start)
            positions = places.once((self.pattern, "held"), lambda: self.held(end))
            count = positions.shape[0]
            return self.keys[:, :, :count], self.values[:, :, :count], positions
        old_keys, old_values, old_positions = self.before(start)
        self.write(keys, values, start)
        if start == 0:
            return keys, values, places.positions
        keys = torch.cat((old_keys.to(keys.dtype), keys), 2)
        values = torch.cat((old_values.to(values.dtype), values), 2)
        return keys, values, torch.cat((old_positions, places.positions))

    def write(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Hold new keys and values whose first stands at position ``start``."""
        length = keys.shape[2]
        if start + length <= self.ring:
            self.keys[:, :, start : start + length] = keys
            self.values[:, :, start : start + length] = values
        else:
            first = max(0, length - self.ring)
            slots = torch.arange(start + first, start + length, device=keys.device) % self.ring
            self._put(keys[:, :, first:], values[:, :, first:], slots)
        if self.remembers:
            begin, end = (self.pattern.remembered(position) for position in (start, start + length))
            new = self.remembered[begin:end] - start
            slots = torch.arange(self.ring + begin, self.ring + begin + new.shape[0], device=keys.device)
            self._put(keys[:, :, new], values[:, :, new], slots)

    def _put(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self.keys[:, :, slots] = keys.to(self.keys.dtype)
        self.values[:, :, slots] = values.to(self.values.dtype)


def rotation_of(component: components.Attention | components.LatentAttention, context: BuildContext) -> Rotation | None:
    """How a layer rotates queries and keys; ``None`` where the model's positions are not rotary."""
    theta = component.rope_theta or context.rope_theta
    if theta is None:
        return None
    return Rotation(component.rotary_dim, theta, component.rope_scaling or context.rope_scaling)


class _SoftplusFunction(torch.autograd.Function):
    """Saves its input in its own type; autocast would widen it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.softplus(x if x.dtype == torch.float64 else x.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, computed in fp32 (or fp64) and returned in ``x``'s type."""
    result: Tensor = _SoftplusFunction.apply(x)
    return result


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.Attention, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        self.rotation = rotation_of(component, context)
        heads, key_heads = component.num_attention_heads, component.num_key_value_heads
        self.value_dim = component.value_head_dim or component.head_dim
        hidden, bias = context.hidden_size, component.query_key_value_bias
        self.q_proj = nn.Linear(hidden, heads * component.head_dim, bias=bias)
        if not component.shares_key_values:
            self.k_proj = nn.Linear(hidden, key_heads * component.head_dim, bias=bias)
            self.v_proj = nn.Linear(hidden, key_heads * self.value_dim, bias=bias)
        if component.output_gate is not None:
            gates = heads * (self.value_dim if component.output_gate == "elementwise" else 1)
            self.gate_proj = nn.Linear(hidden, gates, bias=bias)
        self.o_proj = nn.Linear(heads * self.value_dim, hidden, bias=component.output_bias)
        if component.sub_norm:
            self.sub_norm = inner_norm(context, heads * self.value_dim)
        if component.query_key_norm is not None:
            self.q_norm = QueryKeyNorm(component, heads, context)
            if not component.shares_key_values:
                self.k_norm = QueryKeyNorm(component, key_heads, context)
        self.sinks = nn.Parameter(torch.zeros(heads)) if component.sinks else None
        scale = component.softmax_scale or component.head_dim**-0.5
        slopes = None
        if context.alibi is not None:
            steepness = scale if context.alibi.scaled else 1.0
            slopes = tuple(steepness * slope for slope in linear_slopes(heads, context.alibi.max_bias))
        self.scores = Scores(scale, component.logit_softcap, slopes)
        self.is_simple = self.scores.are_plain and self.sinks is None

    def new_cache(
        self, batch_size: int, context_length: int, device: torch.device, dtype: torch.dtype
    ) -> AttentionCache | None:
        """An empty cache with the shapes that the planner counts; ``None`` where another layer's is read."""
        if self.component.shares_key_values:
            return None
        shapes = [entry.shape for entry in self.component.cache(self.o_proj.out_features, context_length)]
        made = [torch.zeros(batch_size, *shape, device=device, dtype=dtype) for shape in shapes]
        return AttentionCache(made[0], made[1], self.component.pattern, context_length)

    def forward(
        self,
        x: Tensor,
        cache: AttentionCache | None = None,
        start: int = 0,
        shared: dict[Any, Any] | None = None,
        documents: Documents | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """``shared`` holds earlier layers' keys and values of this pass and their positions, by the mask (and within
        each row's, where rows have places of their own), and receives this layer's."""
        x = in_compute_type(x)
        component = self.component
        batch, length, _ = x.shape
        if places is None:
            places = Places(start, length, x.device)
        norm = self.q_norm if component.query_key_norm is not None else None
        query = self._placed(self.q_proj(x), component.num_attention_heads, norm, places)
        own = () if component.shares_key_values else self._key_values(x, places)
        mixed = self._attended(query, own, cache, places, shared, documents).transpose(1, 2)
        if component.output_gate is not None:
            scores = self.gate_proj(x)
            gate = torch.sigmoid(scores) if component.output_gate_activation == "sigmoid" else softplus(scores)
            mixed = mixed * gate.view(batch, length, component.num_attention_heads, -1)
        mixed = mixed.reshape(batch, length, -1).contiguous()
        return self.o_proj(self.sub_norm(mixed) if component.sub_norm else mixed)

    def _placed(self, projected: Tensor, heads: int, norm: QueryKeyNorm | None, places: Places) -> Tensor:
        """Queries or keys (batch, heads, positions, head_dim) from their projection: normalized, clamped, rotated."""
        is_last = self.component.query_key_norm_after_rope
        x = projected.view(*projected.shape[:2], heads, -1)
        if norm is not None and not is_last:
            x = norm(x)
        x = rotated(self._clamped(x).transpose(1, 2), places, self.rotation, self.kernels)
        if norm is not None and is_last:
            x = norm(x.transpose(1, 2)).transpose(1, 2)
        return x

    def _clamped(self, x: Tensor) -> Tensor:
        bound = self.component.query_key_value_clip
        return x if bound is None else x.clamp(-bound, bound)

    def _key_values(self, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """The layer's own keys and values of the tokens of this pass."""
        heads = self.component.num_key_value_heads
        norm = self.k_norm if self.component.query_key_norm is not None else None
        key = self._placed(self.k_proj(x), heads, norm, places)
        value = self.v_proj(x)
        if self.component.value_multiplier is not None:
            value = value * self.component.value_multiplier
        return key, self._clamped(value.view(*value.shape[:2], heads, -1)).transpose(1, 2)

    def _attended(
        self,
        query: Tensor,
        own: tuple[Tensor, ...],
        cache: AttentionCache | None,
        places: Places,
        shared: dict[Any, Any] | None,
        documents: Documents | None,
    ) -> Tensor:
        """Values mixed over ``own`` keys and values and those before; over another layer's, where it has none."""
        if places.rows:
            # Rows that have read differently far see differently many keys.
            each = [
                self._attended(
                    query[row : row + 1],
                    tuple(part[row : row + 1] for part in own),
                    None if cache is None else cache.rows[row],
                    its_places,
                    None if shared is None else shared.setdefault(row, {}),
                    None,
                )
                for row, its_places in enumerate(places.rows)
            ]
            return torch.cat(each)
        pattern, length = self.component.pattern, places.length
        if not own:
            assert shared is not None, "a layer that shares keys and values is run by the decoder, which hands them on"
            key, value, key_positions = shared[pattern]
        else:
            key, value, key_positions = (
                (*own, places.positions) if cache is None else cache.extended(own[0], own[1], places)
            )
            if shared is not None:
                shared[pattern] = key, value, key_positions
        if documents is not None:
            check_documents(self.rotation)
        widest = query if query.shape[-1] >= value.shape[-1] else value
        if takes_triton(self.kernels, widest, LARGEST_HEAD_DIM) and (
            self.scores.are_plain and self._is_for_triton(query, documents)
        ):
            if length == 1 and pattern.recent is not None and not pattern.is_window:
                # The kernel takes the query for the last of the keys, and a ring may have turned.
                order = key_positions.argsort()
                key, value, key_positions = key[:, :, order], value[:, :, order], key_positions[order]
            stand = self._key_places(query, key_positions, documents)
            return triton_causal_attention(query, key, value, self.scores.scale, pattern, self.sinks, stand)
        if documents is not None:
            return attend(query, key, value, documents.sees(pattern), self.scores, self.kernels, self.sinks)
        if self.is_simple and takes_blocks(self.kernels, pattern, query, key):
            return block_sparse_attention(query, key, value, pattern, self.scores.scale)
        gaps = (places.positions, key_positions) if pattern.recent is not None and key.shape[2] > length else None
        mask = self._mask(key_positions, places)
        return attend(query, key, value, mask, self.scores, self.kernels, self.sinks, gaps)

    def _mask(self, key_positions: Tensor, places: Places) -> Tensor | None:
        """Which keys each query sees (queries, keys); ``None`` where it is all before it, and all up to the last."""
        pattern, keys = self.component.pattern, key_positions.shape[0]
        if places.length == 1:
            # Of a window the ring has left nothing but what is seen, where it was written before it is read.
            sees_all = pattern.is_causal or (pattern.is_window and keys <= (pattern.sliding_window or 0))
        else:
            sees_all = pattern.is_causal and keys == places.length
        if sees_all:
            return None
        seen: Tensor = places.once(
            (pattern, keys), lambda: pattern.sees(places.positions[:, None], key_positions[None, :])
        )
        return seen

    def _is_for_triton(self, query: Tensor, documents: Documents | None) -> bool:
        """Whether Triton's kernel is the one to take where the choice is left; where it is demanded, always."""
        if self.kernels == "triton" or self.component.pattern.is_window:
            return True
        # PyTorch's own kernel is the faster one for a plain causal mask, and one query is no work to make lists for.
        plain = self.component.pattern.is_causal and documents is None and self.sinks is None
        return not plain and query.shape[2] > 1

    def _key_places(self, query: Tensor, key_positions: Tensor, documents: Documents | None) -> KeyPlaces | None:
        """Where keys stand, unless one behind the other from 0 on; a window knows nothing but distances."""
        if documents is not None:
            return KeyPlaces(documents.positions, documents.numbers)
        pattern = self.component.pattern
        left = key_positions.shape[0] > query.shape[2] and pattern.recent is not None and not pattern.is_window
        return KeyPlaces(key_positions[None]) if left else None
