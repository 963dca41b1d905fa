"""Memory of a training step on one device: parameters, gradients, optimizer, activations, and when they are most.

What is modelled: one device, AdamW, fp32, bf16 autocast, bf16 with fp32 master weights, and pure bf16, fused
attention, no recomputation. Everything else is refused by name. The states are counted to the element; the activations
are the tensors that each component says it saves for the backward pass (:mod:`planner.activations`). Time is not
modelled yet, so the fields of time are ``None``: see ``time_note``.

A step has moments at which much is alive at once; the largest decides (``peak``). With a large vocabulary that is
mostly the start of the backward pass, where logits and their gradients meet everything that was saved; with a small
one it lies inside the backward pass, where gradients appear, saved tensors go, and each component's backward pass
needs room of its own. Gradients that stay allocated (accumulation, or master weights) are there throughout; else
PyTorch frees them between steps. The optimizer is taken to be fused: it needs no room of its own. On small models of
every component the total less the overhead is within 7% of the peak that MemTracker reports, and equal to it where
the loss decides. Against CUDA's allocator (an H200, models of 0.2 to 0.6 billion parameters) it is within 4%, but up to
9% low where grouped queries meet a window or fp32: CUDA's fused attention then needs keys repeated for every head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.activations import (
    ACTIVATION_TYPES,
    layer_activations,
    multiplied_outer_weights,
    outer_activations,
    saved_bytes,
)
from planner.components.base import Tensor
from planner.errors import Problem, UnsupportedPlan
from planner.plans import TrainingPlan
from planner.quantities import Quantity, largest
from planner.sizing import embedding_width, layer_buffers, layer_tensors, outer_tensors, trailing_tensors
from planner.spec import ArchitectureSpec, Layer

DEVICE_OVERHEAD_BYTES = 512 * 2**20
"""What a process takes on a device beside its allocator: the CUDA context and the libraries' workspaces (0.3 to 0.6 GiB
on current devices). Modelled, and no part of what an allocator reports."""

NORM_TEMPORARIES = 6
"""fp32 tensors of the stream's size while a norm runs backward: its input and gradient, the normalized and the weighted
gradient, and two on the way to the result."""

TIME_NOTE = "The time of a step is not modelled yet: measure it with a benchmark, or use a budget at a stated share."


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes that one parameter takes under a precision, with AdamW (two moments)."""

    weight: int
    gradient: int
    master: int
    moments: int


def state_bytes(plan: TrainingPlan) -> StateBytes:
    """Bytes a parameter of the plan's precision."""
    match plan.precision:
        case "fp32":
            return StateBytes(weight=4, gradient=4, master=0, moments=8)
        case "bf16_autocast":
            return StateBytes(weight=4, gradient=4, master=0, moments=8)
        case "bf16_mixed":
            gradient = 4 if plan.gradient_dtype == "fp32" else 2
            return StateBytes(weight=2, gradient=gradient, master=4, moments=8)
        case "bf16":
            return StateBytes(weight=2, gradient=2, master=0, moments=4)
    raise UnsupportedPlan.of(
        f"Training in {plan.precision} is not modelled.",
        path="precision",
        remedy="Choose fp32, bf16_autocast, bf16_mixed or bf16.",
        code="unsupported_precision",
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive at one moment of a step, in bytes."""

    name: str
    parameters_bytes: Quantity
    gradients_bytes: Quantity
    optimizer_bytes: Quantity
    activations_bytes: Quantity

    @property
    def total_bytes(self) -> Quantity:
        """All of it: what an allocator reports."""
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on the device. The single fields are whole sizes; ``parts`` is what is alive at the peak."""

    parameters_bytes: Quantity
    gradients_bytes: Quantity
    optimizer_bytes: Quantity
    activations_bytes: Quantity
    communication_bytes: Quantity
    overhead_bytes: Quantity
    moments: tuple[Moment, ...]

    @property
    def total_bytes(self) -> Quantity:
        """The largest moment and the overhead. The total less the overhead is the peak that an allocator reports."""
        peak = self.moments[0].total_bytes
        for moment in self.moments[1:]:
            peak = largest(peak, moment.total_bytes)
        return peak + self.communication_bytes + self.overhead_bytes

    @property
    def peak(self) -> Moment:
        """The moment at which most is alive."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def parts(self) -> dict[str, int]:
        """What is alive at the peak, by part; the parts sum to the total."""
        peak = self.peak
        return {
            "parameters": peak.parameters_bytes,
            "gradients": peak.gradients_bytes,
            "optimizer": peak.optimizer_bytes,
            "activations": peak.activations_bytes,
            "communication": self.communication_bytes,
            "overhead": self.overhead_bytes,
        }


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """What a way of training takes."""

    memory: TrainingMemory
    step_seconds: float | None
    tokens_per_second: float | None
    model_flops_utilization: float | None
    time_note: str
    status: str = "modelled"


def check_training_plan(plan: TrainingPlan) -> None:
    """Refuse what is not modelled, naming every field that stands in the way."""
    problems: list[Problem] = []

    def refuse(path: str, message: str, remedy: str) -> None:
        problems.append(Problem(path, message, remedy, f"unsupported_{path}"))

    if plan.precision == "fp8":
        refuse("precision", "Training in fp8 is not modelled.", "Choose fp32, bf16_autocast, bf16_mixed or bf16.")
    if plan.gradient_dtype == "fp32" and plan.precision == "bf16":
        refuse("gradient_dtype", "Pure bf16 keeps bf16 gradients.", "Choose bf16, or precision bf16_mixed.")
    if plan.optimizer != "adamw":
        refuse("optimizer", f"The optimizer {plan.optimizer} is not modelled.", "Choose adamw.")
    if plan.zero_stage != 0:
        refuse("zero_stage", "States sharded over devices are not modelled.", "Set it to 0.")
    for field in (
        "data_parallel",
        "tensor_parallel",
        "pipeline_parallel",
        "virtual_stages",
        "expert_parallel",
        "expert_tensor_parallel",
        "context_parallel",
    ):
        if getattr(plan, field) != 1:
            refuse(field, "Training on several devices is not modelled.", "Set it to 1.")
    if plan.sequence_parallel:
        refuse("sequence_parallel", "Training on several devices is not modelled.", "Set it to false.")
    if plan.recompute != "none":
        refuse("recompute", f"Recomputation ({plan.recompute}) is not modelled.", "Set it to none.")
    if plan.attention != "fused":
        refuse("attention", "Attention that keeps its scores is not modelled.", "Set it to fused.")
    if plan.dropout != 0:
        refuse("dropout", "Dropout keeps masks that are not modelled.", "Set it to 0.")
    if plan.chunked_loss:
        refuse("chunked_loss", "A loss in chunks is not modelled.", "Set it to false.")
    if plan.offload != "none":
        refuse("offload", f"Offloading ({plan.offload}) is not modelled.", "Set it to none.")
    if plan.global_batch_size is not None and plan.global_batch_size % plan.micro_batch_size:
        refuse(
            "global_batch_size",
            f"{plan.global_batch_size} sequences are no whole number of micro batches of {plan.micro_batch_size}.",
            f"Choose a multiple of {plan.micro_batch_size}.",
        )
    if problems:
        raise UnsupportedPlan(problems)


@dataclass(frozen=True, slots=True)
class States:
    """Elements of parameters by how they are kept."""

    weights: Quantity
    """Parameters that follow the precision of the model."""
    kept_in_float32: Quantity
    """Parameters that stay in fp32 whatever the precision (decay rates of state space layers)."""
    buffer_bytes: Quantity


def count_states(spec: ArchitectureSpec) -> States:
    """Elements of all parameters by how they are kept; reads numbers, arrays and symbols."""
    weights: Quantity = 0
    float32: Quantity = 0
    buffers: Quantity = 0
    for tensor in outer_tensors(spec):
        weights = weights + tensor.count
    for group in spec.layer_groups:
        for layer in group.layers:
            for _, tensor in layer_tensors(spec, layer):
                count = tensor.count * group.repeats
                if tensor.dtype_class == "float32":
                    float32 = float32 + count
                else:
                    weights = weights + count
            for _, buffer in layer_buffers(spec, layer):
                buffers = buffers + 4 * buffer.count * group.repeats
    return States(weights, float32, buffers)


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast copies a layer's parameter to bf16 and autograd keeps the copy: matrices that are multiplied."""
    multiplied = len(tensor.shape) >= 2 and tensor.is_matrix
    return multiplied and tensor.dtype_class == "weight" and "conv1d." not in tensor.name


def backward_start_bytes(
    spec: ArchitectureSpec, plan: TrainingPlan, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[tuple[str, Quantity]]:
    """What is alive when the backward pass starts, beside what the forward pass saved; in bytes, by name."""
    logits = batch_size * sequence_length * spec.vocab_size
    types = ACTIVATION_TYPES[plan.precision]
    yield "logits", types.compute * logits
    yield "gradients of the log-probabilities and of what they were made from", 2 * 4 * logits
    yield "the loss", 4
    if types.copied:
        yield "weights outside the layers, cast for multiplication", types.compute * multiplied_outer_weights(spec)


def estimate_training(spec: ArchitectureSpec, plan: TrainingPlan) -> TrainingEstimate:
    """Memory of a training step on one device.

    Raises
    ------
    UnsupportedPlan
        naming every field of the plan that is not modelled.
    """
    check_training_plan(plan)
    return TrainingEstimate(
        memory=training_memory(spec, plan, plan.sequence_length, plan.micro_batch_size),
        step_seconds=None,
        tokens_per_second=None,
        model_flops_utilization=None,
        time_note=TIME_NOTE,
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    """One mixer, with the norms around it, in the order of the forward pass."""

    saved: Quantity
    """Bytes kept from its forward to its backward pass, weights cast by autocast included."""
    working: Quantity
    """Bytes that its backward pass makes while all of that is still kept."""
    parameters: Quantity


def _stages(
    spec: ArchitectureSpec, layer: Layer, plan: TrainingPlan, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[_Stage]:
    """The mixers of a layer.

    The working set is an estimate: the gradient of the stream, and what the component says of its own backward pass.
    """
    types = ACTIVATION_TYPES[plan.precision]
    stream = types.residual * batch_size * sequence_length * spec.hidden_size
    for stem, mixer in (("sequence", layer.sequence_mixer), ("channel", layer.channel_mixer)):
        if mixer is None:
            continue
        saved: Quantity = 0
        working = stream
        for part, tensor in layer_activations(spec, layer, sequence_length, batch_size):
            if part.startswith(stem):
                saved = saved + saved_bytes(tensor, types)
        own = mixer.under(spec.positions.kind)
        for tensor in own.backward_working_set(spec.hidden_size, sequence_length, batch_size):
            working = working + saved_bytes(tensor, types)
        parameters: Quantity = 0
        stacked = False
        for part, parameter in layer_tensors(spec, layer):
            if part.startswith(stem):
                parameters = parameters + parameter.count
                if is_cast(parameter) and types.copied:
                    saved = saved + types.compute * parameter.count
                if is_cast(parameter) and len(parameter.shape) == 3 and not stacked:
                    # The gradient of all experts is made at once, while what it is made from is still kept; under
                    # autocast in bf16 first.
                    stacked = True
                    width = state_bytes(plan).gradient + (types.compute if types.copied else 0)
                    working = working + width * parameter.count
        yield _Stage(saved, working, parameters)


def training_memory(
    spec: ArchitectureSpec, plan: TrainingPlan, sequence_length: Quantity, micro_batch_size: Quantity
) -> TrainingMemory:
    """The same with quantities in place of the plan's numbers: works on all three readings."""
    states, types = state_bytes(plan), ACTIVATION_TYPES[plan.precision]
    counts = count_states(spec)
    parameters = states.weight * counts.weights + 4 * counts.kept_in_float32 + counts.buffer_bytes
    gradients = states.gradient * counts.weights + 4 * counts.kept_in_float32
    optimizer = (states.master + states.moments) * counts.weights + 8 * counts.kept_in_float32
    groups = [
        (group.repeats, [list(_stages(spec, layer, plan, sequence_length, micro_batch_size)) for layer in group.layers])
        for group in spec.layer_groups
    ]
    in_layers: Quantity = 0
    for repeats, layers in groups:
        for stages in layers:
            for stage in stages:
                in_layers = in_layers + repeats * stage.saved
    activations = in_layers
    for _, saved in outer_activations(spec, sequence_length, micro_batch_size):
        activations = activations + saved_bytes(saved, types)
    for _, alive in backward_start_bytes(spec, plan, sequence_length, micro_batch_size):
        activations = activations + alive
    held = plan.precision == "bf16_mixed" or (plan.global_batch_size or 0) > plan.micro_batch_size
    moments = [
        Moment("start of the backward pass", parameters, gradients if held else 0, optimizer, activations),
    ]
    # Whoever calls the model holds its logits, and the token ids and labels, until the step is over.
    throughout = micro_batch_size * sequence_length * (types.compute * spec.vocab_size + 2 * 8)
    made: Quantity = 0
    for tensor in trailing_tensors(spec):
        made = made + states.gradient * tensor.count
    embedding = states.gradient * spec.vocab_size * embedding_width(spec)
    if spec.tie_word_embeddings:
        made = made + embedding  # of the matrix as the head's
    kept = in_layers + throughout
    if spec.final_norm:
        moments.append(
            Moment(
                "backward pass of the final norm",
                parameters,
                gradients if held else made,
                optimizer,
                kept + NORM_TEMPORARIES * 4 * micro_batch_size * sequence_length * spec.hidden_size,
            )
        )
    for repeats, layers in reversed(groups):
        layer_saved, layer_made = _whole(layers, states)
        # Inside a group both what is kept and what is made are linear in the layers done: the most is at an end.
        for done, name in ((0, "backward pass of a group's last layers"), (repeats - 1, "of a group's first layers")):
            rest, ready = kept - done * layer_saved, made + done * layer_made
            for stages in reversed(layers):
                for stage in reversed(stages):
                    now = gradients if held else ready
                    moments.append(Moment(name, parameters, now, optimizer, rest + stage.working))
                    rest, ready = rest - stage.saved, ready + states.gradient * stage.parameters
        kept, made = kept - repeats * layer_saved, made + repeats * layer_made
    # The embedding's gradient is made whole, then added to a held one; of a tied matrix, autograd first adds it to the
    # head's, out of place.
    copies = (2 if spec.tie_word_embeddings else 0) + (1 if held else 0)
    if copies:
        alive = throughout + copies * embedding
        moments.append(Moment("backward pass of the embedding", parameters, gradients, optimizer, alive))
    moments.append(Moment("optimizer step", parameters, gradients, optimizer, throughout))
    return TrainingMemory(
        parameters_bytes=parameters,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        communication_bytes=0,
        overhead_bytes=DEVICE_OVERHEAD_BYTES,
        moments=tuple(moments),
    )


def _whole(layers: list[list[_Stage]], states: StateBytes) -> tuple[Quantity, Quantity]:
    """Bytes that one repeat of a group keeps, and those of its gradients."""
    saved: Quantity = 0
    made: Quantity = 0
    for stages in layers:
        for stage in stages:
            saved = saved + stage.saved
            made = made + states.gradient * stage.parameters
    return saved, made
