"""A number opened into the terms that it is the sum of, each with its formula, its status and its source.

The tree of terms is built twice by the same code: once on the specification's numbers, once with symbols in its fields
(:mod:`planner.symbolic`). So the formula that is shown is the code's own, and the symbols' values put into it give the
number exactly. Layers that are alike stand together, with the number of times that they occur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from planner.activations import ACTIVATION_TYPES, saved_bytes
from planner.cache import allocated_entry, assumption_text, cache_format, entry_bytes
from planner.components.base import CacheEntry
from planner.compute import TRAINING_FACTOR, outer_operations
from planner.errors import PlannerError, UnsupportedPlan
from planner.plans import Plan, ServingPlan, TrainingPlan
from planner.quantities import Quantity
from planner.scaling import TOKENS_PER_PARAMETER
from planner.serving import Split, Storage, check_serving, describe_format, kept_layers, part_of
from planner.serving.explained import TIME_QUANTITIES, explain_time
from planner.serving.formats import engine_of
from planner.serving.memory import (
    ENGINE_ACTIVATIONS,
    draft_cache,
    draft_weights,
    engine_activations,
    fullest_stage,
    on_device,
    outer_weights,
    projection_outputs,
)
from planner.serving.speculative import speculation
from planner.sizing import (
    active_count,
    layer_buffers,
    layer_components,
    leading_tensors,
    looked_up_tensors,
    outer_block,
    trailing_tensors,
)
from planner.spec import ArchitectureSpec
from planner.step_time.explained import STEP_QUANTITIES, explain_step
from planner.symbolic import symbolic_fields
from planner.terms import SymbolValue, Term
from planner.training import DEVICE_OVERHEAD_BYTES, Moment, check_training_plan
from planner.training.buffers import gathers_weights
from planner.training.engine import division_of
from planner.training.estimate import memory_of_stage, shape_of, worst_stage
from planner.training.layers import kept_by_part
from planner.training.pipeline import Stage, as_spec, from_spec
from planner.training.timeline import backward_start_bytes, head_bytes, kept_outside
from planner.tree import Node, Reading, component_source, node_sum, over_tensors, place_of
from planner.uncertainty import (
    EACH_SAVED_TENSOR,
    PART_OF_A_RULE,
    Status,
    Uncertainty,
    of_blocks,
    of_chinchilla,
    of_overhead,
    of_pass,
    of_six_n,
    of_training_activations,
    sum_of,
    worst,
)

KAPLAN = "2 FLOPs a weight and a token: Kaplan et al. 2020, arXiv:2001.08361, section 2.1"
SIX_N = (
    "6 FLOPs an active parameter and a token in training, embeddings that are only looked up left out: Kaplan et al. "
    "2020, arXiv:2001.08361, section 2.1"
)
CHINCHILLA = "20 tokens a parameter: Hoffmann et al. 2022, arXiv:2203.15556, table 3"


def _parameters(reading: Reading) -> Node:
    return over_tensors(reading, "parameters", lambda tensor, _: tensor.count)


def _active_parameters(reading: Reading) -> Node:
    return over_tensors(reading, "active parameters", lambda tensor, _: active_count(tensor))


def _weights_memory(reading: Reading) -> Node:
    plan, spec = _serving_plan(reading.plan), reading.spec
    split, storage = Split.of(plan), Storage(spec, plan.weight_format)
    held_outside = {name: held for name, _, held in outer_weights(spec, plan)}
    before, after = (
        [Node(tensor.name, held_outside[tensor.name], path=outer_block(tensor.name)) for tensor in tensors]
        for tensors in (leading_tensors(spec), trailing_tensors(spec))
    )
    layers: list[Node] = []
    buffers: list[Node] = []
    for path, name, layer, _, times in reading.layers():
        group_index, layer_index = place_of(path)
        everywhere = spec.layer_groups[group_index].repeats

        def here(
            held: Quantity, group: int = group_index, index: int = layer_index, all_of: Quantity = everywhere
        ) -> Quantity:
            """Of what all layers at this place have: on the device, or of one of them."""
            if reading.single:
                return Fraction(held, all_of) if isinstance(held, int) else held / all_of
            return on_device(held, spec, plan, group, index)

        leaves: dict[str, list[Node]] = {}
        for part, component in layer_components(spec, layer):
            for tensor in component.tensors(spec.hidden_size):
                held = storage.inner(group_index, layer_index, tensor)
                if part.endswith("_mixer"):
                    held = part_of(held, split.of_tensor(component, tensor))
                leaves.setdefault(part, []).append(Node(tensor.name, here(held), path=f"{path}.{part}", times=times))
        parts = [
            node_sum(part.replace("_", " "), leaves[part], path=f"{path}.{part}", times=times, source=source)
            for part, component in layer_components(spec, layer)
            for source in [component_source(component)]
            if part in leaves
        ]
        layers.append(node_sum(name, parts, path=path, times=times))
        for part, buffer in layer_buffers(spec, layer):
            kept = here(4 * buffer.count * everywhere)
            buffers.append(Node(buffer.name, kept, path=f"{path}.{part}", times=times))
    draft = []
    found = speculation(plan.speculative)
    if found is not None and found.draft is not None:
        draft.append(Node(f"draft model: {found.draft.name}", draft_weights(plan), source="Whole on each device"))
    written = f"Written in {describe_format(plan.weight_format)}"
    return node_sum(f"weights in {plan.weight_format}", [*before, *layers, *after, *buffers, *draft], source=written)


def _flops(reading: Reading, needed: bool = False) -> Node:
    spec, length, batch = reading.spec, reading.sequence_length, reading.batch_size
    nodes: list[Node] = []
    for path, name, layer, repeats, times in reading.layers():
        parts: list[Node] = []
        for part, component in layer_components(spec, layer):
            if not part.endswith("_mixer"):
                continue
            leaves = [
                Node(
                    operation.name,
                    (operation.needed_flops if needed else operation.flops) * repeats,
                    path=f"{path}.{part}",
                    times=times,
                )
                for operation in component.operations(spec.hidden_size, length, batch)
            ]
            source = component_source(component)
            parts.append(node_sum(part.replace("_", " "), leaves, path=f"{path}.{part}", times=times, source=source))
        nodes.append(node_sum(name, parts, path=path, times=times))
    for path, operation in outer_operations(spec, length, batch):
        nodes.append(Node(operation.name, operation.needed_flops if needed else operation.flops, path=path))
    title = "FLOPs that the masks leave" if needed else "FLOPs of a forward pass"
    return node_sum(title, nodes, source=KAPLAN)


def _cache(reading: Reading, paged: bool = False) -> Node:
    """The cache's tensors, or with ``paged`` the blocks that an engine sets aside for them."""
    plan = _serving_plan(reading.plan)
    split = Split.of(plan)

    def held(entry: CacheEntry, repeats: Quantity, path: str, times: int) -> Node:
        all_of_them = split.sequences(reading.batch_size) * repeats
        if not (paged and entry.grows):
            return Node(entry.name, entry_bytes(entry, plan.cache_dtype) * all_of_them, path=path, times=times)
        blocks = allocated_entry(entry, plan.cache_block_size, plan.windowed_pages)
        value = entry_bytes(blocks, plan.cache_dtype) * all_of_them
        uncertainty = of_blocks(entry, plan, all_of_them) if reading.in_numbers else None
        return Node(entry.name, value, path, times, status="modelled", uncertainty=uncertainty)

    nodes: list[Node] = []
    for path, name, layer, repeats, times in reading.layers():
        for part, component in layer_components(reading.spec, layer):
            where = f"{path}.{part}"
            kept = repeats if reading.single else kept_layers(reading.spec, plan, *place_of(path))
            entries = [
                held(split.of_entry(entry), kept, where, times)
                for entry in component.cache(reading.spec.hidden_size, reading.sequence_length)
            ]
            if entries or part == "sequence_mixer":
                nodes.append(node_sum(name, entries, path=where, times=times, source=component_source(component)))
    draft = draft_cache(plan, reading.sequence_length, reading.batch_size)
    if draft is not None:
        held_by_draft = draft.allocated_bytes if paged else draft.ideal_bytes
        bounds = Uncertainty(draft.ideal_bytes, draft.allocated_bytes, "the draft's") if reading.in_numbers else None
        status: Status | None = "modelled" if paged else None
        nodes.append(Node("draft model", held_by_draft, status=status, uncertainty=bounds if paged else None))
    if paged:
        assumed = assumption_text(plan.cache_block_size, plan.windowed_pages)
        return node_sum(f"blocks of the cache in {plan.cache_dtype}", nodes, source=assumed)
    return node_sum(f"cache in {plan.cache_dtype}", nodes, source=f"Written in {cache_format(plan.cache_dtype).scheme}")


def _inference_memory(reading: Reading) -> Node:
    # Which mixer is the widest is a matter of numbers; its formula is then read.
    plan = _serving_plan(reading.plan)
    split = Split.of(plan)
    known = projection_outputs(reading.numbers, split)
    widest = projection_outputs(reading.spec, split)[known.index(max(known))]
    held = engine_activations(reading.spec, plan, reading.sequence_length, reading.batch_size, widest)
    return node_sum(
        "inference memory",
        [
            _weights_memory(reading),
            _cache(reading, paged=True),
            Node(
                "activations",
                held,
                source=ENGINE_ACTIVATIONS[engine_of(plan)],
                status="modelled",
                uncertainty=of_pass(held) if reading.in_numbers else None,
            ),
            _overhead(),
        ],
    )


def _overhead() -> Node:
    source = "Context and libraries' workspaces of a process"
    return Node("overhead", DEVICE_OVERHEAD_BYTES, source=source, status="modelled", uncertainty=of_overhead())


def _training_memory(reading: Reading) -> Node:
    plan = reading.plan if isinstance(reading.plan, TrainingPlan) else TrainingPlan()
    if reading.stage is None:
        raise AssertionError("training memory is that of a stage")
    # Which moment is the peak is a matter of numbers; its parts are then read as formulas.
    numbers = from_spec(reading.numbers, reading.stage)
    known = memory_of_stage(reading.numbers, plan, numbers, plan.sequence_length, plan.micro_batch_size)
    stage = from_spec(reading.spec, reading.stage)
    memory = memory_of_stage(reading.spec, plan, stage, reading.sequence_length, reading.batch_size)
    place = known.moments.index(known.peak)
    moment = memory.moments[place]
    in_parts = moment.name in ("start of the backward pass", "backward pass of the head") or (
        moment.name == "the loss, chunk by chunk" and plan.recompute != "full"
    )
    activations = Node("activations", moment.activations_bytes)
    if in_parts and len(stage.chunks) == 1:
        activations = _activations(reading, plan, stage, moment)
    if reading.in_numbers:
        own = of_training_activations(reading.numbers, moment.activations_bytes, known, plan)
        activations = replace(activations, uncertainty=own, status="modelled")
    gradients = Node("gradients", moment.gradients_bytes)
    if place > 0:
        alive = "what the backward pass has made by then; how far that is off stands with the activations"
        own = Uncertainty(known.peak.gradients_bytes, known.peak.gradients_bytes, alive)
        gradients = replace(gradients, status="modelled", uncertainty=own)
    buffers = []
    for buffer, number in zip(memory.buffers, known.buffers, strict=True):
        own = Uncertainty(number.bytes, number.bytes, f"{buffer.name}: by its rule")
        node = Node(buffer.name, buffer.bytes, source=buffer.source, status="modelled", uncertainty=own)
        buffers.append(node)
    if gathers_weights(plan, division_of(plan)):
        size = known.peak.communication_bytes - known.communication_bytes
        buffers.append(
            Node(
                "weights gathered for layers, and gradients on their way",
                moment.communication_bytes - memory.communication_bytes,
                source="FSDP2: the layer that runs and the one fetched ahead, and what is scattered meanwhile",
                status="modelled",
                uncertainty=Uncertainty(size, size, "gathered weights: as FSDP2's own tracker counts them"),
            )
        )
    share = "" if plan.zero_stage == 0 else f", divided as ZeRO stage {plan.zero_stage} says"
    where = "" if plan.pipeline_parallel == 1 else f" on pipeline rank {stage.rank}"
    return node_sum(
        f"training memory: {moment.name}{where}",
        [
            Node("parameters", moment.parameters_bytes, source=f"Weights under {plan.precision}{share}"),
            gradients,
            Node("optimizer", moment.optimizer_bytes, source=f"What {plan.optimizer} keeps, and master weights{share}"),
            activations,
            *([node_sum("communication", buffers)] if buffers else []),
            _overhead(),
        ],
    )


def _activations(reading: Reading, plan: TrainingPlan, stage: Stage, moment: Moment) -> Node:
    types, spec = ACTIVATION_TYPES[plan.precision], reading.spec
    shape, division = shape_of(plan, reading.sequence_length, reading.batch_size), division_of(plan)
    (chunk,) = stage.chunks
    nodes: list[Node] = []
    for path, name, layer, repeats, times in reading.layers():
        leaves: dict[str, list[Node]] = {}
        for part, kept, size in kept_by_part(spec, layer, plan, division, shape):
            held = size * repeats * chunk.waiting
            leaf = Node(kept, held, path=f"{path}.{part}", times=times, status="modelled")
            leaves.setdefault(part, []).append(leaf)
        parts = [
            node_sum(part.replace("_", " "), held, path=f"{path}.{part}", times=times) for part, held in leaves.items()
        ]
        nodes.append(node_sum(name, parts, path=path, times=times))
    for part, saved in kept_outside(spec, plan, shape, chunk.is_first, chunk.is_last):
        size = saved_bytes(saved, types, division.of(saved.elements, saved.split)) * chunk.waiting
        nodes.append(Node(f"{part.replace('_', ' ')}: {saved.name}", size, path=part, status="modelled"))
    alive = "Alive when the backward pass starts, beside what the forward pass saved"
    made = head_bytes if moment.name == "backward pass of the head" else backward_start_bytes
    if chunk.is_last:
        for name, size in made(spec, plan, shape, division):
            nodes.append(Node(name, size, source=alive, status="modelled"))
    else:
        stream = division.of(types.residual * shape.tokens * spec.hidden_size, "stream")
        nodes.append(Node("gradient of the stream", stream, source=alive, status="modelled"))
    return node_sum("activations", nodes, source="Tensors that each component saves for the backward pass")


def _serving_plan(plan: Plan | None) -> ServingPlan:
    return plan if isinstance(plan, ServingPlan) else ServingPlan()


# --- the quantities that can be opened ---


@dataclass(frozen=True, slots=True)
class _Quantity:
    build: Callable[[Reading], Node]
    unit: str
    inputs: str
    """Which plan gives sequence length and batch: ``training``, ``serving`` or none."""
    source: str = ""
    status: Status = "exact"
    """Of what has no children and says nothing else."""
    uncertainty: Callable[[Reading], Uncertainty] | None = None
    """Of the whole, where it is not the sum of its parts'."""
    unbounded: str = ""
    """Why a single term has no bounds, where it has none."""


def _six_n(reading: Reading) -> Node:
    looked_up = {tensor.name for tensor in looked_up_tensors(reading.spec)}
    counted = over_tensors(
        reading,
        "training FLOPs by the 6N rule",
        lambda tensor, inside: 0 if not inside and tensor.name in looked_up else active_count(tensor),
    )
    return counted.scaled(2 * TRAINING_FACTOR * reading.sequence_length * reading.batch_size)


def _per_token(reading: Reading, factor: int = 1) -> Node:
    return _flops(reading).scaled(factor, reading.sequence_length * reading.batch_size)


_QUANTITIES: dict[str, _Quantity] = {
    "parameters": _Quantity(_parameters, "parameters", ""),
    "active_parameters": _Quantity(_active_parameters, "parameters", ""),
    "flops": _Quantity(_flops, "FLOPs", "training", KAPLAN),
    "needed_flops": _Quantity(lambda r: _flops(r, needed=True), "FLOPs", "training", KAPLAN),
    "training_flops": _Quantity(lambda r: _flops(r).scaled(TRAINING_FACTOR), "FLOPs", "training", KAPLAN),
    "needed_training_flops": _Quantity(
        lambda r: _flops(r, needed=True).scaled(TRAINING_FACTOR), "FLOPs", "training", KAPLAN
    ),
    "flops_6n": _Quantity(
        _six_n,
        "FLOPs",
        "training",
        SIX_N,
        "approximated",
        lambda r: of_six_n(r.numbers, r.sequence_length, r.batch_size),
        PART_OF_A_RULE,
    ),
    "flops_forward": _Quantity(_per_token, "FLOPs a token", "training", KAPLAN),
    "flops_training": _Quantity(lambda r: _per_token(r, TRAINING_FACTOR), "FLOPs a token", "training", KAPLAN),
    "cache": _Quantity(_cache, "bytes", "serving"),
    "allocated_cache": _Quantity(lambda r: _cache(r, paged=True), "bytes", "serving"),
    "weights_memory": _Quantity(_weights_memory, "bytes", "serving"),
    "inference_memory": _Quantity(_inference_memory, "bytes", "serving"),
    "training_memory": _Quantity(_training_memory, "bytes", "training", unbounded=EACH_SAVED_TENSOR),
    "chinchilla_tokens": _Quantity(
        lambda r: _active_parameters(r).scaled(TOKENS_PER_PARAMETER),
        "tokens",
        "",
        CHINCHILLA,
        "approximated",
        lambda r: of_chinchilla(r.numbers),
        PART_OF_A_RULE,
    ),
}

QUANTITIES = tuple(_QUANTITIES)
"""Names of the numbers that :func:`explain` opens."""
_PLANS: dict[str, type[ServingPlan] | type[TrainingPlan]] = {"training": TrainingPlan, "serving": ServingPlan}
PLAN_OF = {name: _PLANS.get(quantity.inputs) for name, quantity in _QUANTITIES.items()}
PLAN_OF |= dict.fromkeys(TIME_QUANTITIES, ServingPlan) | dict.fromkeys(STEP_QUANTITIES, TrainingPlan)
"""Which plan gives a quantity its length, batch and types; ``None``: none does."""
SERVING_QUANTITIES = tuple(name for name, quantity in _QUANTITIES.items() if quantity.inputs == "serving")
"""Those that a :class:`ServingPlan` gives context, batch and types."""


def explain(spec: ArchitectureSpec, quantity: str, plan: Plan | None = None) -> Term:
    """The terms of a number: a tree whose children sum to their parent.

    Parameters
    ----------
    quantity
        One of :data:`QUANTITIES`, or of :data:`TIME_QUANTITIES`, which are of a ``ServingPlan`` with hardware, or
        ``step_time``, of a ``TrainingPlan`` with hardware.
        ``flops`` and its kin are of one micro batch of a ``TrainingPlan``, ``flops_forward`` and ``flops_training`` of
        one token of it; ``cache`` and the memory of serving are of a ``ServingPlan``.
    plan
        Gives sequence or context length, batch and types; absent: the plan's defaults. Quantities that no plan
        changes take any.

    Raises
    ------
    PlannerError
        where there is no such quantity.
    UnsupportedPlan
        where the plan is not modelled, or is of the other kind.
    """
    if quantity in STEP_QUANTITIES:
        _check_kind(quantity, plan, TrainingPlan)
        return explain_step(spec, plan if isinstance(plan, TrainingPlan) else TrainingPlan())
    if quantity in TIME_QUANTITIES:
        _check_kind(quantity, plan, ServingPlan)
        return explain_time(spec, quantity, _serving_plan(plan))
    return _explained(spec, quantity, plan, single=False)


def explain_block(spec: ArchitectureSpec, path: str, quantity: str, plan: Plan | None = None) -> Term:
    """The terms of one block, counted once: ``layer_groups[0].layers[0].sequence_mixer``, ``lm_head`` …"""
    root = _explained(spec, quantity, plan, single=True)
    found = [term for term in root.walk() if term.path == path]
    if not found:
        raise PlannerError.of(
            f"{path} has no share in {quantity.replace('_', ' ')}.",
            path="path",
            remedy=f"Choose one of {', '.join(sorted({term.path for term in root.walk() if term.path}))}.",
            code="unknown_block",
        )
    return found[0]


def _check_kind(quantity: str, plan: Plan | None, wanted: type[Plan] | None) -> None:
    """Refuse a plan of another kind than the quantity's."""
    if wanted is not None and plan is not None and not isinstance(plan, wanted):
        raise UnsupportedPlan.of(
            f"{quantity.replace('_', ' ')} is of a {wanted.__name__}, not of a {type(plan).__name__}.",
            path="plan",
            remedy=f"Give a {wanted.__name__}, or none for its defaults.",
            code="wrong_plan",
        )


def _explained(spec: ArchitectureSpec, quantity: str, plan: Plan | None, single: bool) -> Term:
    import sympy

    if quantity not in _QUANTITIES:
        raise PlannerError.of(
            f"There is no quantity {quantity!r} to explain.",
            path="quantity",
            remedy=f"Choose one of {', '.join((*QUANTITIES, *TIME_QUANTITIES, *STEP_QUANTITIES))}.",
            code="unknown_quantity",
        )
    chosen = _QUANTITIES[quantity]
    length = batch = 1
    stage: Stage | None = None
    inputs: dict[str, tuple[int, str]] = {}
    wanted = PLAN_OF[quantity]
    _check_kind(quantity, plan, wanted)
    if chosen.inputs == "training":
        training = plan if isinstance(plan, TrainingPlan) else TrainingPlan()
        if quantity == "training_memory":
            check_training_plan(training, spec)
            stage = worst_stage(spec, training)
            spec = as_spec(spec, stage) if training.pipeline_parallel > 1 else spec
        plan, length, batch = training, training.sequence_length, training.micro_batch_size
        inputs = {"T": (length, "sequence_length"), "B": (batch, "micro_batch_size")}
    elif chosen.inputs == "serving":
        serving = _serving_plan(plan)
        check_serving(spec, serving)
        serving = fullest_stage(spec, serving)
        plan, length, batch = serving, serving.context_length, serving.batch_size
        inputs = {"T": (length, "context_length"), "B": (batch, "batch_size")}
    symbols_spec, values, fields = symbolic_fields(spec)
    known = {str(symbol): SymbolValue(str(symbol), value, fields[symbol]) for symbol, value in values.items()}
    made = {name: sympy.Symbol(name, integer=True, positive=True) for name in inputs}
    known |= {name: SymbolValue(name, value, f"plan.{field}") for name, (value, field) in inputs.items()}
    in_numbers = Reading(spec, spec, length, batch, plan, single, stage)
    numbers = chosen.build(in_numbers)
    formulas = chosen.build(Reading(symbols_spec, spec, made.get("T", 1), made.get("B", 1), plan, single, stage))
    whole = chosen.uncertainty(in_numbers) if chosen.uncertainty is not None and not single else None
    return _term(numbers, formulas, chosen, known, chosen.source, whole)


def _term(
    numbers: Node,
    formulas: Node,
    chosen: _Quantity,
    known: dict[str, SymbolValue],
    source: str,
    whole: Uncertainty | None = None,
) -> Term:
    """One node of both readings as a term; ``whole``: the uncertainty of the root, where it is not its parts' sum."""
    import sympy

    value = float(numbers.value) if isinstance(numbers.value, Fraction) else numbers.value
    formula = sympy.sympify(formulas.value)
    own = numbers.source or source
    children = tuple(
        _term(number, made, chosen, known, own)
        for number, made in zip(numbers.children, formulas.children, strict=True)
    )
    status = numbers.status or (worst([child.status for child in children]) if children else chosen.status)
    uncertainty = None
    if status != "exact":
        summed = sum_of([(child.value, child.uncertainty) for child in children])
        uncertainty = whole or numbers.uncertainty or summed or Uncertainty(None, None, chosen.unbounded)
    return Term(
        name=numbers.name,
        value=value,
        formula=formula,
        unit=chosen.unit,
        status=status,
        source=own,
        symbols=tuple(known[name] for name in sorted(str(symbol) for symbol in formula.free_symbols)),
        path=numbers.path,
        times=numbers.times,
        children=children,
        uncertainty=uncertainty,
    )
