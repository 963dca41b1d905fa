"""Find what training reaches of promised rates: ``python -m scripts.calibrate`` writes ``assets/efficiencies.yaml`` and
``assets/efficiencies_left_out.yaml``.

Numbers are fitted by least squares, robust against rows that are far off, to the logarithms of the step times of
measured runs (:mod:`planner.measured`): those of models of a billion parameters and more in the half that is not held
out. A setting that occurs several times weighs as much as one that occurs once. First a family of devices has its
numbers, drawn to what is usual of any device; then each of its profiles has its own, drawn to the family's, so that a
number about which the runs say nothing keeps what is usual. Intervals are four standard errors wide.

The second file has the numbers of the same fit without the rows of one source, or of one device: what they make of
those rows says how near a run of another source, or a device that was never measured, comes out.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.efficiency import SHARES, Efficiency, Profile, profiles
from planner.errors import PlannerError
from planner.measured import TrainingRow, training_rows
from planner.measured.split import is_held_out, setting
from planner.paths import ASSETS
from planner.sizing import count_parameters
from planner.step_time import step_time
from scripts.left_out import LeftOut, write_left_out

SMALLEST_MODEL = 1e9
FEWEST_ROWS = 10
"""Held out, from which a profile's interval is its own."""
UNSEEN = (0.025, 0.975)
"""Quantiles of rows that were left out, between which a borrowed profile's interval lies."""
SPREAD = 0.12
"""Of the logarithm of a measured time around its prediction, by which rows weigh against what is usual."""
FAMILY_SPREAD = 0.2
"""Of the logarithm of a device's number around its family's."""
OWN = ("matmul",)
"""Numbers that devices of a family do not share: products in bf16 are bounded by the power that a device may take."""
USUAL = {
    "matmul": (0.7, 0.22),
    "matmul_fp8": (0.6, 0.12),
    "matmul_fp4": (0.5, 0.25),
    "attention": (0.55, 0.25),
    "scan": (0.03, 0.6),
    "memory": (0.75, 0.08),
    "links": (0.75, 0.06),
    "network": (0.8, 0.08),
    "overlap": (0.7, 0.4),
    "launch_seconds": (4e-6, 0.25),
}
"""Of any device, and the spread of its logarithm over devices. Links and network: what NCCL's own tests reach of
NVLink and InfiniBand with large messages. Attention: kernels alone on an H100 (docs/planner/time-of-training.md)."""
BOUNDS: dict[str, tuple[float, float]] = {
    **{str(share): (0.05, 0.95) for share in SHARES},
    "scan": (0.005, 0.95),
    "memory": (0.05, 0.92),
    "launch_seconds": (1e-6, 2e-5),
}
HEADER = """\
# Which share of promised rates training reaches, by kind of device. Written by `python -m scripts.calibrate`; the rows
# are in assets/measured, each with its source. docs/accuracy.md says how far predictions are from them, and apart for
# the half of them that nothing here was calibrated on.
#
# matmul, matmul_fp8, matmul_fp4  of the peak of bf16, of fp8 and of fp4
# attention                       of the peak of bf16 in a fused attention kernel over long sequences
# scan                            of the peak of bf16 in what passes states from token to token
# memory, links, network          of the bandwidth of memory, of links within a node, and of the network between nodes
# overlap                         of what could run beside other work
# launch_seconds                  of a kernel beside its work; latency_seconds of one step of a collective
# relative_interval               measured over predicted, of four in five rows that were held out
# borrowed_by, borrowed_interval  devices of which no run was measured, and the interval of 19 in 20 rows whose source
#                                 or device was left out; squared where one source alone measured the family

"""


def names_of(profile: Profile) -> list[str]:
    """The numbers that a profile has: none of fp8 where the devices do not know it."""
    return [name for name in USUAL if getattr(profile, name) is not None]


def with_numbers(profile: Profile, numbers: Sequence[float]) -> Profile:
    """The profile with other numbers, given by their logarithms."""
    update: dict[str, object] = {}
    for name, number in zip(names_of(profile), numbers, strict=True):
        value = math.exp(number)
        update[name] = Efficiency(value=value, low=value, high=value) if name in SHARES else value
    return profile.model_copy(update=update)


def seconds_of(row: TrainingRow, profile: Profile) -> float:
    """The predicted time of a row's step."""
    seconds = step_time(row.spec, row.plan, profile).seconds
    assert seconds is not None
    return float(seconds)


@functools.cache
def _alike(row: TrainingRow) -> str:
    """The same of rows that are predicted alike."""
    return f"{row.model} {row.plan.model_dump_json()}"


def logarithm(row: TrainingRow, profile: Profile) -> float:
    """Of the predicted time over the measured one."""
    assert row.step_seconds is not None
    return math.log(seconds_of(row, profile) / row.step_seconds)


@functools.cache
def usable(devices: tuple[str, ...]) -> tuple[TrainingRow, ...]:
    """Rows with a time on these devices, of models that are large enough to tell."""
    found = []
    for row in training_rows():
        if row.step_seconds is None or row.plan.hardware not in devices:
            continue
        if count_parameters(row.spec).total < SMALLEST_MODEL:
            continue
        try:
            if step_time(row.spec, row.plan).seconds is not None:
                found.append(row)
        except PlannerError:
            continue
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a fit's numbers are drawn to: logarithms and their spreads."""

    centres: NDArray[np.float64]
    spreads: NDArray[np.float64]


def usual(names: Sequence[str]) -> Drawn:
    """What is usual of any device."""
    return Drawn(np.array([math.log(USUAL[name][0]) for name in names]), np.array([USUAL[name][1] for name in names]))


def fitted(profile: Profile, rows: Sequence[TrainingRow], drawn: Drawn) -> tuple[list[float], list[float]]:
    """The logarithms that fit rows, and their errors; without rows those that they are drawn to."""
    names = names_of(profile)
    if not rows:
        return list(drawn.centres), list(drawn.spreads)
    repeats = collections.Counter(map(setting, rows))
    alike = {_alike(row): row for row in rows}
    weights = [1 / SPREAD / math.sqrt(repeats[setting(row)]) for row in rows]

    def residuals(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = with_numbers(profile, list(numbers))
        predicted = {plan: seconds_of(row, trial) for plan, row in alike.items()}
        of_rows = [
            weight * math.log(predicted[_alike(row)] / (row.step_seconds or 0))
            for weight, row in zip(weights, rows, strict=True)
        ]
        # Cauchy's loss of rows alone: what is usual is no reading that could be wrong.
        robust = np.sign(of_rows) * np.sqrt(np.log1p(np.square(of_rows)))
        return np.array([*robust, *((numbers - drawn.centres) / drawn.spreads)])

    low, high = (np.log([BOUNDS[name][end] for name in names]) for end in (0, 1))
    first = np.clip(drawn.centres, low + 1e-6, high - 1e-6)
    fit = least_squares(residuals, first, bounds=(low, high), diff_step=1e-3, ftol=1e-4, xtol=1e-3)
    return list(fit.x), list(np.sqrt(np.diag(np.linalg.inv(fit.jac.T @ fit.jac))))


def family_of(name: str, found: dict[str, Profile]) -> tuple[str, ...]:
    """The measured devices of a profile's family."""
    return tuple(
        device for profile in found.values() if profile.family == found[name].family for device in profile.devices
    )


def calibrated(name: str, found: dict[str, Profile], without: str = "") -> Profile:
    """A profile with numbers that fit the rows that are not held out: its family's first, from which its own depart.

    ``without``: a source or a device whose rows are not used.
    """
    profile, devices = found[name], family_of(name, found)
    names = names_of(profile)

    def chosen(of: tuple[str, ...]) -> list[TrainingRow]:
        return [
            row for row in usable(of) if not is_held_out(row) and without not in (row.repository, row.plan.hardware)
        ]

    rows, drawn = chosen(devices), usual(names)
    numbers, errors = fitted(profile, rows, drawn)
    if profile.devices and profile.devices != devices:
        shared = [key not in OWN for key in names]
        spreads = np.where(shared, FAMILY_SPREAD, drawn.spreads)
        rows = chosen(profile.devices)
        numbers, errors = fitted(profile, rows, Drawn(np.where(shared, numbers, drawn.centres), spreads))
    total = len(usable(profile.devices or devices))
    update: dict[str, object] = {"calibrated_on": f"{len(rows)} of {total} rows: {sources(rows)}"}
    for key, number, error in zip(names, numbers, errors, strict=True):
        if key in SHARES:
            value = math.exp(number)
            ends = value * math.exp(-2 * error), min(1.0, value * math.exp(2 * error))
            update[key] = Efficiency(value=round(value, 3), low=round(ends[0], 3), high=round(ends[1], 3))
        else:
            update[key] = float(f"{math.exp(number):.2e}")
    return profile.model_copy(update=update)


def left_out(found: dict[str, Profile]) -> LeftOut:
    """The profiles without the rows of each source, by what is left out.

    Without a device its rows are predicted by its family's numbers, as a device that was never measured is.
    """
    made: LeftOut = {}
    for name, profile in found.items():
        for repository in sorted({row.repository for row in usable(profile.devices)}):
            made.setdefault(repository, {})[name] = calibrated(name, found, repository)
        for device in profile.devices:
            if len(family_of(name, found)) > 1:
                whole = {**found, name: profile.model_copy(update={"devices": family_of(name, found)})}
                others = {key: each for key, each in whole.items() if key == name or each.family != profile.family}
                made.setdefault(device, {})[name] = calibrated(name, others, device)
    return made


def held_out(profile: Profile) -> list[float]:
    """Measured over predicted times of the rows that are held out."""
    return [math.exp(-logarithm(row, profile)) for row in usable(profile.devices) if is_held_out(row)]


def with_intervals(found: dict[str, Profile], without: LeftOut) -> dict[str, Profile]:
    """The profiles with their intervals; one that has few rows held out has the interval of all profiles together.

    A borrowed profile has that in which nineteen of twenty rows lay whose source or device was left out, where it is
    wider. Where one source alone measured a family, both another device and another source are unknown: its bounds are
    squared.
    """
    ratios = {identifier: held_out(profile) for identifier, profile in found.items()}
    together = [ratio for each in ratios.values() for ratio in each]
    unseen = [
        math.exp(-logarithm(row, profile))
        for name, made in without.items()
        for profile in made.values()
        for row in usable(profile.devices)
        if name in (row.repository, row.plan.hardware)
    ]
    wide = interval(unseen, unseen, UNSEEN)
    made = {}
    for identifier, profile in found.items():
        low, high = interval(ratios[identifier], together)
        measured = {row.repository for row in usable(family_of(identifier, found))}
        power = 2 if len(measured) == 1 else 1
        borrowed = round(min(low, wide[0] ** power), 2), round(max(high, wide[1] ** power), 2)
        update = {"relative_interval": (low, high), "borrowed_interval": borrowed}
        made[identifier] = profile.model_copy(update=update)
    return made


def interval(
    ratios: Sequence[float], together: Sequence[float], ends: tuple[float, float] = (0.1, 0.9)
) -> tuple[float, float]:
    """The 10th and the 90th percentile, or others."""
    low, high = np.quantile(ratios if len(ratios) >= FEWEST_ROWS else together, ends)
    return round(float(low), 2), round(float(high), 2)


def sources(rows: Sequence[TrainingRow]) -> str:
    """How many rows of which repository."""
    counted = collections.Counter(row.repository for row in rows)
    return ", ".join(f"{repository} {times}" for repository, times in sorted(counted.items()))


def written(found: dict[str, Profile]) -> str:
    """The profiles as YAML, a line a number."""
    lines = [HEADER.rstrip("\n"), ""]
    for identifier, profile in found.items():
        lines.append(f"{identifier}:")
        lines.append(f"  family: {profile.family}")
        lines.append(f"  devices: [{', '.join(profile.devices)}]")
        lines.append(f"  borrowed_by: [{', '.join(profile.borrowed_by)}]")
        for name in SHARES:
            share: Efficiency | None = getattr(profile, name)
            if share is None:
                continue
            lines.append(f"  {name}: {{value: {share.value}, low: {share.low}, high: {share.high}}}")
        lines.append(f"  launch_seconds: {profile.launch_seconds:.2e}")
        lines.append(f"  latency_seconds: {profile.latency_seconds:.2e}")
        lines.append(f"  relative_interval: [{profile.relative_interval[0]}, {profile.relative_interval[1]}]")
        lines.append(f"  borrowed_interval: [{profile.borrowed_interval[0]}, {profile.borrowed_interval[1]}]")
        lines.append("  calibrated_on: " + yaml.safe_dump(profile.calibrated_on, width=1000).splitlines()[0])
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Calibrate all profiles."""
    found = {name: calibrated(name, profiles()) for name in profiles()}
    without = left_out(found)
    (ASSETS / "efficiencies.yaml").write_text(written(with_intervals(found, without)), encoding="utf-8")
    write_left_out(without)


if __name__ == "__main__":
    main()
