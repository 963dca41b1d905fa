"""What one forward pass keeps for the backward pass: layers, residual stream, embeddings, head and loss.

The lists are those of ``runners.models`` with ``kernels="eager"`` and fused attention, tensor by tensor, and hold for
frameworks that save the same: fused attention, norms that save their input and one scale a row, gated activations that
save their two inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.components.base import FUSED, Computation, SavedTensor
from planner.quantities import Quantity
from planner.sizing import embedding_width, layer_components, layer_tensors
from planner.spec import ArchitectureSpec, Layer, LearnedPositions


@dataclass(frozen=True, slots=True)
class ActivationTypes:
    """Bytes of an element of the types that depend on the precision."""

    compute: int
    """Of the type that matrices are multiplied in."""
    residual: int
    """Of the residual stream, which autocast leaves in fp32."""
    copied: bool
    """Whether weights are copied to the compute type (autocast)."""


ACTIVATION_TYPES = {
    "fp32": ActivationTypes(compute=4, residual=4, copied=False),
    "bf16_autocast": ActivationTypes(compute=2, residual=4, copied=True),
    "bf16_mixed": ActivationTypes(compute=2, residual=2, copied=False),
    "bf16": ActivationTypes(compute=2, residual=2, copied=False),
    "fp8": ActivationTypes(compute=2, residual=2, copied=False),
}


def saved_bytes(tensor: SavedTensor, types: ActivationTypes, elements: Quantity | None = None) -> Quantity:
    """Bytes of a saved tensor, or of as many of its ``elements`` as one device holds."""
    width = {
        "compute": types.compute,
        "residual": types.residual,
        "copy": types.compute if types.copied else 0,
        "float32": 4,
        "int64": 8,
        "int32": 4,
        "bool": 1,
        "fp8": 1,
        "fp8_copy": 1,
    }[tensor.dtype_class]
    return (tensor.elements if elements is None else elements) * width


def layer_activations(
    spec: ArchitectureSpec,
    layer: Layer,
    sequence_length: Quantity,
    batch_size: Quantity,
    how: Computation = FUSED,
    dropout: bool = False,
) -> Iterator[tuple[str, SavedTensor]]:
    """What one layer keeps, each tensor with the part of the layer that keeps it.

    ``dropout``: of what each mixer adds to the stream; its mask is kept, a byte a channel (Korthikanti et al. 2022,
    arXiv:2205.05198, section 4.1).
    """
    listed: set[str] = set()
    for part, component in layer_components(spec, layer):
        for saved in component.kept(spec.hidden_size, sequence_length, batch_size, how):
            if part.endswith("post_norm"):
                if saved.dtype_class == "residual":
                    saved = replace(saved, dtype_class="compute")  # it reads the mixer's output, not the stream
            elif saved.name == "input" and layer.residual != "sequential":
                # Both norms read one tensor, and so do both mixers where they share a norm or have none before them.
                role = part.removeprefix("sequence_").removeprefix("channel_")
                is_own = role == "mixer" and "channel_norm" in layer.norm_names
                if role in listed and not is_own:
                    continue
                listed.add(role)
            yield part, saved
        if dropout and part.endswith("_mixer"):
            yield part, SavedTensor("mask of the dropout", batch_size * sequence_length * spec.hidden_size, "bool")


def outer_activations(
    spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[tuple[str, SavedTensor]]:
    """What is kept outside the layers. Logits are kept only where they are bounded: the loss reads their logarithms."""
    tokens = batch_size * sequence_length
    yield "token_embedding", SavedTensor("token ids", tokens, "int64", "whole")
    if spec.embedding_size is not None:
        yield "token_embedding", SavedTensor("embedding before its projection", tokens * spec.embedding_size)
    if spec.embedding_norm:
        for saved in spec.norm.saved_activations(spec.hidden_size, sequence_length, batch_size):
            yield "embedding_norm", saved
    if isinstance(spec.positions, LearnedPositions):
        yield "position_embedding", SavedTensor("positions", sequence_length, "int64", "whole")
    if spec.final_norm:
        for saved in spec.norm.saved_activations(spec.hidden_size, sequence_length, batch_size):
            yield "final_norm", saved
    if spec.embedding_size is not None:
        yield "lm_head", SavedTensor("stream before its projection", tokens * spec.hidden_size)
    yield "lm_head", SavedTensor("input", tokens * embedding_width(spec))
    if spec.final_logit_softcap is not None:
        yield "lm_head", SavedTensor("bounded logits", tokens * spec.vocab_size, split="tensor")
    yield "loss", SavedTensor("targets", tokens, "int64", "whole")
    yield "loss", SavedTensor("number of targets", 1, "float32", "whole")
    yield "loss", SavedTensor("log-probabilities", tokens * spec.vocab_size, "float32", "tensor")


def saved_model_activations(
    spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[tuple[str, Quantity, SavedTensor]]:
    """Everything that is kept: where (``layer_groups[0].layers[0].channel_mixer``), how many times, and what.

    Under autocast the last entry counts: copies of the weights that matrices are multiplied by.
    """
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            for part, saved in layer_activations(spec, layer, sequence_length, batch_size):
                yield f"layer_groups[{group_index}].layers[{layer_index}].{part}", group.repeats, saved
    for part, saved in outer_activations(spec, sequence_length, batch_size):
        yield part, 1, saved
    yield "weights", 1, SavedTensor("copies of multiplied weights", multiplied_weights(spec), "copy")


def multiplied_outer_weights(spec: ArchitectureSpec) -> Quantity:
    """Elements of the weights of matrix multiplications outside the layers."""
    elements = spec.vocab_size * embedding_width(spec)  # the head, tied or not
    if spec.embedding_size is not None:
        elements = elements + 2 * spec.embedding_size * spec.hidden_size
    return elements


def multiplied_weights(spec: ArchitectureSpec) -> Quantity:
    """Elements of the weights of matrix multiplications."""
    elements = multiplied_outer_weights(spec)
    for group in spec.layer_groups:
        for layer in group.layers:
            for part, tensor in layer_tensors(spec, layer):
                is_matrix = len(tensor.shape) >= 2 and tensor.is_matrix and tensor.dtype_class != "float32"
                if part.endswith("_mixer") and is_matrix and "conv1d." not in tensor.name:
                    elements = elements + tensor.count * group.repeats
    return elements
