"""Find what engines reach of promised rates: ``python -m scripts.calibrate_serving`` writes the profiles.

Each profile is fitted to the logarithms of predicted over measured times of its rows, on the settings that are not held
out, with a loss that outliers do not rule. Intervals are the 10th and 90th percentile of fits to resampled settings.
Rows on AMD devices are only held against the profiles.
"""

from __future__ import annotations

import pathlib
from collections import defaultdict
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
FIXED = {"network": (0.7, 0.5, 0.85), "arithmetic": (0.5, 0.3, 0.7), "attention": (0.3, 0.2, 0.5)}
"""Where rows say too little of them: NCCL's large collectives reach about 0.7 of a link, small ones less; matrix
products and attention over many tokens reach what they reach in the engines for serving, or less."""
START = {
    "memory": 0.8,
    "memory_packed": 0.7,
    "cache": 0.6,
    "arithmetic": FIXED["arithmetic"][0],
    "attention": FIXED["attention"][0],
    "network": FIXED["network"][0],
    "launch_seconds": 4e-5,
    "host_seconds": 0.0,
    "pass_seconds": 0.0,
    "latency_seconds": 1e-5,
}
PROFILES: dict[tuple[str, str], dict[str, float]] = {
    ("serving", "hbm"): {"pass_seconds": 1e-3, "latency_seconds": 1e-5, "arithmetic": 0.6, "attention": 0.4},
    ("eager", "hbm"): {"host_seconds": 1e-4},
    ("llama.cpp", "hbm"): {"arithmetic": 0.5},
    ("llama.cpp", "gddr"): {"arithmetic": 0.5},
    ("llama.cpp", "unified"): {"arithmetic": 0.5},
}
"""What is fitted beside the shares of memory and cache and the chain of kernels, and from where."""
COMMON = ("memory", "memory_packed", "cache")
BOUNDS = {
    "launch_seconds": (1e-6, 1e-3),
    "host_seconds": (1e-6, 1e-3),
    "pass_seconds": (1e-5, 1e-2),
    "latency_seconds": (1e-6, 3e-5),
    "arithmetic": (0.05, 0.85),
    "attention": (0.05, 0.75),
}
LOWEST = 0.01
HIGHEST = 0.95
"""No kernel reads memory faster than this share of the promise: copies on current devices reach 0.85 to 0.93."""


def _terms(engine: str, kind: str, values: dict[str, float]) -> EngineTerms:
    data: dict[str, Any] = {name: {"value": value, "low": value, "high": value} for name, value in values.items()}
    return EngineTerms.model_validate(
        {"engine": engine, "memory_kind": kind, **data, "relative_interval": (1, 1), "calibrated_on": ""}
    )


def _fit(engine: str, kind: str, cases: list[Case], start: dict[str, float], free: list[str]) -> dict[str, float]:
    limits = [BOUNDS.get(name, (LOWEST, HIGHEST)) for name in free]
    low, high = (np.log([limit[end] for limit in limits]) for end in (0, 1))

    def residuals(logs: np.ndarray) -> np.ndarray:
        terms = _terms(engine, kind, {**start, **dict(zip(free, np.exp(logs), strict=True))})
        return np.array([case.log_ratio(terms) for case in cases])

    begin = np.clip(np.log([start[name] for name in free]), low + 1e-6, high - 1e-6)
    found = least_squares(
        residuals, begin, bounds=(low, high), loss="soft_l1", f_scale=0.15, max_nfev=40, diff_step=1e-3
    )
    return {**start, **{name: float(value) for name, value in zip(free, np.exp(found.x), strict=True)}}


def calibrate(engine: str, kind: str, more: dict[str, float], cases: list[Case]) -> dict[str, Any]:
    """One profile as plain data."""
    own = [each for each in cases if each.row.plan.engine == engine and memory_kind(each.device) == kind]
    first = [each for each in own if not is_held_out(each.row)]
    second = [each for each in own if is_held_out(each.row) and not is_foreign(each.row)]
    start, free = {**START, **more}, [*COMMON, *(more or {}), *([] if engine == "eager" else ["launch_seconds"])]
    free = list(dict.fromkeys(free))
    if engine == "eager":
        start["launch_seconds"] = 0.0
    best = _fit(engine, kind, first, start, free)
    settings: dict[str, list[Case]] = defaultdict(list)
    for case in first:
        settings[case.row.setting].append(case)
    random, fits = np.random.default_rng(0), []
    for _ in range(RESAMPLED):
        drawn = random.choice(sorted(settings), len(settings))
        fits.append(_fit(engine, kind, [case for name in drawn for case in settings[name]], best, free))
    data: dict[str, Any] = {"engine": engine, "memory_kind": kind}
    for name, value in best.items():
        low, high = np.quantile([fit[name] for fit in fits], [0.1, 0.9]) if name in free else (value, value)
        numbers = (value, min(low, value), max(high, value)) if name in free else FIXED.get(name, (value, value, value))
        data[name] = dict(zip(("value", "low", "high"), (float(f"{number:.3g}") for number in numbers), strict=True))
    terms = _terms(engine, kind, {name: data[name]["value"] for name in best})
    ratios = np.exp([-case.log_ratio(terms) for case in second])
    data["relative_interval"] = [float(f"{each:.3g}") for each in np.quantile(ratios, [0.1, 0.9])]
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
