"""A step on one pipeline rank, moment by moment, from the states, the layers' costs and what stands around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from planner.activations import ACTIVATION_TYPES, multiplied_outer_weights, outer_activations, saved_bytes
from planner.components.base import SavedTensor
from planner.plans import TrainingPlan
from planner.quantities import Quantity, ceiling_divide, largest, smallest
from planner.sizing import embedding_width, layer_buffers, layer_tensors, leading_tensors, trailing_tensors
from planner.spec import ArchitectureSpec
from planner.stages import reduces_last
from planner.training.buffers import engine_buffers, gathers_weights, outer_elements
from planner.training.deepspeed import deepspeed_step
from planner.training.engine import Division, division_of, engine_of, is_many
from planner.training.layers import LayerCost, Shape, layer_cost
from planner.training.pipeline import Chunk, Stage
from planner.training.records import DEVICE_OVERHEAD_BYTES, Buffer, Moment, TrainingMemory
from planner.training.states import Placed, States, held_states, placed, state_bytes

NORM_TEMPORARIES = 4
"""fp32 tensors of the stream's size while a norm runs backward: its input and gradient, the normalized input and
what becomes the result."""


LOSS_CHUNK_TOKENS = 512
"""Positions whose logits exist at a time where the loss is computed in chunks; a test holds the runners to it."""


SPARED_BY_LOSS = {
    "parallel": ("log-probabilities",),
    "fused": ("log-probabilities",),
    "chunked": ("log-probabilities", "bounded logits", "input", "targets", "number of targets"),
}
"""What these losses do not keep of what the plain one does."""


def kept_outside(
    spec: ArchitectureSpec, plan: TrainingPlan, shape: Shape, is_first: bool, is_last: bool
) -> Iterator[tuple[str, SavedTensor]]:
    """What is kept outside the layers of a stage."""
    loss = engine_of(plan).cross_entropy
    for part, saved in outer_activations(spec, shape.positions, shape.batch_size):
        if part in ("token_embedding", "embedding_norm", "position_embedding"):
            if is_first:
                yield part, saved
        elif is_last and (part == "final_norm" or loss == "plain" or saved.name not in SPARED_BY_LOSS[loss]):
            yield part, saved
    if not is_last and (engine_of(plan).is_deepspeed or not engine_of(plan).is_megatron):
        # torch.distributed.pipelining and DeepSpeed hold it; Megatron lets its data go once it is sent.
        yield "stage", SavedTensor("its output", shape.tokens * spec.hidden_size, "residual")
    if is_first and plan.dropout != 0:
        mask = shape.tokens * spec.hidden_size
        yield "token_embedding", SavedTensor("mask of the dropout", mask, "bool")


def backward_start_bytes(
    spec: ArchitectureSpec, plan: TrainingPlan, shape: Shape, division: Division
) -> Iterator[tuple[str, Quantity]]:
    """What is alive when the backward pass starts, beside what the forward pass saved; in bytes, by name."""
    logits = division.of(shape.tokens * spec.vocab_size, "tensor")
    types = ACTIVATION_TYPES[plan.precision]
    match engine_of(plan).cross_entropy:
        case "chunked":
            yield from _chunk_bytes(spec, plan, shape, division)
            return
        case "fused":
            yield "logits, overwritten by their gradient", types.compute * logits
        case "parallel":
            # In fp32 the logits themselves are overwritten by the exponentials.
            yield "exponentials of the logits", 4 * logits
            if types.compute != 4:
                yield "gradient of the logits", types.compute * logits
        case _:
            yield "logits", types.compute * logits
            yield "gradients of the log-probabilities and of what they were made from", 2 * 4 * logits
    yield "the loss", 4
    if types.copied:
        outer = multiplied_outer_weights(spec)
        yield "weights outside the layers, cast for multiplication", division.of(types.compute * outer, "tensor")


def _chunk_bytes(
    spec: ArchitectureSpec, plan: TrainingPlan, shape: Shape, division: Division
) -> Iterator[tuple[str, Quantity]]:
    """While the loss goes over chunks of positions, making gradients as it goes (``runners.models.chunked_loss``)."""
    types, width = ACTIVATION_TYPES[plan.precision], state_bytes(plan).gradient
    matrix = division.of_parameter(spec.vocab_size * embedding_width(spec), "columns")
    hidden = types.compute * shape.tokens * embedding_width(spec)
    yield "what the head reads, and its gradient", 2 * hidden
    yield "gradient of the head's matrix", width * matrix
    if types.copied:
        yield "the head's matrix, cast for multiplication", types.compute * matrix
    logits = division.of(smallest(shape.tokens, LOSS_CHUNK_TOKENS) * spec.vocab_size, "tensor")
    copies = 4 if types.compute == 4 else types.compute + 4
    # Either the logits of a chunk, widened, with their log-probabilities; or their gradient, and what it gives.
    widest = (copies + 4) * logits
    yield "a chunk's logits, or their gradient and its product", largest(widest, types.compute * (logits + matrix))


def head_bytes(
    spec: ArchitectureSpec, plan: TrainingPlan, shape: Shape, division: Division
) -> Iterator[tuple[str, Quantity]]:
    """What is alive while Megatron's head runs backward, beside what the forward pass saved; in bytes, by name."""
    types = ACTIVATION_TYPES[plan.precision]
    yield "gradient of the logits", types.compute * division.of(shape.tokens * spec.vocab_size, "tensor")
    weight = division.of_parameter(spec.vocab_size * embedding_width(spec), "columns")
    yield "the head's own gradient in the compute type, or a placeholder for it", types.compute * weight
    whole = types.compute * shape.tokens * embedding_width(spec)
    yield "gradient of the head's input", whole
    if is_many(division.sequence):
        yield "the head's input, gathered from all positions", whole
        yield "gradient of the head's input, scattered", division.of(whole, "stream")
    yield "the loss", 4


def stage_parameters(spec: ArchitectureSpec, stage: Stage, division: Division) -> Iterator[Placed]:
    """The parameters of a stage. A tied matrix is on the first stage and, where that is another, on the last one."""
    for chunk in stage.chunks:
        if chunk.is_first:
            for tensor in leading_tensors(spec):
                yield placed(tensor, 1, False, division)
        for repeats, layers in chunk.runs:
            for layer in layers:
                for _, tensor in layer_tensors(spec, layer):
                    yield placed(tensor, repeats, True, division)
        if chunk.is_last:
            for tensor in trailing_tensors(spec):
                yield placed(tensor, 1, False, division)
            if spec.tie_word_embeddings and not chunk.is_first:
                yield placed(next(leading_tensors(spec)), 1, False, division)


def largest_parameter(spec: ArchitectureSpec, stage: Stage, division: Division) -> Quantity:
    """Elements of the largest parameter of a stage, as one device holds it."""
    most: Quantity = 0
    for part in stage_parameters(spec, stage, division):
        most = largest(most, part.count)
    return most


def stage_buffer_bytes(spec: ArchitectureSpec, stage: Stage) -> Quantity:
    """Bytes of the persistent buffers of a stage."""
    total: Quantity = 0
    for chunk in stage.chunks:
        for repeats, layers in chunk.runs:
            for layer in layers:
                for _, buffer in layer_buffers(spec, layer):
                    total = total + 4 * buffer.count * repeats
    return total


def holds_gradients(plan: TrainingPlan) -> bool:
    """Whether gradients stay allocated from step to step: accumulated, main gradients, or in buckets of replicas."""
    if engine_of(plan).is_megatron or plan.precision == "bf16_mixed":
        return True
    if is_many(plan.data_parallel) and plan.zero_stage < 2:
        return True
    per_pass: Quantity = plan.micro_batch_size * plan.data_parallel
    if plan.global_batch_size is None:
        return False
    accumulated: Quantity = plan.global_batch_size
    if not isinstance(per_pass, int) or not isinstance(accumulated, int):
        return True  # arrays: taken to be accumulated
    return accumulated > per_pass


@dataclass(slots=True)
class _Timeline:
    """Moments as they come; ``made`` are the bytes of gradients that the backward pass has made so far."""

    states: States
    held: bool
    communication: Quantity
    plan: TrainingPlan
    division: Division
    moments: list[Moment] = field(default_factory=list)

    @property
    def gathers(self) -> bool:
        """Whether layers are whole only while they are used."""
        return gathers_weights(self.plan, self.division)

    @property
    def late(self) -> bool:
        """Whether gradients are spread over replicas only when all micro batches are done."""
        return reduces_last(self.plan) and is_many(self.division.replicas)

    def add(self, name: str, made: Quantity, alive: Quantity, gathered: Quantity = 0) -> None:
        if self.late:
            gradients = self.states.whole_gradients if self.held else made
        elif self.held:
            gradients = self.states.gradients + made if self.gathers else self.states.gradients
        else:
            gradients = made
        communication = self.communication if _is(gathered, 0) else self.communication + gathered
        self.moments.append(
            Moment(name, self.states.parameters, gradients, self.states.optimizer, alive, communication)
        )

    def share(self, made: Quantity) -> Quantity:
        """What is left on a device of gradients of layers that are done; held ones stand with the states."""
        if self.held and self.gathers and not self.late:
            return 0
        if self.plan.zero_stage < 2 or not is_many(self.division.replicas) or self.late:
            return made
        return ceiling_divide(made, self.division.replicas)


@dataclass(slots=True)
class Seen:
    """What is counted once for stages and layers that are alike, by their identity."""

    costs: dict[int, LayerCost] = field(default_factory=dict)
    held: dict[tuple[Any, ...], tuple[States, tuple[Buffer, ...]]] = field(default_factory=dict)


def _layers_of(stage: Stage) -> tuple[Any, ...] | None:
    """What decides the states and the buffers of a stage; ``None`` where it has other quantities than numbers."""
    found: list[Any] = []
    for chunk in stage.chunks:
        found += [chunk.is_first, chunk.is_last]
        for repeats, layers in chunk.runs:
            if not isinstance(repeats, int):
                return None
            found += [repeats, *map(id, layers)]
    return tuple(found)


def stage_memory(spec: ArchitectureSpec, plan: TrainingPlan, stage: Stage, shape: Shape, seen: Seen) -> TrainingMemory:
    """Memory of one pipeline rank. ``seen`` is shared by the ranks of one pipeline."""
    division, types, costs = division_of(plan), ACTIVATION_TYPES[plan.precision], seen.costs
    alike = _layers_of(stage)
    known = None if alike is None else seen.held.get(alike)
    if known is None:
        parts = stage_parameters(spec, stage, division)
        held = held_states(parts, stage_buffer_bytes(spec, stage), plan, division)
        known = held, tuple(engine_buffers(spec, plan, stage, shape, division))
        if alike is not None:
            seen.held[alike] = known
    states, buffers = known
    for chunk in stage.chunks:
        for _, layers in chunk.runs:
            for layer in layers:
                if id(layer) not in costs:
                    costs[id(layer)] = layer_cost(spec, layer, plan, division, shape)
    communication: Quantity = 0
    for buffer in buffers:
        communication = communication + buffer.bytes
    line = _Timeline(states, holds_gradients(plan), communication, plan, division)
    own = [_kept_of(chunk, costs) for chunk in stage.chunks]
    outside = []
    for chunk in stage.chunks:
        total: Quantity = 0
        for _, saved in kept_outside(spec, plan, shape, chunk.is_first, chunk.is_last):
            total = total + saved_bytes(saved, types, division.of(saved.elements, saved.split))
        outside.append(total)
    throughout: Quantity = 0
    for place, (chunk, layers_kept, outer) in enumerate(zip(stage.chunks, own, outside, strict=True)):
        if not _is(chunk.waiting, 0):
            waiting: Quantity = 0
            for index, other in enumerate(stage.chunks):
                beside = other.waiting - 1 if index == place else other.waiting
                if not _is(beside, 0):
                    waiting = waiting + beside * (own[index] + outside[index])
            weights = _weights_of(chunk, stage, line, costs)
            throughout = _chunk_moments(
                spec, plan, chunk, shape, division, costs, line, weights, waiting, layers_kept, outer
            )
            if weights.stay and weights.are_fetched and not _is(chunk.waiting, 1):
                # Behind the last forward pass of a rank one backward pass follows another, and nothing is fetched.
                fewer = waiting - (layers_kept + outer)
                there = _Weights(_weight_bytes(stage.chunks, costs), False, True)
                _chunk_moments(spec, plan, chunk, shape, division, costs, line, there, fewer, layers_kept, outer)
    if line.late:
        # Behind all micro batches; first those of the root, copied into one tensor.
        outer_gradients = state_bytes(plan).gradient * outer_elements(spec, stage, division)
        alive = states.whole_gradients + outer_gradients
        whole = _weight_bytes(stage.chunks, costs) if line.gathers else 0
        line.moments.append(
            Moment(
                "gradients spread over replicas",
                states.parameters,
                alive,
                states.optimizer,
                throughout,
                communication + whole,
            )
        )
    apart: Quantity = 0
    step_gradients = states.gradients
    if engine_of(plan).is_deepspeed:
        apart, step_gradients = deepspeed_step(states, plan, division, largest_parameter(spec, stage, division))
    line.moments.append(
        Moment("optimizer step", states.parameters, step_gradients, states.optimizer, throughout, communication)
    )
    return TrainingMemory(
        parameters_bytes=states.parameters,
        gradients_bytes=states.gradients,
        optimizer_bytes=states.optimizer,
        activations_bytes=line.moments[0].activations_bytes,
        communication_bytes=communication,
        overhead_bytes=DEVICE_OVERHEAD_BYTES,
        moments=tuple(line.moments),
        buffers=buffers,
        pipeline_rank=stage.rank,
        num_layers=stage.num_layers,
        apart_bytes=apart,
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """Gathered weights of layers while a backward pass runs."""

    whole: Quantity
    """Bytes of layers that are whole when it starts."""
    are_fetched: bool
    """Whether each is fetched where it is used."""
    stay: bool
    """Whether they stay whole behind it, as FSDP2's do until all micro batches of a pipeline are done."""


def _weights_of(chunk: Chunk, stage: Stage, line: _Timeline, costs: dict[int, LayerCost]) -> _Weights:
    if not line.gathers:
        return _Weights(0, False, False)
    if line.plan.fsdp_reshard:
        return _Weights(0, True, line.late)
    return _Weights(_weight_bytes(stage.chunks if line.late else (chunk,), costs), False, line.late)


def _weight_bytes(chunks: tuple[Chunk, ...], costs: dict[int, LayerCost]) -> Quantity:
    total: Quantity = 0
    for chunk in chunks:
        for repeats, layers in chunk.runs:
            for layer in layers:
                total = total + repeats * costs[id(layer)].weights
    return total


def _is(quantity: Quantity, value: int) -> bool:
    """Whether a quantity is known to be a number; of arrays and symbols it is not known."""
    return isinstance(quantity, int) and quantity == value


def _kept_of(chunk: Chunk, costs: dict[int, LayerCost]) -> Quantity:
    total: Quantity = 0
    for repeats, layers in chunk.runs:
        for layer in layers:
            total = total + repeats * costs[id(layer)].kept
    return total


def _chunk_moments(
    spec: ArchitectureSpec,
    plan: TrainingPlan,
    chunk: Chunk,
    shape: Shape,
    division: Division,
    costs: dict[int, LayerCost],
    line: _Timeline,
    weights: _Weights,
    waiting: Quantity,
    layers_kept: Quantity,
    outer: Quantity,
) -> Quantity:
    """The backward pass of one micro batch through one chunk, while ``waiting`` bytes belong to others.

    Returns the bytes that stay until the step is over.
    """
    states, types, engine = state_bytes(plan), ACTIVATION_TYPES[plan.precision], engine_of(plan)
    is_chunked = engine.cross_entropy == "chunked"
    stream = division.of(types.residual * shape.tokens * spec.hidden_size, "stream")
    embedding = division.of_parameter(spec.vocab_size * embedding_width(spec), "columns")
    ids = 2 * 8 * shape.tokens
    alive = waiting + layers_kept + outer
    made: Quantity = 0
    throughout: Quantity = ids
    runs = [(repeats, [costs[id(layer)] for layer in layers]) for repeats, layers in chunk.runs]
    latest: Quantity = runs[-1][1][-1].weights if runs else 0  # a stage may have embedding or head alone
    fetched = latest if weights.are_fetched else weights.whole
    # Autocast keeps the layers' cast weights until the forward pass ends, though nothing else does.
    recasts = plan.recompute == "full" and plan.precision == "bf16_autocast"
    cast: Quantity = 0
    for repeats, run in runs if recasts else ():
        for cost in run:
            cast = cast + repeats * cost.copies
    if chunk.is_last:
        start = alive
        for _, size in backward_start_bytes(spec, plan, shape, division):
            start = start + size
        if is_chunked and recasts:
            start = start + cast
        logits = division.of(shape.tokens * spec.vocab_size, "tensor")
        line.add("the loss, chunk by chunk" if is_chunked else "start of the backward pass", 0, start, fetched)
        if line.gathers and not is_chunked:
            # The last layer's weights are still there as they were gathered.
            copies = types.compute if types.compute == 4 else types.compute + 4
            line.add("end of the forward pass", 0, alive + copies * logits, weights.whole + latest)
        for tensor in trailing_tensors(spec):
            made = made + states.gradient * division.of_parameter(tensor.count, tensor.split)
        if spec.tie_word_embeddings:
            made = made + states.gradient * embedding  # of the matrix as the head's
        if is_chunked:
            pass  # the gradients of logits and head are made by then
        elif engine.is_megatron:
            parts = alive
            for _, size in head_bytes(spec, plan, shape, division):
                parts = parts + size
            line.add("backward pass of the head", made, parts, fetched)
        else:
            # Whoever calls the model holds its logits, and the token ids and labels, until the step is over.
            throughout = throughout + types.compute * logits
    else:
        line.add("start of the backward pass", 0, alive + stream, fetched)
    if recasts and not is_chunked and not line.gathers:
        logits = division.of(shape.tokens * spec.vocab_size, "tensor")
        result = (types.compute + 4) * logits if chunk.is_last else stream
        line.add("end of the forward pass", 0, alive + cast + result)
    kept = waiting + layers_kept + throughout
    if chunk.is_last and spec.final_norm:
        temporaries = 2 * stream
        if not engine.is_megatron:
            temporaries = division.of(NORM_TEMPORARIES * 4 * shape.tokens * spec.hidden_size, "stream")
        line.add("backward pass of the final norm", made, kept + temporaries, fetched)
    sweep = _Sweep(line, kept, made, weights, weights.whole)
    for place in reversed(range(len(runs))):
        sweep.run(
            *runs[place],
            earlier=runs[place - 1][1][-1] if place > 0 else None,
            later=runs[place + 1][1][0] if place + 1 < len(runs) else None,
        )
    kept, made = sweep.kept, sweep.made_outside + line.share(sweep.made)
    if chunk.is_first:
        if engine.is_megatron:
            line.add("backward pass of the embedding", made, kept + types.compute * embedding + stream, sweep.whole)
        else:
            # The embedding's gradient is made whole, then added to a held one; of a tied matrix, autograd first adds it
            # to the head's, out of place.
            is_added = line.held or (line.gathers and not line.late)
            copies = (2 if spec.tie_word_embeddings and chunk.is_last else 0) + (1 if is_added else 0)
            if copies:
                alive = kept + copies * states.gradient * embedding
                done = sweep.made_outside + line.share(sweep.made) if line.gathers else line.states.gradients
                line.add("backward pass of the embedding", done, alive, sweep.whole)
    return throughout


@dataclass(slots=True)
class _Sweep:
    """The backward pass through the layers of a chunk, from the last one to the first."""

    line: _Timeline
    kept: Quantity
    """Bytes of what is kept of the layers that are left, and of all else."""
    made_outside: Quantity
    """Bytes of gradients outside the layers."""
    weights: _Weights
    whole: Quantity
    """Bytes of gathered weights that are whole beside a layer that is fetched, or with all of them."""
    made: Quantity = 0
    """Bytes of gradients of the layers that are done, whole."""

    def run(
        self, repeats: Quantity, costs: list[LayerCost], earlier: LayerCost | None, later: LayerCost | None
    ) -> None:
        """Moments of a run of layers; ``earlier`` and ``later`` are the layers before and behind it.

        Inside a run what is kept and what is made are linear in the layers done, so the most is at an end. ``goes_on``
        tells whether another repeat may follow.
        """
        kept: Quantity = 0
        made: Quantity = 0
        passed: Quantity = 0
        for cost in costs:
            kept, made, passed = kept + cost.kept, made + cost.gradients, passed + self._passed(cost)
        ends: list[tuple[str, Quantity, bool]] = [
            ("backward pass of a group's last layers", 0, True),
            ("of a group's first layers", repeats - 1, _is(repeats, 1)),
        ]
        if self.weights.are_fetched and self.weights.stay:
            # What was fetched is whole still, and the first layer is on its way.
            ends.insert(1, ("of a group's second layers", largest(repeats - 2, 0), True))
        for name, done, goes_on in ends:
            rest, ready, whole = self.kept, self.made, self.whole
            if not _is(done, 0):
                rest, ready = rest - done * kept, ready + done * made
                if not _is(passed, 0):
                    whole = whole + done * passed
            for place in reversed(range(len(costs))):
                cost = costs[place]
                gathered = self._gathered(costs, place, earlier, later, repeats, goes_on, whole)
                self._layer(name, cost, rest, ready, gathered)
                rest, ready = rest - cost.kept, ready + cost.gradients
                if not _is(passed, 0):
                    whole = whole + self._passed(cost)
        self.kept, self.made = self.kept - repeats * kept, self.made + repeats * made
        if not _is(passed, 0):
            self.whole = self.whole + repeats * passed

    def _passed(self, cost: LayerCost) -> Quantity:
        """What a layer adds to the weights that are whole once its backward pass is over."""
        if not self.line.gathers or self.weights.are_fetched != self.weights.stay:
            return 0
        return cost.weights if self.weights.stay else -1 * cost.weights

    def _layer(self, name: str, cost: LayerCost, rest: Quantity, ready: Quantity, gathered: Quantity) -> None:
        now = rest if _is(cost.again, 0) else rest + cost.again
        before = self.made_outside + self.line.share(ready)
        own: Quantity = 0
        for mixer in reversed(cost.mixers):
            for step in mixer.steps:
                alive = now + step.made if _is(step.freed, 0) else now - step.freed + step.made
                made = before + own if _is(step.gradients, 0) else before + own + step.gradients
                self.line.add(name, made, alive, gathered)
            now, own = now - mixer.saved, own + mixer.gradients
        if self.line.gathers and not self.line.late:
            # Its weights are let go, and its gradients copied into one tensor that is scattered.
            self.line.add(f"{name}: scattering gradients", before + own, now, gathered - cost.weights + own)

    def _gathered(
        self,
        costs: list[LayerCost],
        place: int,
        earlier: LayerCost | None,
        later: LayerCost | None,
        repeats: Quantity,
        goes_on: bool,
        whole: Quantity,
    ) -> Quantity:
        """Weights that are whole beside a layer's backward pass, and gradients of the one before that are on their way.

        FSDP2 fetches the next layer's weights meanwhile, and frees the tensor that was scattered when the next one is.
        """
        if not self.line.gathers:
            return 0
        others = smallest(1, repeats - 1)  # whether the run has other repeats
        fetched: Quantity = costs[place - 1].weights if place > 0 else 0
        if place == 0:
            fetched = 0 if earlier is None else earlier.weights
            if goes_on:
                fetched = others * costs[-1].weights + (1 - others) * fetched
        sent: Quantity = costs[place + 1].gradients if place + 1 < len(costs) else 0
        if place + 1 == len(costs):
            sent = 0 if later is None else later.gradients
            if not goes_on:
                sent = others * costs[0].gradients + (1 - others) * sent
        there = whole + costs[place].weights + fetched if self.weights.are_fetched else whole
        return there if self.line.late else there + sent
