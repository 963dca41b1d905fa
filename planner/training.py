"""Memory of a training step on one device: parameters, gradients, optimizer, activations, and when they are most.

What is modelled: one device, AdamW, fp32, bf16 autocast, bf16 with fp32 master weights, and pure bf16, fused
attention, no recomputation. Everything else is refused by name. The states are counted to the element; the activations
are the tensors that each component says it saves for the backward pass. Time is not modelled yet, so the fields of time
are ``None``: see ``time_note``.

A step has moments at which much is alive at once; the largest decides (``peak``). With gradients that stay allocated
(accumulation, or master weights) that is the start of the backward pass and the total is the plain sum of the parts;
where PyTorch frees gradients between steps, fewer are alive then, and the end of the backward pass competes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.components.base import SavedTensor
from planner.errors import Problem, UnsupportedPlan
from planner.plans import TrainingPlan
from planner.quantities import Quantity, largest
from planner.sizing import layer_tensors, outer_tensors
from planner.spec import ArchitectureSpec, Layer, LearnedPositions

DEVICE_OVERHEAD_BYTES = 512 * 2**20
"""What a process takes on a device beside its allocator: the CUDA context and the libraries' workspaces (0.3 to 0.6 GiB
on current devices). Modelled, and no part of what an allocator reports."""

TIME_NOTE = "The time of a step is not modelled yet: measure it with a benchmark, or use a budget at a stated share."


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes that one parameter takes under a precision, with AdamW (two moments)."""

    weight: int
    gradient: int
    master: int
    moments: int
    activation: int
    """Of a saved tensor in the type that matrices are multiplied in."""
    residual: int
    """Of the residual stream, which autocast leaves in fp32."""


def state_bytes(plan: TrainingPlan) -> StateBytes:
    """Bytes a parameter of the plan's precision."""
    match plan.precision:
        case "fp32":
            return StateBytes(weight=4, gradient=4, master=0, moments=8, activation=4, residual=4)
        case "bf16_autocast":
            return StateBytes(weight=4, gradient=4, master=0, moments=8, activation=2, residual=4)
        case "bf16_mixed":
            gradient = 4 if plan.gradient_dtype == "fp32" else 2
            return StateBytes(weight=2, gradient=gradient, master=4, moments=8, activation=2, residual=2)
        case "bf16":
            return StateBytes(weight=2, gradient=2, master=0, moments=4, activation=2, residual=2)
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
    cast: Quantity
    """Weights of matrix multiplications, of which autocast makes bf16 copies that live until the backward pass."""
    buffer_bytes: Quantity


def count_states(spec: ArchitectureSpec) -> States:
    """Elements of all parameters by how they are kept; reads numbers, arrays and symbols."""
    weights: Quantity = 0
    float32: Quantity = 0
    cast: Quantity = 0
    buffers: Quantity = 0
    for tensor in outer_tensors(spec):
        weights = weights + tensor.count
        if tensor.component == "lm_head" or (tensor.component == "token_embedding" and spec.tie_word_embeddings):
            cast = cast + tensor.count
    for group in spec.layer_groups:
        for layer in group.layers:
            for _, tensor in layer_tensors(spec, layer):
                count = tensor.count * group.repeats
                if tensor.dtype_class == "float32":
                    float32 = float32 + count
                else:
                    weights = weights + count
                    if len(tensor.shape) >= 2 and not tensor.name.startswith("conv1d"):
                        cast = cast + count
            if layer.channel_mixer is not None:
                for buffer in layer.channel_mixer.buffers(spec.hidden_size):
                    buffers = buffers + 4 * buffer.count * group.repeats
    return States(weights, float32, cast, buffers)


def saved_bytes(tensor: SavedTensor, states: StateBytes) -> Quantity:
    """Bytes of a saved tensor under a precision."""
    width = {
        "compute": states.activation,
        "residual": states.residual,
        "float32": 4,
        "int64": 8,
        "bool": 1,
    }[tensor.dtype_class]
    return tensor.elements * width


def norm_activations(
    spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity, after_mixer: bool
) -> Iterator[SavedTensor]:
    """What one norm over the residual width keeps: its input, and its statistics in fp32."""
    tokens = batch_size * sequence_length
    # A norm before a mixer reads the residual stream, one after it reads the mixer's output, which autocast leaves in
    # bf16; LayerNorm keeps its statistics in the type that it reads, RMSNorm keeps its own in fp32.
    kind = "compute" if after_mixer else "residual"
    yield SavedTensor("input", tokens * spec.hidden_size, kind)
    if spec.norm.kind == "layer_norm":
        yield SavedTensor("mean", tokens, kind)
        yield SavedTensor("inverse deviation", tokens, kind)
    else:
        yield SavedTensor("inverse root mean square", tokens, "float32")


def layer_activations(
    spec: ArchitectureSpec, layer: Layer, sequence_length: Quantity, batch_size: Quantity, where: str = ""
) -> Iterator[tuple[str, SavedTensor]]:
    """What the forward pass of one layer keeps for the backward pass, each with the part of the layer that keeps it.

    Raises
    ------
    UnsupportedPlan
        where a component does not say what it saves.
    """
    for stem, mixer in (("sequence", layer.sequence_mixer), ("channel", layer.channel_mixer)):
        if mixer is None:
            continue
        for name in (f"{stem}_norm", f"{stem}_post_norm"):
            if name in layer.norm_names:
                for saved in norm_activations(spec, sequence_length, batch_size, name.endswith("post_norm")):
                    yield name, saved
        saves = getattr(mixer, "saved_activations", None)
        if saves is None:
            raise UnsupportedPlan.of(
                f"What {mixer.component.replace('_', ' ')} keeps for the backward pass is not modelled.",
                path=f"{where}{stem}_mixer",
                remedy="Choose another component, or measure the memory with a verification.",
                code="activations_not_modelled",
            )
        for saved in saves(spec.hidden_size, sequence_length, batch_size):
            yield f"{stem}_mixer", saved


def outer_activations(
    spec: ArchitectureSpec, sequence_length: Quantity, batch_size: Quantity
) -> Iterator[tuple[str, SavedTensor]]:
    """What is kept outside the layers: token ids, the final norm, the head's input, logits and log-probabilities."""
    tokens = batch_size * sequence_length
    yield "token_embedding", SavedTensor("token ids", tokens, "int64")
    if isinstance(spec.positions, LearnedPositions):
        yield "position_embedding", SavedTensor("position ids", sequence_length, "int64")
    if spec.final_norm:
        for saved in norm_activations(spec, sequence_length, batch_size, after_mixer=False):
            yield "final_norm", saved
    yield "lm_head", SavedTensor("input", tokens * spec.hidden_size)
    yield "lm_head", SavedTensor("logits", tokens * spec.vocab_size)
    if spec.final_logit_softcap is not None:
        yield "lm_head", SavedTensor("bounded logits", tokens * spec.vocab_size)
    yield "loss", SavedTensor("log-probabilities", tokens * spec.vocab_size, "float32")
    yield "loss", SavedTensor("labels", tokens, "int64")
    yield "loss", SavedTensor("the loss and its weight", 2, "float32")


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


def training_memory(
    spec: ArchitectureSpec, plan: TrainingPlan, sequence_length: Quantity, micro_batch_size: Quantity
) -> TrainingMemory:
    """The same with quantities in place of the plan's numbers: works on all three readings."""
    states = state_bytes(plan)
    counts = count_states(spec)
    total_count = counts.weights + counts.kept_in_float32
    parameters = states.weight * counts.weights + 4 * counts.kept_in_float32 + counts.buffer_bytes
    gradients = states.gradient * counts.weights + 4 * counts.kept_in_float32
    optimizer = (states.master + states.moments) * counts.weights + 8 * counts.kept_in_float32
    outer: Quantity = 0
    for _, saved in outer_activations(spec, sequence_length, micro_batch_size):
        outer = outer + saved_bytes(saved, states)
    # The backward pass starts with the gradients of the log-probabilities and of what they were made from, both in
    # fp32, while everything is still kept.
    outer = outer + 2 * 4 * micro_batch_size * sequence_length * spec.vocab_size
    if plan.precision == "bf16_autocast":
        outer = outer + states.activation * counts.cast
    by_group: list[Quantity] = []
    weights_by_group: list[Quantity] = []
    for group_index, group in enumerate(spec.layer_groups):
        kept: Quantity = 0
        weights: Quantity = 0
        for layer_index, layer in enumerate(group.layers):
            where = f"layer_groups[{group_index}].layers[{layer_index}]."
            for _, saved in layer_activations(spec, layer, sequence_length, micro_batch_size, where):
                kept = kept + saved_bytes(saved, states)
            for _, tensor in layer_tensors(spec, layer):
                weights = weights + tensor.count
        by_group.append(kept * group.repeats)
        weights_by_group.append(weights * group.repeats)
    activations = outer
    for kept in by_group:
        activations = activations + kept
    held = plan.precision == "bf16_mixed" or (plan.global_batch_size or 0) > plan.micro_batch_size
    moments = [
        Moment("start of the backward pass", parameters, gradients if held else 0, optimizer, activations),
    ]
    if not held:
        # Gradients appear as activations go. Within a group both are linear in the layers done, so that the most is
        # at a boundary between groups.
        gradient_share = states.gradient
        remaining, done = activations - outer, total_count
        for weights in weights_by_group:
            done = done - weights
        for kept, weights in zip(reversed(by_group), reversed(weights_by_group), strict=True):
            moments.append(
                Moment("inside the backward pass", parameters, gradient_share * done, optimizer, remaining),
            )
            remaining, done = remaining - kept, done + weights
        moments.append(Moment("optimizer step", parameters, gradients, optimizer, 0))
    return TrainingMemory(
        parameters_bytes=parameters,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        communication_bytes=0,
        overhead_bytes=DEVICE_OVERHEAD_BYTES,
        moments=tuple(moments),
    )
