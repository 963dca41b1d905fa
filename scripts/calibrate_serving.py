"""Find what engines reach of promised rates: ``python -m scripts.calibrate_serving`` writes the profiles.

Each profile is fitted to the logarithms of predicted over measured times of its rows, on the settings that are not held
out, with a loss that outliers do not rule, and to what is known of its terms beforehand. Intervals are the 10th and the
90th percentile of fits to resampled settings. Beside that each source is predicted by what all others give.
"""

from __future__ import annotations

import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from scipy.optimize import least_squares

from planner.measured.inference import inference_rows, is_foreign, is_held_out
from planner.measured.served import Case
from planner.paths import ASSETS
from planner.serving.engines import EngineTerms, memory_kind

FILE = ASSETS / "serving-efficiencies.yaml"
RESAMPLED = 12
PRIORS: dict[str, tuple[float, float]] = {
    "memory": (0.85, 1.08),
    "memory_packed": (0.75, 1.25),
    "cache": (0.7, 1.4),
    "arithmetic": (0.6, 1.3),
    "attention": (0.35, 1.5),
    "network": (0.6, 1.4),
    "overlap": (0.5, 2.0),
    "launch_seconds": (25e-6, 1.7),
    "host_seconds": (1e-4, 1.7),
    "pass_seconds": (5e-4, 2.5),
    "between_seconds": (2e-3, 1.7),
    "latency_seconds": (1e-5, 1.7),
}
"""What is known of a term before any row, and the factor of a standard deviation: copies reach 0.8 to 0.92 of a
memory's promise, large products 0.5 to 0.75 of the dense peak, NCCL's all-reduces 0.4 to 0.8 of a link and some 10 µs
where they are short; a mixer is half a dozen kernels of 3 to 6 µs. Rows that say little of a term leave it there."""
OWN_PRIORS: dict[str, dict[str, tuple[float, float]]] = {
    "eager": {"overlap": (1.0, 1.0), "cache": (0.4, 2.0), "memory_packed": (0.5, 2.0)},
    "llama.cpp": {
        "overlap": (1.0, 1.0),
        "memory": (0.75, 1.3),
        "memory_packed": (0.75, 1.3),
        "cache": (0.4, 2.0),
        "arithmetic": (0.35, 1.6),
        "launch_seconds": (5e-5, 1.7),
        "latency_seconds": (5e-5, 3.0),
    },
}
"""Less is known of kernels that an engine brings itself, and of stages that hand on through the host. Their rows do not
tell how far reading overlaps with arithmetic, so that it is taken to do so wholly."""
SPREAD = 0.15
"""How far, as a share, rows are taken to lie from any model: against it the priors are weighed."""
ADDED = ("launch_seconds", "host_seconds", "pass_seconds", "between_seconds")
SERVING = (
    "attention", "network", "overlap", "latency_seconds", "pass_seconds", "between_seconds", "launch_seconds",
)  # fmt: skip
PROFILES: dict[tuple[str, str], tuple[str, ...]] = {
    ("serving", "hbm"): SERVING,
    ("serving", "amd_hbm"): SERVING,
    ("eager", "hbm"): ("host_seconds",),
    ("llama.cpp", "hbm"): ("launch_seconds", "latency_seconds"),
    ("llama.cpp", "gddr"): ("launch_seconds", "latency_seconds"),
    ("llama.cpp", "unified"): ("launch_seconds",),
    ("llama.cpp", "apple"): ("launch_seconds",),
}
"""What is fitted beside :data:`COMMON`; other shares stay at their priors, other seconds at 0."""
COMMON = ("memory", "memory_packed", "cache", "arithmetic")
BOUNDS = {
    "launch_seconds": (1e-6, 1e-3),
    "host_seconds": (1e-6, 1e-3),
    "pass_seconds": (1e-5, 1e-2),
    "between_seconds": (1e-5, 1e-1),
    "latency_seconds": (1e-6, 5e-4),
    "arithmetic": (0.05, 0.85),
    "attention": (0.05, 0.75),
    "network": (0.05, 0.95),
    "overlap": (0.01, 1.0),
}
LOWEST = 0.01
HIGHEST = 0.95
"""No kernel reads memory faster than this share of the promise: copies on current devices reach 0.85 to 0.93."""


def _terms(engine: str, kind: str, values: dict[str, float]) -> EngineTerms:
    data: dict[str, Any] = {name: {"value": value, "low": value, "high": value} for name, value in values.items()}
    told: dict[str, Any] = {"relative_interval": (1, 1), "left_out": [], "calibrated_on": ""}
    return EngineTerms.model_validate({"engine": engine, "memory_kind": kind, **data, **told})


def _fit(engine: str, kind: str, cases: list[Case], free: tuple[str, ...]) -> dict[str, float]:
    """The terms that are most likely by rows and priors. Sources count by the root of their readings."""
    limits = [BOUNDS.get(name, (LOWEST, HIGHEST)) for name in free]
    low, high = (np.log([limit[end] for limit in limits]) for end in (0, 1))
    priors = PRIORS | OWN_PRIORS.get(engine, {})
    fixed = {name: 0.0 if name in ADDED else value for name, (value, _) in priors.items()}
    means, widths = (np.log([priors[name][part] for name in free]) for part in (0, 1))
    counts = Counter(case.row.group for case in cases)
    weights = np.array([counts[case.row.group] ** -0.25 for case in cases])
    weights *= (len(cases) / np.sum(weights**2)) ** 0.5

    def residuals(logs: np.ndarray) -> np.ndarray:
        terms = _terms(engine, kind, {**fixed, **dict(zip(free, np.exp(logs), strict=True))})
        ratios = np.array([case.log_ratio(terms) for case in cases]) / SPREAD
        # The square of a soft_l1 loss, so that outliers among rows do not rule and priors stay squares.
        softened = np.sign(ratios) * np.sqrt(2 * (np.sqrt(1 + ratios**2) - 1))
        return np.concatenate([weights * softened, (logs - means) / widths])

    found = least_squares(residuals, np.clip(means, low, high), bounds=(low, high), max_nfev=60, diff_step=1e-3)
    return {**fixed, **{name: float(value) for name, value in zip(free, np.exp(found.x), strict=True)}}


def of_profile(cases: list[Case], engine: str, kind: str) -> list[Case]:
    """The rows that a profile is of."""
    return [case for case in cases if case.row.plan.engine == engine and memory_kind(case.device) == kind]


def left_out(own: list[Case], engine: str, kind: str, free: tuple[str, ...]) -> list[dict[str, Any]]:
    """How far the terms that all others give are from each source; of one source from each device, or each model."""
    used = [case for case in own if not is_foreign(case.row)]
    keys: tuple[Callable[[Case], str], ...] = (
        lambda case: case.row.group,
        lambda case: case.device.id,
        lambda case: case.row.model,
    )
    key = next(key for key in keys if len({key(case) for case in used}) > 1)
    found = []
    for name in sorted({key(case) for case in used}):
        terms = _terms(engine, kind, _fit(engine, kind, [case for case in used if key(case) != name], free))
        errors = np.expm1([case.log_ratio(terms) for case in used if key(case) == name])
        found.append(
            {
                "name": name,
                "readings": len(errors),
                "median": float(f"{np.median(np.abs(errors)):.3g}"),
                "signed": float(f"{np.median(errors):.3g}"),
            }
        )
    return found


def calibrate(engine: str, kind: str, more: tuple[str, ...], cases: list[Case]) -> dict[str, Any]:
    """One profile as plain data."""
    own = of_profile(cases, engine, kind)
    first = [each for each in own if not is_held_out(each.row)]
    second = [each for each in own if is_held_out(each.row) and not is_foreign(each.row)]
    free = (*COMMON, *more)
    best = _fit(engine, kind, first, free)
    settings: dict[str, list[Case]] = defaultdict(list)
    for case in first:
        settings[case.row.setting].append(case)
    random, fits = np.random.default_rng(0), []
    for _ in range(RESAMPLED):
        drawn = random.choice(sorted(settings), len(settings))
        fits.append(_fit(engine, kind, [case for name in drawn for case in settings[name]], free))
    data: dict[str, Any] = {"engine": engine, "memory_kind": kind}
    for name, value in best.items():
        numbers = (value, value, value)
        if name in free:
            low, high = np.quantile([fit[name] for fit in fits], [0.1, 0.9])
            numbers = (value, min(low, value), max(high, value))
        elif name not in ADDED:
            width = (PRIORS | OWN_PRIORS.get(engine, {}))[name][1]
            numbers = (value, value / width, value * width if name.endswith("_seconds") else min(1.0, value * width))
        data[name] = dict(zip(("value", "low", "high"), (float(f"{number:.3g}") for number in numbers), strict=True))
    terms = _terms(engine, kind, {name: data[name]["value"] for name in best})
    ratios = np.exp([-case.log_ratio(terms) for case in second])
    data["relative_interval"] = [float(f"{each:.3g}") for each in np.quantile(ratios, [0.1, 0.9])]
    data["left_out"] = left_out(own, engine, kind, free)
    sources = ", ".join(sorted({case.row.group for case in first}))
    data["calibrated_on"] = f"{len(first)} readings of {len(settings)} settings: {sources}"
    for name, part in (("fitted", first), ("held out", second)):
        errors = np.abs(np.expm1([case.log_ratio(terms) for case in part]))
        print(f"{engine} on {kind}, {name}: {len(part)} readings, median error {np.median(errors):.1%}")
    return data


def main(file: pathlib.Path = FILE) -> None:
    """Fit all profiles and write them."""
    cases = [Case.of(row) for row in inference_rows() if row.reading != "memory"]
    hbm = yaml.safe_load(file.read_text(encoding="utf-8"))["hbm"]
    profiles = [calibrate(engine, kind, more, cases) for (engine, kind), more in PROFILES.items()]
    head = "\n".join(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    text = yaml.safe_dump({"hbm": hbm, "profiles": profiles}, sort_keys=False, width=118, default_flow_style=None)
    file.write_text(f"{head}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
