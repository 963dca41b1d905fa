"""Which setting changes the result, and how far one can be taken: every field of a specification and of its plan.

:func:`tornado` changes one field at a time, halves and doubles numbers, turns flags and takes every other choice, and
reads one output each time. A field of several layers that are alike is changed in all of them at once, as a person
would: ``attention.num_key_value_heads``. What the planner refuses is listed with its reason, and never left out in
silence.

:func:`largest` asks the other way round: the greatest value of one field at which an output stays within a bound, or
everything still fits a device. It is exact: it ends where the next value that is possible at all no longer holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from planner.cache import cache_bytes, formats_for
from planner.compute import flops
from planner.errors import InvalidSpec, PlannerError, UnsupportedPlan
from planner.hardware import Device, hardware, hardware_catalogue
from planner.plans import Plan, ServingPlan, TrainingPlan, parse_plan
from planner.serving import WEIGHT_FORMATS, estimate_inference, fits
from planner.sizing import size
from planner.spec import ArchitectureSpec, LearnedPositions, parse_spec
from planner.training import estimate_training

PlanKind = Literal["none", "serving", "training"]
Setting = tuple[ArchitectureSpec, Plan | None]


@dataclass(frozen=True, slots=True)
class Output:
    """A number that settings change."""

    label: str
    unit: str
    plan: PlanKind
    read: Callable[[ArchitectureSpec, Any], float | None]


def _per_token(spec: ArchitectureSpec, plan: TrainingPlan) -> float:
    return flops(spec, plan.sequence_length).total / plan.sequence_length


OUTPUTS: dict[str, Output] = {
    "parameters": Output("Parameters", "count", "none", lambda spec, plan: size(spec).parameters.total),
    "active_parameters": Output("Active parameters", "count", "none", lambda spec, plan: size(spec).parameters.active),
    "flops_per_token": Output("FLOPs a token", "flops", "training", _per_token),
    "cache": Output(
        "Cache", "bytes", "serving",
        lambda spec, plan: cache_bytes(spec, plan.context_length, plan.batch_size, plan.cache_dtype),
    ),
    "inference_memory": Output(
        "Memory of serving", "bytes", "serving", lambda spec, plan: estimate_inference(spec, plan).memory.total_bytes
    ),
    "time_to_first_token": Output(
        "Time to first token", "seconds", "serving",
        lambda spec, plan: estimate_inference(spec, plan).time_to_first_token_seconds,
    ),
    "inter_token_latency": Output(
        "Time between tokens", "seconds", "serving",
        lambda spec, plan: estimate_inference(spec, plan).inter_token_latency_seconds,
    ),
    "tokens_per_second": Output(
        "Tokens a second", "per_second", "serving", lambda spec, plan: estimate_inference(spec, plan).tokens_per_second
    ),
    "training_memory": Output(
        "Memory of training", "bytes", "training", lambda spec, plan: estimate_training(spec, plan).memory.total_bytes
    ),
    "step_time": Output(
        "Time of a step", "seconds", "training", lambda spec, plan: estimate_training(spec, plan).step_seconds
    ),
    "training_tokens_per_second": Output(
        "Tokens a second of training", "per_second", "training",
        lambda spec, plan: estimate_training(spec, plan).tokens_per_second,
    ),
}  # fmt: skip
PLANS: dict[PlanKind, type[Plan] | None] = {"none": None, "serving": ServingPlan, "training": TrainingPlan}


def output_of(name: str) -> Output:
    """The output of that name; ``UnsupportedPlan`` lists those there are."""
    if name in OUTPUTS:
        return OUTPUTS[name]
    raise UnsupportedPlan.of(
        f"There is no output called {name!r}.",
        path="output",
        remedy=f"Choose one of {', '.join(OUTPUTS)}.",
        code="unknown_output",
    )


def _plan_for(output: Output, plan: Plan | None) -> Plan | None:
    wanted = PLANS[output.plan]
    if wanted is None or isinstance(plan, wanted):
        return plan
    if plan is None:
        return wanted()
    raise UnsupportedPlan.of(
        f"{output.label} is read from a {output.plan} plan.",
        path="plan",
        remedy=f"Give a {wanted.__name__}.",
        code="wrong_plan",
    )


def _read(output: Output, spec: ArchitectureSpec, plan: Plan | None) -> float:
    value = output.read(spec, plan)
    if value is None:
        raise UnsupportedPlan.of(
            f"{output.label} is not modelled for this plan.",
            path="output",
            remedy="Name hardware whose rates are known, or choose another output.",
            code="output_not_modelled",
        )
    return float(value)


# --- fields ---


@dataclass(frozen=True, slots=True)
class Field:
    """A field that can be changed: of the plan, or of one or several alike parts of the specification."""

    name: str
    """``plan.batch_size``, ``hidden_size``, ``attention.num_key_value_heads``."""
    value: Any
    places: tuple[str, ...]
    """Paths in the specification that are changed together; empty for a field of the plan."""
    choices: tuple[Any, ...]
    """Values that are tried."""


def _alternatives(annotation: Any, value: Any) -> tuple[Any, ...]:
    """Other values of a field: half and double of a number, a flag turned, every other choice."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return tuple(dict.fromkeys(other for other in (value // 2, value * 2) if other > 0 and other != value))
    if isinstance(value, float):
        return (value / 2, value * 2) if value else ()
    literals = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    return tuple(choice for part in literals for choice in get_args(part) if choice != value)


def plan_fields(spec: ArchitectureSpec, plan: Plan) -> list[Field]:
    """Every field of a plan with the values that are tried."""
    named = {"weight_format": WEIGHT_FORMATS, "cache_dtype": formats_for(spec)}
    found = []
    for name, field in type(plan).model_fields.items():
        value = getattr(plan, name)
        if name == "hardware":
            others: tuple[Any, ...] = tuple(device.id for device in hardware_catalogue()) if value else ()
        elif name in named:
            others = tuple(named[name])
        else:
            others = _alternatives(field.annotation, value)
        others = tuple(other for other in others if other != value)
        if others:
            found.append(Field(f"plan.{name}", value, (), others))
    return found


def spec_fields(spec: ArchitectureSpec) -> list[Field]:
    """Every field of a specification with the values that are tried; alike parts are changed together."""
    together: dict[tuple[str, Any], list[str]] = {}
    choices: dict[tuple[str, Any], tuple[Any, ...]] = {}
    for path, name, annotation, value in _leaves(spec):
        others = _alternatives(annotation, value)
        if others:
            together.setdefault((name, value), []).append(path)
            choices[name, value] = others
    several = {name for name, _ in together if sum(1 for other, _ in together if other == name) > 1}
    return [
        Field(f"{name} = {value}" if name in several else name, value, tuple(paths), choices[name, value])
        for (name, value), paths in together.items()
    ]


_FIXED = ("kind", "name")
"""Fields that say what a part is, or what a design is called."""


def _leaves(part: BaseModel, path: str = "", name: str = "") -> Iterator[tuple[str, str, Any, Any]]:
    """Path, readable name, annotation and value of every plain field, in their order."""
    for field, info in type(part).model_fields.items():
        if field in _FIXED:
            continue
        value = getattr(part, field)
        where = f"{path}.{field}" if path else field
        if isinstance(value, BaseModel):
            yield from _leaves(value, where, f"{getattr(value, 'kind', field)}.")
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    inner = "" if field == "layer_groups" else name
                    yield from _leaves(item, f"{where}[{index}]", inner)
        else:
            yield where, f"{name}{field}", info.annotation, value


def changed(setting: Setting, field: Field, value: Any) -> Setting:
    """The same with another value in a field; ``PlannerError`` where that cannot be."""
    spec, plan = setting
    if field.places:
        data = spec.model_dump(mode="json")
        for place in field.places:
            _put(data, place, value)
        return parse_spec(data), plan
    assert plan is not None
    name = field.name.removeprefix("plan.")
    return spec, parse_plan(type(plan), {**plan.model_dump(), name: value})


def _put(data: Any, path: str, value: Any) -> None:
    *way, last = path.replace("[", ".").replace("]", "").split(".")
    for step in way:
        data = data[int(step)] if step.isdigit() else data[step]
    data[last] = value


# --- one field at a time ---


@dataclass(frozen=True, slots=True)
class Change:
    """One value that was tried."""

    value: Any
    output: float | None
    """``None`` where it was refused."""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Swing:
    """What a field does to the output, over the values that were tried."""

    field: str
    value: Any
    changes: tuple[Change, ...]
    low: float
    """Least output over the values that are possible, the present one included."""
    high: float
    low_value: Any
    high_value: Any

    @property
    def span(self) -> float:
        """Between the least and the greatest output."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Tornado:
    """Every field by what it does to an output, the most first."""

    output: str
    unit: str
    base: float
    swings: tuple[Swing, ...]
    unmoved: tuple[str, ...]
    """Fields that change nothing of the output."""
    refused: tuple[tuple[str, str], ...]
    """Fields of which no other value was possible, and why."""


def tornado(spec: ArchitectureSpec, output: str, plan: Plan | None = None) -> Tornado:
    """Change every field by itself, and say what each does to ``output``.

    Raises
    ------
    UnsupportedPlan
        where there is no such output, or it is not modelled for the plan as it is.
    """
    wanted = output_of(output)
    plan = _plan_for(wanted, plan)
    base = _read(wanted, spec, plan)
    swings, unmoved, refused = [], [], []
    for field in [*(plan_fields(spec, plan) if plan is not None else []), *spec_fields(spec)]:
        changes = tuple(_try(wanted, (spec, plan), field, value) for value in field.choices)
        possible = [(field.value, base)]
        possible += [(each.value, each.output) for each in changes if each.output is not None]
        if len(possible) == 1:
            refused.append((field.name, next(each.refused for each in changes)))
            continue
        low_value, low = min(possible, key=lambda pair: pair[1])
        high_value, high = max(possible, key=lambda pair: pair[1])
        if low == high:
            unmoved.append(field.name)
        else:
            swings.append(Swing(field.name, field.value, changes, low, high, low_value, high_value))
    swings.sort(key=lambda swing: -swing.span)
    return Tornado(output, wanted.unit, base, tuple(swings), tuple(unmoved), tuple(refused))


def _try(output: Output, setting: Setting, field: Field, value: Any) -> Change:
    try:
        return Change(value, _read(output, *changed(setting, field, value)))
    except PlannerError as error:
        return Change(value, None, str(error.problems[0]))


# --- how far ---

LENGTHS = ("plan.context_length", "plan.sequence_length")
MOST_STEPS = 512
"""Values in a row that may be impossible before the search for the next possible one ends."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How far one field can be taken."""

    field: str
    value: int | None
    """The greatest possible value that holds; ``None`` where not even the least one does."""
    next_value: int | None
    """The next possible value, which no longer holds; ``None`` where there is none, and ``reason`` says why."""
    reason: str


def numeric_fields(spec: ArchitectureSpec, plan: Plan | None) -> dict[str, int]:
    """The fields that :func:`largest` can be asked about, with their values: those that are the same in all layers."""
    found: dict[str, int] = {}
    if plan is not None:
        found |= {f"plan.{name}": value for name, value in plan if _is_count(value)}
    found["num_layers"] = spec.num_layers
    values: dict[str, set[int]] = {}
    for _, called, _, value in _leaves(spec):
        if _is_count(value) and called != "repeats":
            values.setdefault(called, set()).add(value)
    return found | {name: next(iter(each)) for name, each in values.items() if len(each) == 1}


def field_of(spec: ArchitectureSpec, plan: Plan | None, name: str) -> Field:
    """The numeric field of that name: of the plan, by its path in the specification, or as a tornado calls it.

    ``num_layers`` stands for the repeats of the group with the most layers.
    """
    plain = name.removeprefix("plan.")
    if plan is not None and plain in type(plan).model_fields:
        value = getattr(plan, plain)
        if isinstance(value, int) and not isinstance(value, bool):
            return Field(f"plan.{plain}", value, (), ())
    if name == "num_layers":
        deepest = max(range(len(spec.layer_groups)), key=lambda index: spec.layer_groups[index].num_layers)
        name = f"layer_groups[{deepest}].repeats"
    known = [(path, called, value) for path, called, _, value in _leaves(spec) if _is_count(value)]
    for path, _, value in known:
        if path == name:
            return Field(name, value, (path,), ())
    places = tuple(path for path, called, _ in known if called == name or called.endswith(f".{name}"))
    values = {value for path, _, value in known if path in places}
    if len(values) == 1:
        return Field(name, values.pop(), places, ())
    if len(values) > 1:
        raise UnsupportedPlan.of(
            f"{name} is {' and '.join(map(str, sorted(values)))} in different layers.",
            path="field",
            remedy=f"Name one of {', '.join(places[:4])}.",
            code="several_values",
        )
    raise UnsupportedPlan.of(
        f"There is no number called {name!r}.",
        path="field",
        remedy="Name a numeric field of the plan, num_layers, or one such as num_experts or layer_groups[0].repeats.",
        code="unknown_field",
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def largest(
    spec: ArchitectureSpec,
    field: str,
    plan: Plan | None = None,
    *,
    output: str | None = None,
    at_most: float | None = None,
    device: Device | str | None = None,
) -> Limit:
    """The greatest value of ``field`` at which ``output`` is ``at_most`` something, or the plan fits ``device``.

    An output that falls while the field grows is taken for one that fails once it failed.

    Raises
    ------
    UnsupportedPlan
        where the field, the output or the device is not known, or what is asked for is said by halves.
    """
    if (device is None) == (output is None) or (output is None) != (at_most is None):
        raise UnsupportedPlan.of(
            "A limit is either an output with its bound or a device.",
            path="output",
            remedy="Give output and at_most, or device.",
            code="no_limit",
        )
    if at_most is not None and not math.isfinite(at_most):
        raise UnsupportedPlan.of(
            f"{at_most} is no bound.", path="at_most", remedy="Write a number such as 8e9.", code="no_number"
        )
    if output is not None:
        wanted, bound = output_of(output), float(at_most or 0)
        plan = _plan_for(wanted, plan)

        def holds(setting: Setting) -> bool:
            return _read(wanted, *setting) <= bound

    else:
        chosen = hardware(device) if isinstance(device, str) else device
        if not isinstance(plan, ServingPlan | TrainingPlan):
            raise UnsupportedPlan.of(
                "What has to fit a device is said by a plan.", path="plan", remedy="Give one.", code="no_plan"
            )

        def holds(setting: Setting) -> bool:
            assert isinstance(setting[1], ServingPlan | TrainingPlan)
            assert chosen is not None
            return fits(setting[0], setting[1], chosen).fits

    where = field_of(spec, plan, field)
    return _Search((spec, plan), where, holds).run()


class _Search:
    """Doubling, then halving, over the values that are possible."""

    def __init__(self, setting: Setting, field: Field, holds: Callable[[Setting], bool]) -> None:
        self.setting, self.field, self.holds = setting, field, holds
        self.known: dict[int, bool | None] = {}
        self.why = ""

    def verdict(self, value: int) -> bool | None:
        """Whether ``value`` holds; ``None`` where it is not possible at all."""
        if value not in self.known:
            self.known[value] = self._verdict(value)
        return self.known[value]

    def _verdict(self, value: int) -> bool | None:
        positions = self.setting[0].positions
        if self.field.name in LENGTHS and isinstance(positions, LearnedPositions) and value > positions.num_positions:
            self.why = f"The model has {positions.num_positions:,} learned positions, and none beyond them."
            return None
        try:
            return self.holds(changed(self.setting, self.field, value))
        except InvalidSpec as error:
            self.why = str(error.problems[0])
        except UnsupportedPlan as error:
            if error.code == "output_not_modelled":
                raise
            self.why = str(error.problems[0])
        return None

    def possible(self, start: int, end: int, step: int) -> tuple[int, bool] | None:
        """The first possible value from ``start`` on towards ``end``, and whether it holds."""
        for value in range(start, end, step)[:MOST_STEPS]:
            verdict = self.verdict(value)
            if verdict is not None:
                return value, verdict
        return None

    def run(self) -> Limit:
        first = self.possible(1, 1 + MOST_STEPS, 1)
        if first is None:
            return Limit(self.field.name, None, None, self.why)
        if not first[1]:
            return Limit(self.field.name, None, first[0], "not even the least possible value holds")
        low, high = first[0], None
        while high is None:
            upper = self.possible(2 * low, 2 * low + MOST_STEPS, 1) or self.possible(2 * low, low, -1)
            if upper is None:
                break
            if upper[1]:
                low = upper[0]
            else:
                high = upper[0]
        if high is not None:
            while True:
                middle = self.possible((low + high) // 2, low, -1) or self.possible((low + high) // 2 + 1, high, 1)
                if middle is None:
                    break
                if middle[1]:
                    low = middle[0]
                else:
                    high = middle[0]
        following = self.possible(low + 1, low + 1 + MOST_STEPS, 1)
        while following is not None and following[1]:
            low = following[0]
            following = self.possible(low + 1, low + 1 + MOST_STEPS, 1)
        if following is None:
            return Limit(self.field.name, low, None, self.why)
        return Limit(self.field.name, low, following[0], "the next possible value no longer holds")


def smallest_device(spec: ArchitectureSpec, plan: ServingPlan | TrainingPlan) -> Device | None:
    """The device of the catalogue with the least usable memory that the plan fits; ``None`` where it fits none."""
    return next((device for device in hardware_catalogue() if fits(spec, plan, device).fits), None)
