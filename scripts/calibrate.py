"""Find what training reaches of promised rates: ``python -m scripts.calibrate [PROFILE …]`` writes
``assets/efficiencies.yaml``.

Each profile's numbers are fitted by least squares, robust against rows that are far off, to the logarithms of the step
times of measured runs (:mod:`planner.measured`) on its devices: those of models of a billion parameters and more in the
half that is not held out. A setting that occurs several times weighs as much as one that occurs once. Each number is
drawn to what is usual of any device, so that one about which the runs say nothing keeps that. Its interval is four
standard errors wide.
"""

from __future__ import annotations

import collections
import math
import sys
from collections.abc import Sequence

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

SMALLEST_MODEL = 1e9
FEWEST_ROWS = 10
"""Held out, from which a profile's interval is its own."""
SPREAD = 0.12
"""Of the logarithm of a measured time around its prediction, by which rows weigh against what is usual."""
USUAL = {
    "matmul": (0.7, 0.25),
    "matmul_fp8": (0.6, 0.12),
    "matmul_fp4": (0.5, 0.25),
    "attention": (0.5, 0.35),
    "memory": (0.75, 0.08),
    "links": (0.7, 0.3),
    "network": (0.7, 0.3),
    "overlap": (0.7, 0.3),
    "launch_seconds": (4e-6, 0.5),
}
"""Of any device, and the spread of its logarithm over devices."""
BOUNDS: dict[str, tuple[float, float]] = {
    **{str(share): (0.05, 0.95) for share in SHARES},
    "memory": (0.05, 0.92),
    "launch_seconds": (1e-6, 2e-5),
}
HEADER = """\
# Which share of promised rates training reaches, by kind of device. Written by `python -m scripts.calibrate`; the rows
# are in assets/measured, each with its source. docs/accuracy.md says how far predictions are from them, and apart for
# the half of them that nothing here was calibrated on.
#
# matmul, matmul_fp8, matmul_fp4  of the peak of bf16, of fp8 and of fp4
# attention                       of the peak of bf16 in a fused attention kernel
# memory, links, network          of the bandwidth of memory, of links within a node, and of the network between nodes
# overlap                         of what could run beside other work
# launch_seconds                  of a kernel beside its work; latency_seconds of one step of a collective
# relative_interval               measured over predicted, of four in five rows that were held out

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


def logarithm(row: TrainingRow, profile: Profile) -> float:
    """Of the predicted time over the measured one."""
    seconds = step_time(row.spec, row.plan, profile).seconds
    assert seconds is not None
    assert row.step_seconds is not None
    return math.log(seconds / row.step_seconds)


def usable(profile: Profile) -> list[TrainingRow]:
    """Rows with a time on the profile's devices, of models that are large enough to tell."""
    found = []
    for row in training_rows():
        if row.step_seconds is None or row.plan.hardware not in profile.devices:
            continue
        if count_parameters(row.spec).total < SMALLEST_MODEL:
            continue
        try:
            if step_time(row.spec, row.plan, profile).seconds is not None:
                found.append(row)
        except PlannerError:
            continue
    return found


def calibrated(profile: Profile) -> Profile:
    """The profile with numbers that fit the rows that are not held out."""
    rows = usable(profile)
    chosen = [row for row in rows if not is_held_out(row)]
    repeats = collections.Counter(map(setting, chosen))
    names = names_of(profile)
    centres = np.array([math.log(USUAL[name][0]) for name in names])
    spreads = np.array([USUAL[name][1] for name in names])

    def residuals(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = with_numbers(profile, list(numbers))
        of_rows = [logarithm(row, trial) / SPREAD / math.sqrt(repeats[setting(row)]) for row in chosen]
        return np.array([*of_rows, *((numbers - centres) / spreads)])

    low, high = (np.log([BOUNDS[name][end] for name in names]) for end in (0, 1))
    fit = least_squares(residuals, centres, bounds=(low, high), loss="cauchy", diff_step=1e-3, max_nfev=20)
    errors = np.sqrt(np.diag(np.linalg.inv(fit.jac.T @ fit.jac)))
    update: dict[str, object] = {"calibrated_on": f"{len(chosen)} of {len(rows)} rows: {sources(chosen)}"}
    for name, number, error in zip(names, fit.x, errors, strict=True):
        if name in SHARES:
            value = math.exp(number)
            ends = value * math.exp(-2 * error), min(1.0, value * math.exp(2 * error))
            update[name] = Efficiency(value=round(value, 3), low=round(ends[0], 3), high=round(ends[1], 3))
        else:
            update[name] = float(f"{math.exp(number):.2e}")
    return profile.model_copy(update=update)


def held_out(profile: Profile) -> list[float]:
    """Measured over predicted times of the rows that are held out."""
    return [math.exp(-logarithm(row, profile)) for row in usable(profile) if is_held_out(row)]


def with_intervals(found: dict[str, Profile]) -> dict[str, Profile]:
    """The profiles with their intervals; one that has few rows held out has the interval of all profiles together."""
    ratios = {identifier: held_out(profile) for identifier, profile in found.items()}
    together = [ratio for each in ratios.values() for ratio in each]
    return {
        identifier: profile.model_copy(update={"relative_interval": interval(ratios[identifier], together)})
        for identifier, profile in found.items()
    }


def interval(ratios: Sequence[float], together: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile."""
    low, high = np.quantile(ratios if len(ratios) >= FEWEST_ROWS else together, (0.1, 0.9))
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
        lines.append(f"  devices: [{', '.join(profile.devices)}]")
        for name in SHARES:
            share: Efficiency | None = getattr(profile, name)
            if share is None:
                continue
            lines.append(f"  {name}: {{value: {share.value}, low: {share.low}, high: {share.high}}}")
        lines.append(f"  launch_seconds: {profile.launch_seconds:.2e}")
        lines.append(f"  latency_seconds: {profile.latency_seconds:.2e}")
        lines.append(f"  relative_interval: [{profile.relative_interval[0]}, {profile.relative_interval[1]}]")
        lines.append("  calibrated_on: " + yaml.safe_dump(profile.calibrated_on, width=1000).splitlines()[0])
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def main(names: Sequence[str]) -> None:
    """Calibrate the named profiles, or all."""
    found = dict(profiles())
    for name in names or list(found):
        found[name] = calibrated(found[name])
        print(found[name].model_dump_json())
    found = with_intervals(found)
    (ASSETS / "efficiencies.yaml").write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
