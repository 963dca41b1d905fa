"""Times of passes on a machine that was measured: matrices by their size, and what each component takes beside them.

A calibration holds, for every precision that was measured,

* matrices: the rate of a multiplication by its rows and its size, forward, and of the two of its backward pass
* for each kind of component, in a layer with its norm and its addition: the seconds that its operators take however
  small they are (their launches), the seconds for each byte that it keeps for the backward pass (which stands for all
  that is elementwise), and the seconds for each FLOP between tokens
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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from planner.activations import layer_activations
from planner.components import Attention, LatentAttention
from planner.components.base import Component, SavedTensor
from planner.errors import UnsupportedPlan
from planner.matrices import between_tokens, matrices
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


class MatrixRates(_Record):
    """FLOPs a second by rows and size, where the size is the square root of inputs times outputs."""

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    flops_per_second: tuple[tuple[float, ...], ...]
    """A row for each number of rows, a column for each size."""

    def at(self, rows: float, inputs: float, outputs: float) -> float:
        """The rate of ``rows`` vectors of ``inputs`` through a matrix of ``outputs`` times ``inputs``."""
        places = (np.log(np.array(self.rows)), np.log(np.array(self.sizes)))
        wanted = (math.log(max(rows, 1e-9)), math.log(max(inputs * outputs, 1e-9)) / 2)
        table = np.log(np.array(self.flops_per_second))
        across = np.array([np.interp(wanted[1], places[1], line) for line in table])
        return float(np.exp(np.interp(wanted[0], places[0], across)))


class KindRates(_Record):
    """What a component takes beside its matrices."""

    launch_seconds: float
    least_seconds: float = 0.0
    """Of a device that works through a queue, however small its operators are."""
    seconds_per_byte: float
    """Of what it keeps for the backward pass; in decoding, of its cache."""
    seconds_per_flop: float
    """Between tokens."""


class OuterRates(_Record):
    """What stands outside the layers."""

    launch_seconds: float
    places_seconds: float = 0.0
    """Of the angles and masks that all attention layers of a pass share."""
    seconds_per_logit: float
    """Beside the head's product."""


class PhaseRates(_Record):
    """One phase in one precision."""

    kinds: dict[str, KindRates]
    outer: OuterRates


class PrecisionRates(_Record):
    """All of one precision."""

    forward: MatrixRates
    backward: MatrixRates
    """Of both products of the backward pass."""
    expert_seconds: tuple[float, float] = (0.0, 0.0)
    """What one expert takes beside its arithmetic, forward and backward: each is a multiplication of its own."""
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
    for group in spec.layer_groups:
        for layer in group.layers:
            for part, seconds in _layer(spec, layer, rates, phase, batch_size, length, precision):
                parts[part] += group.repeats * seconds
    for part, seconds in _outer(spec, rates, phase, batch_size, length):
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
) -> Iterator[tuple[str, float]]:
    tokens = batch_size * (1 if phase == "decode" else length)
    kept = kept_bytes(spec, layer, length, batch_size, precision) if phase != "decode" else {}
    for stem, mixer in (("sequence", layer.sequence_mixer), ("channel", layer.channel_mixer)):
        if mixer is None:
            continue
        yield "matrices", matrix_seconds(mixer, spec.hidden_size, tokens, rates, phase)
        for kind, part in kinds_within(mixer):
            own = rates.phases[phase].kinds.get(kind)
            if own is None:
                raise UnsupportedPlan.of(
                    f"{kind} was not calibrated.", path="hardware", remedy="Calibrate the machine again.",
                    code="kind_not_calibrated",
                )  # fmt: skip
            yield "launches", own.launch_seconds
            yield "elementwise", own.least_seconds
            if phase == "decode":
                yield "elementwise", own.seconds_per_byte * cached_bytes(part, spec.hidden_size, length, batch_size)
            elif stem == "sequence":
                flops = between_tokens(part, spec.hidden_size, length, batch_size)
                yield "between tokens", own.seconds_per_flop * flops
        if phase != "decode":
            first = next(kind for kind, _ in kinds_within(mixer))
            yield "elementwise", rates.phases[phase].kinds[first].seconds_per_byte * kept[stem]


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


def matrix_seconds(mixer: Component, hidden_size: int, tokens: int, rates: PrecisionRates, phase: Phase) -> float:
    """Seconds of all matrices of a mixer for ``tokens`` tokens."""
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
            if phase == "training":
                total += available * sum(rates.expert_seconds)
            else:
                total += available * (1 - (1 - chosen / available) ** tokens) * rates.expert_seconds[0]
        total += flops / rates.forward.at(rows, inputs, outputs)
        if phase == "training":
            total += 2 * flops / rates.backward.at(rows, inputs, outputs)
    return total


def _outer(
    spec: ArchitectureSpec, rates: PrecisionRates, phase: Phase, batch_size: int, length: int
) -> Iterator[tuple[str, float]]:
    tokens = batch_size * (1 if phase == "decode" else length)
    outer = rates.phases[phase].outer
    flops = 2 * tokens * spec.hidden_size * spec.vocab_size
    head = flops / rates.forward.at(tokens, spec.hidden_size, spec.vocab_size)
    if phase == "training":
        head += 2 * flops / rates.backward.at(tokens, spec.hidden_size, spec.vocab_size)
    yield "matrices", head
    yield "elementwise", outer.seconds_per_logit * tokens * spec.vocab_size
    yield "launches", outer.launch_seconds
    if any(
        isinstance(part, Attention | LatentAttention)
        for group in spec.layer_groups for layer in group.layers if layer.sequence_mixer is not None
        for _, part in layer.sequence_mixer.parts()
    ):  # fmt: skip
        yield "launches", outer.places_seconds


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
