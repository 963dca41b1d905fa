"""FLOPs of a forward pass and of a training step: matrix multiplications, a multiply-add counted as two.

``total`` is what PyTorch's FlopCounterMode counts for the plain model: attention multiplies the whole square and masks
afterwards. ``needed_total`` counts what causal and windowed masks leave, as a good kernel does. A training step costs
three forward passes: each product has two gradients, each as large (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.components.base import Operation, projection
from planner.quantities import Quantity
from planner.sizing import count_parameters, embedding_width
from planner.spec import ArchitectureSpec

TRAINING_FACTOR = 3


@dataclass(frozen=True)
class Flops:
    """FLOPs of one pass over a batch."""

    total: int
    needed_total: int
    by_component: dict[str, int]
    needed_by_component: dict[str, int]
    approximate_total: int
    """2N a token forward, 6N in training, N the active parameters without looked-up embeddings: the usual rule of
    thumb, which leaves out the scores of attention."""


def model_operations(
    spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[tuple[str, Quantity, Operation]]:
    """Operations of the forward pass: where (``layer_groups[0].layers[0].…``), how many times, and what each costs."""
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            where = f"layer_groups[{group_index}].layers[{layer_index}]"
            for stem, mixer in (("sequence_mixer", layer.sequence_mixer), ("channel_mixer", layer.channel_mixer)):
                if mixer is not None:
                    for operation in mixer.operations(spec.hidden_size, sequence_length, batch_size):
                        yield f"{where}.{stem}", group.repeats, operation
    for where, operation in outer_operations(spec, sequence_length, batch_size):
        yield where, 1, operation


def outer_operations(
    spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[tuple[str, Operation]]:
    """Operations outside the layers, each with its block."""
    tokens = batch_size * sequence_length
    width, hidden_size = embedding_width(spec), spec.hidden_size
    if spec.embedding_size is not None:
        yield "token_embedding", projection("embedding to stream", "token_embedding", tokens, width, hidden_size)
        yield "lm_head", projection("stream to embedding", "lm_head", tokens, hidden_size, width)
    yield "lm_head", projection("language model head", "lm_head", tokens, width, spec.vocab_size)


def flops(spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity = 1, training: bool = False) -> Flops:
    """FLOPs of one forward pass, or with ``training`` of forward and backward, over ``batch_size`` sequences."""
    factor = TRAINING_FACTOR if training else 1
    counted: dict[str, Quantity] = {}
    needed: dict[str, Quantity] = {}
    for _, times, operation in model_operations(spec, sequence_length, batch_size):
        scale = times * factor
        counted[operation.component] = counted.get(operation.component, 0) + operation.flops * scale
        needed[operation.component] = needed.get(operation.component, 0) + operation.needed_flops * scale
    total: Quantity = 0
    needed_total: Quantity = 0
    for component in counted:
        total = total + counted[component]
        needed_total = needed_total + needed[component]
    active = count_parameters(spec).active_without_embedding
    approximate = 2 * factor * active * sequence_length * batch_size
    return Flops(total, needed_total, counted, needed, approximate)
