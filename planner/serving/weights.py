"""Bytes of every tensor of a model under a weight format, in all three readings.

A tensor of a layer stands for all layers of its group that are alike, so its bytes are those of all of them: a mixture
of GGUF types gives some of these layers more bits than others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from planner.components import Attention, MoE
from planner.components.base import Tensor
from planner.quantities import Quantity, exact_divide, floor_divide, tabulated
from planner.serving.formats import PLAIN_FORMATS, gguf_file, is_covered, is_large_matrix, scheme, scheme_bytes
from planner.serving.gguf import bytes_per_256
from planner.sizing import layer_buffers, layer_components, outer_tensors
from planner.spec import ArchitectureSpec, Layer

_ROLES = {
    ("attention", "q_proj"): "queries",
    ("attention", "k_proj"): "keys",
    ("attention", "v_proj"): "values",
    ("attention", "o_proj"): "output",
    ("latent_attention", "o_proj"): "output",
    ("latent_attention", "q_proj"): "queries",
}


def gguf_role(tensor: Tensor, fused: bool = False) -> str | None:
    """What a matrix of a layer is to the rules of GGUF files; ``None``: it stays in fp32."""
    if not is_large_matrix(tensor):
        return None
    name = tensor.name.removesuffix(".weight")
    for prefix in ("shared_expert.", "first.", "second."):
        name = name.removeprefix(prefix)
    if name.startswith("experts."):
        return "expert_down" if name.endswith("down_proj") else "expert_up"
    role = _ROLES.get((tensor.component, name))
    if role is not None:
        return "fused" if fused and role != "output" else role
    return {"up_proj": "up", "gate_proj": "up", "down_proj": "down"}.get(name, "matrix")


@dataclass(frozen=True, slots=True)
class _Run:
    """Where among its like in the model the tensors of one layer of a group lie."""

    first: Quantity
    step: int
    times: Quantity
    count: Quantity


@dataclass(frozen=True)
class Storage:
    """A specification's weights under one format."""

    spec: ArchitectureSpec
    weight_format: str

    @functools.cached_property
    def _fused(self) -> bool:
        file = gguf_file(self.weight_format)
        return file is not None and file.fused

    @functools.cached_property
    def _has_experts(self) -> bool:
        return self._experts is not None

    @functools.cached_property
    def _experts(self) -> Quantity | None:
        for group in self.spec.layer_groups:
            for layer in group.layers:
                if isinstance(layer.channel_mixer, MoE):
                    return layer.channel_mixer.num_experts
        return None

    @functools.cached_property
    def _queries_per_key(self) -> Quantity:
        for group in self.spec.layer_groups:
            for layer in group.layers:
                for _, mixer in layer.sequence_mixer.parts() if layer.sequence_mixer is not None else ():
                    if isinstance(mixer, Attention):
                        return exact_divide(mixer.num_attention_heads, mixer.num_key_value_heads)
        return 1

    @functools.cached_property
    def _runs(self) -> dict[tuple[int, int, str], _Run]:
        """By group, layer and role."""
        found: dict[tuple[int, int, str], _Run] = {}
        before: dict[str, Quantity] = {}
        spec = self.spec
        for group_index, group in enumerate(spec.layer_groups):
            roles = [self._roles(layer) for layer in group.layers]
            for role in sorted({role for each in roles for role in each}):
                carriers = [index for index, each in enumerate(roles) if role in each]
                start = before.get(role, 0)
                for position, index in enumerate(carriers):
                    found[group_index, index, role] = _Run(start + position, len(carriers), group.repeats, 0)
                before[role] = start + len(carriers) * group.repeats
        return {key: _Run(run.first, run.step, run.times, before[key[2]]) for key, run in found.items()}

    def _roles(self, layer: Layer) -> set[str]:
        roles = set()
        for _, component in layer_components(self.spec, layer):
            for tensor in component.tensors(self.spec.hidden_size):
                role = gguf_role(tensor, self._fused)
                if role is not None:
                    roles.add(role)
        return roles

    def outer(self, tensor: Tensor) -> Quantity:
        """Bytes of a tensor outside the layers."""
        file = gguf_file(self.weight_format)
        if file is not None:
            if len(tensor.shape) < 2 or tensor.name == "embed_positions.weight":
                return 4 * tensor.count
            role = "matrix"
            if tensor.name == "lm_head.weight" or (tensor.name, self.spec.tie_word_embeddings) == (
                "embed_tokens.weight",
                True,
            ):
                role = "head"
            elif tensor.name == "embed_tokens.weight":
                role = "embedding"
            return self._in_blocks(tensor, file.name, role, _Run(0, 1, 1, 1))
        if self.weight_format in PLAIN_FORMATS:
            return PLAIN_FORMATS[self.weight_format] * tensor.count
        found = scheme(self.weight_format)
        if found is not None and found.covers == "head too" and tensor.name == "lm_head.weight":
            return scheme_bytes(found, tensor)
        return 2 * tensor.count

    def inner(self, group_index: int, layer_index: int, tensor: Tensor) -> Quantity:
        """Bytes of a tensor of a layer, of all layers of the group together that have it at this place."""
        repeats = self.spec.layer_groups[group_index].repeats
        if tensor.dtype_class == "float32":
            return 4 * tensor.count * repeats
        file = gguf_file(self.weight_format)
        if file is not None:
            role = gguf_role(tensor, file.fused)
            if role is None:
                return 4 * tensor.count * repeats
            return self._in_blocks(tensor, file.name, role, self._runs[group_index, layer_index, role])
        if self.weight_format in PLAIN_FORMATS:
            return PLAIN_FORMATS[self.weight_format] * tensor.count * repeats
        found = scheme(self.weight_format)
        if found is not None and is_covered(found, tensor, self._has_experts):
            return scheme_bytes(found, tensor) * repeats
        return 2 * tensor.count * repeats

    def _in_blocks(self, tensor: Tensor, file: str, role: str, run: _Run) -> Quantity:
        inputs = tensor.shape[-1]
        per_256 = tabulated(
            f"{file}_{role}",
            functools.partial(bytes_per_256, file, role),
            inputs - 256 * floor_divide(inputs, 256),
            self._queries_per_key,
            1 if self._experts is None else self._experts,
            self._layers,
            run.first,
            run.step,
            run.times,
            run.count,
        )
        return exact_divide(tensor.count * per_256, 256)

    @functools.cached_property
    def _layers(self) -> Quantity:
        layers: Quantity = 0
        for group in self.spec.layer_groups:
            layers = layers + len(group.layers) * group.repeats
        return layers

    def tensors(self) -> Iterator[tuple[int, int, str, Tensor, Quantity]]:
        """Group, layer, part, tensor and bytes of every tensor and persistent buffer of the layers."""
        for group_index, group in enumerate(self.spec.layer_groups):
            for layer_index, layer in enumerate(group.layers):
                for part, component in layer_components(self.spec, layer):
                    for tensor in component.tensors(self.spec.hidden_size):
                        yield group_index, layer_index, part, tensor, self.inner(group_index, layer_index, tensor)
                for part, buffer in layer_buffers(self.spec, layer):
                    yield group_index, layer_index, part, buffer, 4 * buffer.count * group.repeats


def weights_bytes(spec: ArchitectureSpec, weight_format: str = "bf16") -> Quantity:
    """Bytes of all weights and persistent buffers; works on all three readings."""
    storage = Storage(spec, weight_format)
    total: Quantity = 0
    for tensor in outer_tensors(spec):
        total = total + storage.outer(tensor)
    for _, _, _, _, held in storage.tensors():
        total = total + held
    return total
