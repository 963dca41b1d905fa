"""What one layer takes on one device: what it keeps, what its backward pass makes, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from planner.activations import ACTIVATION_TYPES, layer_activations, saved_bytes
from planner.components.base import Component, SavedTensor, Tensor
from planner.components.latent_attention import LatentAttention
from planner.components.mlp import MLP
from planner.components.moe import MoE
from planner.plans import TrainingPlan
from planner.quantities import Quantity, exact_divide
from planner.sizing import layer_tensors
from planner.spec import ArchitectureSpec, Layer
from planner.training.engine import Division, computation_of, divided, engine_of, is_many
from planner.training.narrow import directions, in_fp8, is_cast
from planner.training.states import state_bytes

Parameter = tuple[str, Tensor, Quantity]
"""The part of a layer that holds a parameter, the parameter, and the elements of it that a device has."""


@dataclass(frozen=True, slots=True)
class Step:
    """A moment within the backward pass of a mixer."""

    freed: Quantity
    """Bytes of what the mixer kept that are gone by then."""
    made: Quantity
    """Bytes that are alive beside."""
    gradients: Quantity = 0
    """Bytes of the mixer's gradients that are made by then."""


@dataclass(frozen=True, slots=True)
class MixerCost:
    """One mixer, with the norms around it, in the order of the forward pass."""

    saved: Quantity
    """Bytes that its backward pass reads, weights cast by autocast included."""
    again: Quantity
    """Those of them that selective recomputation makes again."""
    steps: tuple[Step, ...]
    gradients: Quantity
    """Bytes of its parameters' gradients."""
    copies: Quantity
    """Bytes of the weights that autocast copies."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer."""

    mixers: tuple[MixerCost, ...]
    kept: Quantity
    """Bytes from its forward pass to its backward pass."""
    again: Quantity
    """Bytes that appear when it is computed again, before its backward pass; zero where it is not."""
    gradients: Quantity
    copies: Quantity
    """Bytes of its weights that autocast copies."""
    weights: Quantity
    """Bytes of its weights, whole."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens of one micro batch, as one device sees them."""

    sequence_length: Quantity
    """Of the whole sequence."""
    positions: Quantity
    """Of it that lie on the device."""
    batch_size: Quantity

    @property
    def tokens(self) -> Quantity:
        """On the device, whole under tensor parallelism."""
        return self.positions * self.batch_size


def layer_cost(spec: ArchitectureSpec, layer: Layer, plan: TrainingPlan, division: Division, shape: Shape) -> LayerCost:
    """What a layer takes under a plan."""
    mixers = tuple(_mixers(spec, layer, plan, division, shape))
    saved = _sum(mixer.saved for mixer in mixers)
    gradients = _sum(mixer.gradients for mixer in mixers)
    copies = _sum(mixer.copies for mixer in mixers)
    width = state_bytes(plan).weight
    weights: Quantity = 0
    for _, tensor in layer_tensors(spec, layer):
        own = 4 if tensor.dtype_class == "float32" else width
        weights = weights + own * division.of_parameter(tensor.count, tensor.split)
    if plan.recompute == "none":
        return LayerCost(mixers, saved, 0, gradients, copies, weights)
    if plan.recompute == "selective":
        again = _sum(mixer.again for mixer in mixers)
        return LayerCost(mixers, saved - again, again, gradients, copies, weights)
    # The layer's input alone is kept; its first norm, or its mixer, reads that very tensor.
    types = ACTIVATION_TYPES[plan.precision]
    entry = division.of(types.residual * shape.tokens * spec.hidden_size, "stream")
    return LayerCost(mixers, entry, saved - entry, gradients, copies, weights)


def kept_by_part(
    spec: ArchitectureSpec, layer: Layer, plan: TrainingPlan, division: Division, shape: Shape
) -> Iterator[tuple[str, str, Quantity]]:
    """What a layer keeps from its forward to its backward pass: part, name and bytes; they sum to ``kept``."""
    types = ACTIVATION_TYPES[plan.precision]
    if plan.recompute == "full":
        size = types.residual * shape.tokens * spec.hidden_size
        yield layer.parts[0], "the layer's input", division.of(size, "stream")
        return
    for part, saved in _listed(spec, layer, plan, shape):
        if not is_made_again(spec, layer, part, saved, plan):
            yield part, saved.name, saved_bytes(saved, types, division.of(saved.elements, saved.split))
    if types.copied:
        for part, tensor in layer_tensors(spec, layer):
            if is_cast(tensor):
                size = types.compute * division.of_parameter(tensor.count, tensor.split)
                yield part, f"{tensor.name}, cast", size


def _listed(spec: ArchitectureSpec, layer: Layer, plan: TrainingPlan, shape: Shape) -> list[tuple[str, SavedTensor]]:
    """What a layer keeps under a plan, each tensor with the part of the layer that keeps it."""
    how = computation_of(plan, shape.sequence_length)
    listed = list(layer_activations(spec, layer, shape.positions, shape.batch_size, how, plan.dropout != 0))
    if plan.precision != "fp8":
        return listed
    found: list[tuple[str, SavedTensor]] = []
    for part, of_part in groupby(listed, key=lambda entry: entry[0]):
        tensors = [tensor for _, tensor in of_part]
        mixer = {"sequence_mixer": layer.sequence_mixer, "channel_mixer": layer.channel_mixer}.get(part)
        found.extend((part, tensor) for tensor in (tensors if mixer is None else in_fp8(tensors, mixer, plan)))
    return found


def _sum(values: Iterator[Quantity]) -> Quantity:
    total: Quantity = 0
    for value in values:
        total = total + value
    return total


def _mixers(
    spec: ArchitectureSpec, layer: Layer, plan: TrainingPlan, division: Division, shape: Shape
) -> Iterator[MixerCost]:
    types = ACTIVATION_TYPES[plan.precision]
    engine = engine_of(plan)
    stream = division.of(types.residual * shape.tokens * spec.hidden_size, "stream")
    parameters = [
        (part, tensor, division.of_parameter(tensor.count, tensor.split)) for part, tensor in layer_tensors(spec, layer)
    ]
    listed = _listed(spec, layer, plan, shape)
    for stem, mixer in (("sequence", layer.sequence_mixer), ("channel", layer.channel_mixer)):
        if mixer is None:
            continue
        own_listed = [(part, tensor) for part, tensor in listed if part.startswith(stem)]
        tensors = [tensor for _, tensor in own_listed]
        sizes = [saved_bytes(tensor, types, division.of(tensor.elements, tensor.split)) for tensor in tensors]
        saved = _sum(iter(sizes))
        again = _sum(
            size
            for (part, tensor), size in zip(own_listed, sizes, strict=True)
            if is_made_again(spec, layer, part, tensor, plan)
        )
        own_parameters = [entry for entry in parameters if entry[0].startswith(stem)]
        copies, gradients = _of_parameters(own_parameters, plan)
        saved = saved + copies
        if engine.is_megatron:
            steps = _in_order(tensors, sizes, stream, plan)
            if plan.sequence_parallel and is_many(division.tensor):
                # The gradient of the output is gathered from all positions, for the weight and for the input.
                width = directions(plan) if plan.precision == "fp8" else types.compute
                gathered = width * shape.tokens * spec.hidden_size
                steps = [Step(step.freed, step.made + gathered) for step in steps]
        else:
            steps = list(_by_operators(spec, mixer, own_parameters, plan, division, shape, tensors, sizes, stream))
        yield MixerCost(saved, again, tuple(steps), gradients, copies)


def is_made_again(spec: ArchitectureSpec, layer: Layer, part: str, tensor: SavedTensor, plan: TrainingPlan) -> bool:
    """Whether selective recomputation makes a tensor of a layer again, by the modules that the plan names.

    Attention's core: Korthikanti et al. 2022 (arXiv:2205.05198, section 5); the others as Megatron-Core has them.
    """
    if plan.recompute != "selective":
        return False
    modules = plan.recompute_modules
    if tensor.core:
        return "core_attn" in modules
    if not part.endswith("_mixer"):
        return False
    stem = part.removesuffix("_mixer")
    if tensor.name == "input":
        return (
            "layernorm" in modules and f"{stem}_norm" in layer.norm_names and layer.norm_placement != "after_residual"
        )
    mixer = layer.sequence_mixer if stem == "sequence" else layer.channel_mixer
    if isinstance(mixer, MoE):
        return "moe" in modules or ("moe_act" in modules and tensor.name == "activated")
    if isinstance(mixer, MLP):
        return "mlp" in modules
    is_expanded = tensor.name in ("queries", "keys", "values")
    return isinstance(mixer, LatentAttention) and "mla_up_proj" in modules and is_expanded


def _in_order(tensors: list[SavedTensor], sizes: list[Quantity], stream: Quantity, plan: TrainingPlan) -> list[Step]:
    """A backward pass of fused kernels, operation by operation, from the last to the first.

    Each makes the gradient of what it reads while that of its output is there, then both its output's gradient and what
    it had kept are freed. A product in fp8 also casts the gradient of its output, by rows and by columns.
    """
    wide = ACTIVATION_TYPES[plan.precision].compute
    steps: list[Step] = []
    freed: Quantity = 0
    behind = stream
    index = len(tensors) - 1
    while index >= 0:
        first = index
        while first > 0 and tensors[first].together:
            first -= 1
        made: Quantity = 0
        for tensor, size in zip(tensors[first : index + 1], sizes[first : index + 1], strict=True):
            if tensor.dtype_class in ("compute", "residual"):
                made = made + size
            elif tensor.dtype_class == "fp8":
                made = made + wide * size
        casts: Quantity = 0
        if tensors[index].dtype_class.startswith("fp8"):
            casts = exact_divide(directions(plan) * behind, wide)
        steps.append(Step(freed, behind + made + casts))
        freed = freed + _sum(iter(sizes[first : index + 1]))
        if isinstance(made, int) and made == 0:
            made = behind  # statistics and indices: no gradient comes out of them
        behind = made
        index = first - 1
    return steps


def _by_operators(
    spec: ArchitectureSpec,
    mixer: Component,
    parameters: list[Parameter],
    plan: TrainingPlan,
    division: Division,
    shape: Shape,
    tensors: list[SavedTensor],
    sizes: list[Quantity],
    stream: Quantity,
) -> Iterator[Step]:
    """A backward pass of PyTorch's operators: the moments that the mixer itself knows, beside the stream's gradient."""
    types, width = ACTIVATION_TYPES[plan.precision], state_bytes(plan).gradient
    counts = [(tensor.name, count, is_cast(tensor)) for part, tensor, count in parameters if part.endswith("_mixer")]
    scores: Quantity = 0
    if plan.attention == "eager":
        # Gradients of the weights of the values, and of the scores that these were made from.
        scores = 2 * _sum(size for tensor, size in zip(tensors, sizes, strict=True) if tensor.core)
    own = mixer.under(spec.positions.kind)
    for moment in own.backward_moments(spec.hidden_size, shape.positions, shape.batch_size):
        made = stream + scores
        for tensor in moment.made:
            made = made + saved_bytes(tensor, types, division.of(tensor.elements, tensor.split))
        freed = _sum(size for tensor, size in zip(tensors, sizes, strict=True) if tensor.name in moment.freed)
        for name, count, has_copy in counts:
            if types.copied and has_copy and name.startswith((*moment.ready, *moment.cast, *moment.copied)):
                freed = freed + types.compute * count  # autograd lets the copy go with the product's backward pass
            if name.startswith(moment.fresh):
                made = made + (types.compute if types.copied else width) * count
            if name.startswith(moment.copied):
                made = made + 2 * width * count
            if name.startswith(moment.cast):
                made = made + (width + (types.compute if types.copied else 0)) * count
        ready = _sum(width * count for name, count, _ in counts if name.startswith(moment.ready))
        yield Step(freed, made, ready)


def _of_parameters(parameters: list[Parameter], plan: TrainingPlan) -> tuple[Quantity, Quantity]:
    """Bytes of a mixer's cast weights and of its gradients."""
    types, width = ACTIVATION_TYPES[plan.precision], state_bytes(plan).gradient
    copies: Quantity = 0
    gradients: Quantity = 0
    for _, parameter, count in parameters:
        gradients = gradients + width * count
        if types.copied and is_cast(parameter):
            copies = copies + types.compute * count
    return copies, gradients


def multiplied_shapes(
    spec: ArchitectureSpec, layer: Layer, division: Division
) -> Iterator[tuple[str, tuple[Quantity, Quantity]]]:
    """Shapes of a layer's weights as an engine holds them that fuses projections of one input, each with a name.

    Queries, keys and values are one matrix, and so are gate and up projection; of experts, one has its own.
    """
    fused: dict[str, tuple[Quantity, Quantity]] = {}
    for part, tensor in layer_tensors(spec, layer):
        if not is_cast(tensor):
            continue
        outputs, inputs = tensor.shape[-2], tensor.shape[-1]
        owner = f"{part}.{tensor.name.rpartition('.')[0].rpartition('.')[0]}"
        if tensor.split == "experts":
            # What divides an expert divides its inner width: the outputs of the first matrix, the inputs of the second.
            is_first = "down_proj" not in tensor.name
            degree = division.expert_tensor
            yield (
                f"{part}.{tensor.name}",
                ((divided(outputs, degree), inputs) if is_first else (outputs, divided(inputs, degree))),
            )
        elif tensor.split == "columns" and len(tensor.shape) == 2:
            outputs = division.of_parameter(outputs, "columns")
            name = f"{owner} over {inputs}"
            before = fused.get(name)
            fused[name] = (outputs if before is None else before[0] + outputs, inputs)
        elif tensor.split == "rows":
            yield f"{part}.{tensor.name}", (outputs, division.of_parameter(inputs, "rows"))
        else:
            yield f"{part}.{tensor.name}", (outputs, inputs)
    yield from fused.items()
