"""Times of passes on a machine that was measured: matrices by their size, and what each component takes beside them.

A calibration holds, for every precision that was measured,

* matrices: the rate of a multiplication by its rows and its size, forward, and of the two of its backward pass; of a
  few rows also by how many bytes of matrices a pass reads, which caches hold or do not
* on a CPU, scores of fused attention: seconds for each, by the length and the channels of a head
* for each kind of component, in a layer with its norm and its addition: the seconds that its operators take however
  small they are (their launches), the seconds for each byte that it keeps for the backward pass (which stands for all
  that is elementwise), and the seconds for each FLOP between tokens
* what an option of a kind (:data:`OPTIONS`) adds to that, or takes off
* what stands outside the layers: the embedding, the last norm, the head and the loss; and the optimizer's step

A GPU works through a queue that the host fills. There launches are the host's, all else is the device's, and a pass
takes the longer of the two: what the device waits for the host stands as launches.

A prediction adds these up for a design. It is made of measurements of this very machine at a few shapes, and of nothing
that was fitted to the design. Rates of matrices are interpolated in the logarithms of their rows and their size.
"""

from __future__ import annotations

import datetime
import math
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from planner.activations import layer_activations
from planner.components import Attention, LatentAttention, LightningAttention, Mamba2
from planner.components.base import Component, SavedTensor
from planner.errors import UnsupportedPlan
from planner.matrices import between_tokens, matrices, matrix_flops
from planner.paths import data_directory
from planner.sizing import active_count, size
from planner.spec import ArchitectureSpec, Layer, problems_of

Phase = Literal["prefill", "decode", "training"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Precision = Literal["fp32", "bf16_autocast"]
PHASE_LABELS: dict[Phase, str] = {
    "prefill": "Time of prefill", "decode": "Time of a decoded token", "training": "Time of a training step",
}  # fmt: skip
"""What a phase's time is called where it stands beside a measurement."""


def as_phase(name: str) -> Phase:
    """The phase of that name; ``ValueError`` where there is none."""
    return PHASES[PHASES.index(name)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _between(value: float, places: tuple[int, ...], logarithms: list[float]) -> float:
    """Interpolated over the logarithms of both; beyond the places the nearest holds."""
    return float(np.interp(math.log(max(value, 1e-9)), np.log(np.array(places)), logarithms))


class MatrixRates(_Record):
    """FLOPs a second by bytes, rows and size, where the size is the square root of inputs times outputs."""

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    working_sets: tuple[int, ...]
    """Bytes of all matrices that take turns."""
    flops_per_second: tuple[tuple[tuple[float, ...], ...], ...]
    """A table for each working set, in it a row for each number of rows and a column for each size."""

    def at(self, rows: float, inputs: float, outputs: float, working_set: float) -> float:
        """The rate of ``rows`` vectors of ``inputs`` through a matrix of ``outputs`` times ``inputs``, one of several
        of ``working_set`` bytes together."""
        side = math.sqrt(max(inputs * outputs, 1e-9))
        by_set = [
            _between(rows, self.rows, [_between(side, self.sizes, np.log(np.array(line)).tolist()) for line in table])
            for table in self.flops_per_second
        ]
        return math.exp(_between(working_set, self.working_sets, by_set))


class ScoreRates(_Record):
    """Seconds for each score of fused attention, by the length and the channels of a head."""

    lengths: tuple[int, ...]
    channels: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    """A row for each length, a column for each number of channels."""

    def at(self, length: float, channels: float) -> float:
        """Seconds for a score of a head of so many channels in a sequence of ``length``."""
        lines = [_between(channels, self.channels, np.log(np.array(line)).tolist()) for line in self.seconds]
        return math.exp(_between(length, self.lengths, lines))


class LaunchRates(_Record):
    """What operators take however small they are."""

    launch_seconds: float
    least_seconds: float = 0.0
    """Of a device that works through a queue."""


class KindRates(LaunchRates):
    """What a component takes beside its matrices and the scores of fused attention."""

    seconds_per_byte: float
    """Of what it keeps for the backward pass; in decoding, of its cache."""
    seconds_per_flop: float
    """Between tokens."""
    seconds_per_pair: float = 0.0
    """Of positions whose score a head has, in chunks or in the whole sequence; of what is not fused."""


class OptionRates(LaunchRates):
    """What an option adds to its kind, or takes off it."""

    seconds_per_byte: float = 0.0
    """Of what a component that has it keeps."""


class OuterRates(_Record):
    """What stands outside the layers."""

    launch_seconds: float
    places_seconds: float = 0.0
    """Of the angles that all attention layers of a pass share; other angles, and masks, are taken to be as much."""
    seconds_per_logit: float
    """Beside the head's product."""


class PhaseRates(_Record):
    """One phase in one precision."""

    kinds: dict[str, KindRates]
    options: dict[str, OptionRates] = {}
    outer: OuterRates


Scores = Literal["causal", "masked"]


class ExpertSeconds(_Record):
    """What one expert's matrix takes beside its arithmetic: each is a multiplication of its own."""

    prompt: float = 0.0
    """Without gradients."""
    training: float = 0.0
    training_one_by_one: float = 0.0
    """Where sides that are no multiples of eight keep experts out of one grouped multiplication."""


class PrecisionRates(_Record):
    """All of one precision."""

    forward: MatrixRates
    backward: MatrixRates
    """Of both products of the backward pass."""
    scores: dict[Scores, tuple[ScoreRates, ScoreRates]] = {}
    """Forward and backward; of the pairs that the plain causal mask leaves, or of whole squares under another mask."""
    expert_seconds: ExpertSeconds = ExpertSeconds()
    phases: dict[Phase, PhaseRates]


class Calibration(_Record):
    """One machine, as it was measured."""

    device_name: str
    threads: int
    versions: dict[str, str]
    measured_at: datetime.datetime
    is_queued: bool = False
    """Whether the device works through what the host has queued, both at the same time."""
    launch_seconds: float
    """Of one small operator."""
    copy_bytes_per_second: dict[str, float]
    """Read and written, by the size of what is copied."""
    attention_flops_per_second: dict[str, float]
    """Of fused causal attention, forward, by the length."""
    optimizer_seconds_per_parameter: float
    optimizer_launch_seconds: float = 0.0
    """Of the host for each tensor."""
    relative_interval: tuple[float, float] | None = None
    """Measured over predicted time, the 10th and the 90th percentile over the models that it was held against."""
    precisions: dict[Precision, PrecisionRates]

    @property
    def name(self) -> str:
        """How a prediction names it."""
        return f"{self.device_name}, {self.threads} threads, {self.measured_at:%Y-%m-%d %H:%M} UTC"


def calibration_path() -> pathlib.Path:
    """The file that the job of that kind leaves for the planner."""
    return data_directory() / "calibration.json"


def stored_calibration(path: pathlib.Path | None = None) -> Calibration | None:
    """The calibration of this machine; ``None`` where there is none.

    Raises
    ------
    UnsupportedPlan
        where the file is there but cannot be read as one.
    """
    file = path or calibration_path()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        raise UnsupportedPlan.of(
            f"The calibration of this machine cannot be read: {problems_of(error)[0]}",
            path="hardware",
            remedy=f"Delete {file} and calibrate the machine again.",
            code="unreadable_calibration",
        ) from error


@dataclass(frozen=True, slots=True)
class PredictedTime:
    """Seconds of one pass, or of one token of decoding, by part; the parts sum to ``seconds``."""

    seconds: float
    parts: dict[str, float]
    profile: str
    """The calibration that it was made with."""
    status: str = "modelled"


def predict_time(
    spec: ArchitectureSpec,
    calibration: Calibration,
    phase: Phase,
    *,
    batch_size: int,
    length: int,
    precision: Precision = "fp32",
) -> PredictedTime:
    """Seconds of a prompt of ``length`` tokens, of one further token behind as many, or of a training step.

    Raises
    ------
    UnsupportedPlan
        where the precision or a component of the design was not calibrated.
    """
    rates = calibration.precisions.get(precision)
    if rates is None:
        raise UnsupportedPlan.of(
            f"{precision} was not calibrated on {calibration.device_name}.",
            path="precision",
            remedy=f"Choose {' or '.join(calibration.precisions)}.",
            code="precision_not_calibrated",
        )
    parts = {"matrices": 0.0, "elementwise": 0.0, "between tokens": 0.0, "launches": 0.0}
    working_set = matrix_bytes(spec)
    for group in spec.layer_groups:
        for layer in group.layers:
            for part, seconds in _layer(
                spec, layer, rates, phase, batch_size, length, precision, working_set, calibration.is_queued
            ):
                parts[part] += group.repeats * seconds
    for part, seconds in _outer(spec, rates, phase, batch_size, length, working_set):
        parts[part] += seconds
    if phase == "training":
        sized = size(spec)
        parts["optimizer"] = calibration.optimizer_seconds_per_parameter * sized.parameters.total
        if calibration.optimizer_launch_seconds:
            parts["launches"] += calibration.optimizer_launch_seconds * len(sized.tensors)
    if calibration.is_queued:
        working = sum(seconds for part, seconds in parts.items() if part != "launches")
        parts["launches"] = max(0.0, parts["launches"] - working)
    return PredictedTime(sum(parts.values()), parts, calibration.name)


def _layer(
    spec: ArchitectureSpec,
    layer: Layer,
    rates: PrecisionRates,
    phase: Phase,
    batch_size: int,
    length: int,
    precision: Precision,
    working_set: float,
    is_queued: bool,
) -> Iterator[tuple[str, float]]:
    tokens = batch_size * (1 if phase == "decode" else length)
    kept = kept_bytes(spec, layer, length, batch_size, precision) if phase != "decode" else {}
    of_phase = rates.phases[phase]
    for stem, mixer in (("sequence", layer.sequence_mixer), ("channel", layer.channel_mixer)):
        if mixer is None:
            continue
        yield "matrices", matrix_seconds(mixer, spec.hidden_size, tokens, rates, phase, working_set)
        parts = list(kinds_within(mixer))
        first_kind, first = parts[0]
        for kind, part in parts:
            own = of_phase.kinds.get(kind)
            if own is None:
                raise UnsupportedPlan.of(
                    f"{kind} was not calibrated.", path="hardware", remedy="Calibrate the machine again.",
                    code="kind_not_calibrated",
                )  # fmt: skip
            around = options_of(layer) if part is first else ()
            added = [of_phase.options[name] for name in (*around, *options_of(part)) if name in of_phase.options]
            yield "launches", max(0.0, sum((each.launch_seconds for each in added), own.launch_seconds))
            yield "elementwise", max(0.0, sum((each.least_seconds for each in added), own.least_seconds))
            if phase == "decode":
                yield "elementwise", own.seconds_per_byte * cached_bytes(part, spec.hidden_size, length, batch_size)
            elif stem == "sequence":
                seconds = score_seconds(part, length, batch_size, rates, phase)
                if seconds is None:
                    flops = flops_between_tokens(part, spec.hidden_size, length, batch_size, is_queued)
                    pairs = pairs_of_heads(part, length, batch_size)
                    seconds = own.seconds_per_flop * flops + own.seconds_per_pair * pairs
                yield "between tokens", seconds
        if phase != "decode":
            per_byte = of_phase.kinds[first_kind].seconds_per_byte
            per_byte += sum(
                of_phase.options[name].seconds_per_byte for name in options_of(first) if name in of_phase.options
            )
            yield "elementwise", max(0.0, per_byte) * kept[stem]


@dataclass(frozen=True, slots=True)
class Option:
    """Something that a component may have, or the layer around it, and how one looks that has it, or has not."""

    component: str
    """Or ``layer``."""
    has: Callable[[Any], bool]
    fields: Mapping[str, Any]
    without: Mapping[str, Any]


OPTIONS: dict[str, Option] = {
    "norms before and behind": Option(
        "layer",
        lambda layer: layer.norm_placement == "sandwich",
        {"norm_placement": "sandwich"},
        {"norm_placement": "pre"},
    ),
    "norms of queries and keys": Option(
        "attention", lambda part: part.query_key_norm is not None, {"query_key_norm": "head"}, {"query_key_norm": None}
    ),
    "gate of the output": Option(
        "attention", lambda part: part.output_gate is not None, {"output_gate": "elementwise"}, {"output_gate": None}
    ),
    "rotation of some channels": Option(
        "attention", lambda part: 0 < part.rope_share < 1, {"rope_share": 0.5}, {"rope_share": 1.0}
    ),
    "no rotation": Option("attention", lambda part: part.rope_share == 0, {"rope_share": 0.0}, {"rope_share": 1.0}),
    "shared experts": Option(
        "moe",
        lambda part: part.shared_intermediate_size is not None,
        {"shared_intermediate_size": 4096},
        {"shared_intermediate_size": None, "shared_expert_gate": False},
    ),
    "no gate": Option("mlp", lambda part: not part.gated, {"gated": False}, {"gated": True}),
    "GELU by tanh": Option(
        "mlp", lambda part: part.activation == "gelu_tanh", {"activation": "gelu_tanh"}, {"activation": "silu"}
    ),
    "biases": Option("mlp", lambda part: part.bias, {"bias": True}, {"bias": False}),
}
"""What changes the number of a component's operators. Each is measured alone, and they are taken to add up."""


def options_of(holder: Component | Layer) -> Iterator[str]:
    """Those that a component has, or a layer for each of its mixers."""
    of = "layer" if isinstance(holder, Layer) else holder.component
    for name, option in OPTIONS.items():
        if option.component == of and option.has(holder):
            yield name


def score_seconds(part: Component, length: int, batch_size: int, rates: PrecisionRates, phase: Phase) -> float | None:
    """Seconds of the scores of fused attention; ``None`` where a component has none, or they were not measured."""
    if (
        not rates.scores
        or not isinstance(part, Attention | LatentAttention)
        or getattr(part, "recomputes_scores", False)
    ):
        return None
    if isinstance(part, Attention):
        channels = max(part.head_dim, part.head_dim if part.value_head_dim is None else part.value_head_dim)
    else:
        channels = max(part.qk_nope_head_dim + part.qk_rope_head_dim, part.v_head_dim)
    # The kernel goes through whole squares where a mask is given, whatever that hides.
    is_masked = getattr(part, "sees_a_part", False)
    pairs = length * length if is_masked else length * (length + 1) / 2
    forward, backward = rates.scores["masked" if is_masked else "causal"]
    each = forward.at(length, channels) + (backward.at(length, channels) if phase == "training" else 0.0)
    return batch_size * part.num_attention_heads * pairs * each


def pairs_of_heads(part: Component, length: int, batch_size: int) -> float:
    """Scores of all heads that exist one by one; of kinds that keep none, or work on them by products alone, none."""
    if isinstance(part, Attention) and part.recomputes_scores:
        return float(batch_size * part.num_attention_heads * length**2)
    if isinstance(part, Mamba2 | LightningAttention):
        heads = part.num_heads if isinstance(part, Mamba2) else part.num_attention_heads
        chunk = min(part.chunk_size, length)
        return float(batch_size * math.ceil(length / chunk) * chunk**2 * heads)
    return 0.0


def flops_between_tokens(part: Component, hidden_size: int, length: int, batch_size: int, is_queued: bool) -> float:
    """FLOPs beside the matrices: all that are executed, or on a GPU, whose kernels leave out what a mask hides, those
    that are needed."""
    if is_queued:
        return float(between_tokens(part, hidden_size, length, batch_size))
    executed = sum(float(each.flops) for each in part.operations(hidden_size, length, batch_size))
    return executed - float(matrix_flops(part, hidden_size, length * batch_size))


def kinds_within(mixer: Component) -> Iterator[tuple[str, Component]]:
    """The kinds of a mixer's parts: its own, or those that it runs side by side.

    Attention that sees a part of what is before it, or whose scores no fused kernel takes, is a kind of its own.
    """
    for _, part in mixer.parts():
        kind = str(getattr(part, "kind", part.component))
        if getattr(part, "recomputes_scores", False):
            kind += ", scores computed again"
        elif getattr(part, "sees_a_part", False):
            kind += ", masked"
        yield kind, part


def kept_bytes(
    spec: ArchitectureSpec, layer: Layer, length: int, batch_size: int, precision: Precision
) -> dict[str, float]:
    """Bytes that each mixer of a layer, with its norm, keeps for the backward pass."""
    found = {"sequence": 0.0, "channel": 0.0}
    for part, tensor in layer_activations(spec, layer, length, batch_size):
        stem = "channel" if part.startswith("channel") else "sequence"
        found[stem] += _width(tensor, precision) * float(tensor.elements)
    return found


def _width(tensor: SavedTensor, precision: Precision) -> int:
    if tensor.dtype_class in ("bool", "copy"):
        return {"bool": 1, "copy": 0}[tensor.dtype_class]
    if tensor.dtype_class == "int64":
        return 8
    return 2 if tensor.dtype_class == "compute" and precision == "bf16_autocast" else 4


def cached_bytes(part: Component, hidden_size: int, length: int, batch_size: int) -> float:
    """Bytes of fp32 cache of a mixer that one further token reads."""
    elements = sum(math.prod(entry.shape) for entry in part.cache(hidden_size, length))
    return 4.0 * batch_size * elements


def matrix_bytes(spec: ArchitectureSpec) -> float:
    """Bytes of fp32 of all that a pass reads of a model."""
    return 4.0 * size(spec).parameters.active_without_embedding


def matrix_seconds(
    mixer: Component, hidden_size: int, tokens: int, rates: PrecisionRates, phase: Phase, working_set: float
) -> float:
    """Seconds of all matrices of a mixer for ``tokens`` tokens, in a model of ``working_set`` bytes."""
    total = 0.0
    for tensor in matrices(mixer, hidden_size):
        outputs, inputs = tensor.shape[-2:]
        chosen, available = tensor.active_share
        copies = math.prod(tensor.shape[:-2])
        rows = tokens * chosen / available if available > 1 else float(tokens)
        flops = 2 * tokens * active_count(tensor)
        if copies > 1 and available > 1:
            rows = max(rows, 1.0)
            # Training's grouped multiplication goes through all experts, those without tokens too; else those go that
            # have some, as many as can be expected of even choices.
            each = rates.expert_seconds
            if phase == "training":
                is_grouped = inputs % 8 == 0 and outputs % 8 == 0
                total += available * (each.training if is_grouped else each.training_one_by_one)
            else:
                total += available * (1 - (1 - chosen / available) ** tokens) * each.prompt
        total += flops / rates.forward.at(rows, inputs, outputs, working_set)
        if phase == "training":
            total += 2 * flops / rates.backward.at(rows, inputs, outputs, working_set)
    return total


def head_seconds(spec: ArchitectureSpec, tokens: int, rates: PrecisionRates, phase: Phase, working_set: float) -> float:
    """Seconds of the product that makes logits, with those of its backward pass in training."""
    flops, sides = 2.0 * tokens * spec.hidden_size * spec.vocab_size, (spec.hidden_size, spec.vocab_size)
    seconds = flops / rates.forward.at(tokens, *sides, working_set)
    return seconds + (2 * flops / rates.backward.at(tokens, *sides, working_set) if phase == "training" else 0.0)


def _outer(
    spec: ArchitectureSpec, rates: PrecisionRates, phase: Phase, batch_size: int, length: int, working_set: float
) -> Iterator[tuple[str, float]]:
    tokens = batch_size * (1 if phase == "decode" else length)
    outer = rates.phases[phase].outer
    head = head_seconds(spec, tokens, rates, phase, working_set)
    yield "matrices", head
    yield "elementwise", outer.seconds_per_logit * tokens * spec.vocab_size
    yield "launches", outer.launch_seconds
    yield "launches", outer.places_seconds * len(_places(spec))


def _places(spec: ArchitectureSpec) -> set[Hashable]:
    """The kinds of rotation, and of masks beside the causal one, that are made once a pass for all layers."""
    found: set[Hashable] = set()
    for group in spec.layer_groups:
        for layer in group.layers:
            for _, part in [] if layer.sequence_mixer is None else layer.sequence_mixer.parts():
                if isinstance(part, LatentAttention):
                    found.add((part.qk_rope_head_dim, part.rope_theta))
                elif isinstance(part, Attention):
                    if part.rotary_dim:
                        found.add((part.rotary_dim, part.rope_theta, part.rope_scaling))
                    if part.sees_a_part:
                        found.add(part.pattern)
    return found


NOT_CALIBRATED = "This machine is not calibrated: send a job of the kind calibrate to see times."


def time_here(
    spec: ArchitectureSpec, phase: Phase, *, batch_size: int, length: int, precision: str
) -> tuple[PredictedTime | None, tuple[float, float] | None, str]:
    """A time on this machine with the interval of its multiples, or why there is none."""
    try:
        calibration = stored_calibration()
        if calibration is None:
            return None, None, NOT_CALIBRATED
        known = next((each for each in calibration.precisions if each == precision), None)
        if known is None:
            said = " and ".join(calibration.precisions)
            return None, None, f"This machine is calibrated in {said}, and not in {precision}."
        found = predict_time(spec, calibration, phase, batch_size=batch_size, length=length, precision=known)
    except UnsupportedPlan as error:
        return None, None, str(error)
    return found, calibration.relative_interval, f"Modelled from the calibration of {found.profile}."
