"""The Studio's key numbers: what the planner says of the draft, beside the baseline. Results are kept by design."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from pages.widgets import checks, figures, words
from pages.widgets.draft import Draft, Settings
from pages.widgets.key_numbers import KeyNumber
from planner import ArchitectureSpec, PlannerError, cache_bytes, size
from planner.blocks import Block, blocks, multi_head_reference
from planner.cache import formats_for
from planner.overview import OverviewNumber, overview
from planner.plans import ServingPlan, TrainingPlan
from planner.sizing import ParameterCounts

_FIGURES = {"count": figures.count, "flops": figures.flops, "bytes": figures.memory}
_KEPT = 256


@lru_cache(maxsize=_KEPT)
def overview_of(spec: ArchitectureSpec, serving: ServingPlan, training: TrainingPlan) -> dict[str, OverviewNumber]:
    """:func:`planner.overview.overview`, computed once a design."""
    return overview(spec, serving, training)


@lru_cache(maxsize=_KEPT)
def size_of(spec: ArchitectureSpec) -> ParameterCounts:
    """The counted parameters, once a design."""
    return size(spec).parameters


@lru_cache(maxsize=_KEPT)
def blocks_of(spec: ArchitectureSpec, serving: ServingPlan, training: TrainingPlan) -> dict[str, Block]:
    """:func:`planner.blocks.blocks`, computed once a design."""
    return blocks(
        spec,
        sequence_length=training.sequence_length,
        context_length=serving.context_length,
        batch_size=serving.batch_size,
        cache_dtype=serving.cache_dtype,
    )


@lru_cache(maxsize=_KEPT)
def cache_curve(spec: ArchitectureSpec, contexts: tuple[int, ...], serving: ServingPlan) -> tuple[int, ...]:
    """Bytes of cache at each context length."""
    return tuple(cache_bytes(spec, length, serving.batch_size, serving.cache_dtype) for length in contexts)


def settle(draft: Draft) -> str:
    """Bring a type of cache that a shown design cannot have back to bf16; what there is to say of that."""
    serving = draft.settings.serving
    asked = serving.cache_dtype
    if all(asked in formats_for(spec) for spec in (draft.spec, draft.baseline or draft.spec)):
        return ""
    draft.settings = replace(draft.settings, serving=serving.model_copy(update={"cache_dtype": "bf16"}))
    return f"A cache in {asked} has a scale for each head, and latents have no heads: it is taken in bf16."


@lru_cache(maxsize=_KEPT)
def reference_of(spec: ArchitectureSpec) -> ArchitectureSpec | None:
    """:func:`planner.blocks.multi_head_reference`, made once a design; ``None`` also where no such design is valid."""
    try:
        return multi_head_reference(spec)
    except PlannerError:
        return None


def key_numbers(spec: ArchitectureSpec, baseline: ArchitectureSpec, settings: Settings) -> list[KeyNumber]:
    """The row: each number of ``spec`` with its change against ``baseline``, and whether it was measured."""
    serving, training = settings.serving, settings.training
    now = overview_of(spec, serving, training)
    then = overview_of(baseline, serving, training)
    context = figures.context(serving.context_length)
    length = figures.context(training.sequence_length)
    training_flops = now["flops_training"]
    train = figures.flops(training_flops.value or 0)
    dense = now["active_parameters"].value == now["parameters"].value
    sequences = "one sequence" if serving.batch_size == 1 else f"{serving.batch_size:,} sequences"
    chinchilla = now["chinchilla_tokens"]
    numbers = [
        _number(now, then, "parameters", "Parameters", "as the baseline"),
        _number(now, then, "active_parameters", "Active a token", "dense: all of them" if dense else "of its experts"),
        _number(
            now,
            then,
            "flops_forward",
            "FLOPs a token",
            f"training {train}",
            exact=f"{now['flops_forward'].value:,.0f} forward, {training_flops.value:,.0f} in training, at {length}",
            short_unit="FLOPs",
        ),
        _number(now, then, "cache", f"Cache at {context}", f"{serving.cache_dtype}, {sequences}"),
        _number(now, then, "inference_memory", "Inference memory", f"{serving.weight_format} weights, {context}"),
        _number(
            now,
            then,
            "training_memory",
            "Training memory",
            f"{words.setting(training.optimizer)}, {words.setting(training.precision)}",
        ),
        _number(now, then, "chinchilla_tokens", "Chinchilla tokens", "20 a parameter", exact=_tokens(chinchilla.value)),
    ]
    found = checks.of_design(spec)
    return [
        replace(number, measured=found[number.quantity][0].words) if number.quantity in found else number
        for number in numbers
    ]


def _tokens(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} tokens"


def _number(
    now: dict[str, OverviewNumber],
    then: dict[str, OverviewNumber],
    quantity: str,
    label: str,
    note: str,
    *,
    exact: str = "",
    short_unit: str = "",
) -> KeyNumber:
    number, reference = now[quantity], then[quantity]
    if number.value is None:
        problem = number.problem
        said = "" if problem is None else f"{problem.message} {problem.remedy}"
        return KeyNumber(quantity, label, "—", exact=said, status="unsupported", note="not modelled")
    figure = _FIGURES[number.unit](number.value)
    unit = figure.unit
    if short_unit and unit.endswith(short_unit):
        unit = unit.removesuffix("s")
    change, direction = "", ""
    if reference.value is not None and number.value != reference.value:
        change = figures.relative(number.value, reference.value)
        direction = "good" if number.value < reference.value else "bad"
        before = _FIGURES[number.unit](reference.value)
        note = f"from {before.value if before.unit == figure.unit else before}"
    hover = exact or figure.exact
    own = number.uncertainty
    if own is not None and own.low is not None and own.high is not None:
        hover += f", between {_FIGURES[number.unit](own.low)} and {_FIGURES[number.unit](own.high)}"
    return KeyNumber(quantity, label, figure.value, unit, hover, number.status, change, direction, note)
