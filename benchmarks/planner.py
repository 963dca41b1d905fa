"""How long sizing takes, on one core, beside baselines of the same run.

usage: python -m benchmarks.planner            the times, and whether the targets are met
       python -m benchmarks.planner accuracy   how exact it and other counters are (benchmarks/accuracy.py)

Machines differ and others use them, so each time is the least of many rounds, and each stands as a ratio to a fixed
piece of Python work that is timed in the same rounds. Targets: 0.2 ms for a model of 61 layers, 3 ms for memory and
time of its training, a hundred thousand plans of training and ten million candidates for size and cache a second, and a
fiftieth of the time in which transformers builds the model on the meta device to count it. The exit status is 1 where
one is missed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np

from planner import ArchitectureSpec, TrainingPlan, cache_bytes, estimate_training, flops, load, size
from planner.interop import from_huggingface
from planner.presets import PRESETS, read_yaml
from planner.sizing import count_parameters
from planner.step_time import step_time
from planner.symbolic import BLOCK, evaluate
from planner.training import allocated_bytes

TARGET_SECONDS = 0.2e-3
TARGET_TRAINING_SECONDS = 3e-3
TARGET_CANDIDATES = 10e6
"""A second."""
TARGET_RATIO = 50
ROUNDS = 40
TRANSFORMERS_ROUNDS = 5
CANDIDATES = 2**18
PLANS = 2**16
TARGET_PLANS = 100_000
"""A second."""
PLAN_SIZES = {
    "micro_batch_size": [1.0, 2.0, 4.0],
    "tensor_parallel": [2.0, 4.0, 8.0],
    "data_parallel": [2.0, 8.0, 16.0],
    "sequence_length": [4096.0, 8192.0],
}
CONTEXT_LENGTH = 32_768
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_FIRST, _SECOND = "layer_groups[0].layers[0]", "layer_groups[1].layers[0]"
TRAINING = TrainingPlan(
    tensor_parallel=8,
    sequence_parallel=True,
    pipeline_parallel=9,
    data_parallel=16,
    zero_stage=1,
    sequence_length=8192,
    global_batch_size=1152,
    gradient_dtype="fp32",
    hardware="h100",
)
"""How a large dense model is trained."""
SPACES: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    "dense": (
        "llama-3-8b",
        {
            "hidden_size": (1024, 16_384),
            "layer_groups[0].repeats": (8, 128),
            f"{_FIRST}.sequence_mixer.num_attention_heads": (8, 128),
            f"{_FIRST}.sequence_mixer.num_key_value_heads": (1, 64),
            f"{_FIRST}.channel_mixer.intermediate_size": (1024, 53_248),
        },
    ),
    "latent attention and experts": (
        "deepseek-v3",
        {
            "hidden_size": (1024, 16_384),
            "layer_groups[1].repeats": (8, 128),
            f"{_SECOND}.sequence_mixer.num_attention_heads": (16, 256),
            f"{_SECOND}.sequence_mixer.kv_lora_rank": (64, 1024),
            f"{_SECOND}.channel_mixer.num_experts": (8, 512),
            f"{_SECOND}.channel_mixer.intermediate_size": (256, 8192),
        },
    ),
}
"""What is searched: a preset, and the range of each field that varies."""


def baseline() -> int:
    """Fixed Python work: ten thousand additions."""
    total = 0
    for number in range(10_000):
        total += number
    return total


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, the mean over ``repeats``."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def least(works: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """The least seconds of each work, in rounds that go through all of them."""
    times = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, (work, repeats) in works.items():
            times[name] = min(times[name], seconds_of(work, repeats))
    return times


def search(name: str) -> Callable[[], dict[str, np.ndarray]]:
    """Size and cache of all the candidates of a space."""
    preset, ranges = SPACES[name]
    drawn = np.random.default_rng(0)
    fields = {path: drawn.integers(low, high, CANDIDATES).astype(np.float64) for path, (low, high) in ranges.items()}
    formulas: dict[str, Callable[[ArchitectureSpec], object]] = {
        "parameters": lambda spec: count_parameters(spec).total,
        "cache": lambda spec: cache_bytes(spec, CONTEXT_LENGTH),
    }
    spec = load(preset)
    return lambda: evaluate(spec, fields, formulas)


def many_plans() -> np.ndarray:
    """Peak memory of :data:`PLANS` ways of training, as arrays in blocks that stay in a core's cache."""
    drawn = np.random.default_rng(0)
    fields = {name: drawn.choice(values, PLANS) for name, values in PLAN_SIZES.items()}
    spec, common = load("llama-3.1-405b"), {**TRAINING.model_dump(), "pipeline_parallel": 3}
    return np.concatenate(
        [
            allocated_bytes(
                spec,
                TrainingPlan.model_construct(
                    **{**common, **{name: values[start : start + BLOCK] for name, values in fields.items()}}
                ),
            )
            for start in range(0, PLANS, BLOCK)
        ]
    )


def one_core() -> None:
    """Keep this process, and the threads of its libraries, on one core."""
    if any(os.environ.get(name) != "1" for name in THREADS):
        # Libraries read these when they are loaded, which they are by now.
        os.environ.update(dict.fromkeys(THREADS, "1"))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.planner"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> int:
    """Print the times; status 1 where one misses its target."""
    spec, trained = load("deepseek-v3"), load("llama-3.1-405b")
    config = read_yaml((PRESETS / "deepseek-v3.yaml").read_text(encoding="utf-8"))["config"]
    searches = {f"{CANDIDATES:,} candidates, {name}": search(name) for name in SPACES}
    works: dict[str, tuple[Callable[[], object], int]] = {
        "baseline": (baseline, 5),
        "size": (lambda: size(spec).parameters.total, 50),
        "size, every tensor": (lambda: size(spec).tensors, 2),
        "size, from its configuration": (lambda: size(from_huggingface(config)).parameters.total, 5),
        "flops": (lambda: flops(spec, 4096).total, 50),
        "cache": (lambda: cache_bytes(spec, CONTEXT_LENGTH), 50),
        "training": (lambda: estimate_training(trained, TRAINING), 10),
        "time of a training step": (lambda: step_time(trained, TRAINING), 20),
        "memory of many training plans": (many_plans, 1),
        **{name: (work, 1) for name, work in searches.items()},
    }
    times = least(works, ROUNDS)
    misses = []
    try:
        from benchmarks.accuracy import transformers_parameters

        counted = "transformers, on the meta device"
        times |= least({counted: (lambda: transformers_parameters(config), 1)}, TRANSFORMERS_ROUNDS)
    except ImportError:
        counted = ""
        print("transformers is not installed, so there is no ratio to it")
    for name, seconds in times.items():
        print(f"{name:56} {seconds * 1e3:9.4f} ms  {seconds / times['baseline']:9.3f} × baseline")
    if times["size"] > TARGET_SECONDS:
        misses.append(f"size takes longer than {TARGET_SECONDS * 1e3} ms")
    if times["training"] > TARGET_TRAINING_SECONDS:
        misses.append(f"an estimate of training takes longer than {TARGET_TRAINING_SECONDS * 1e3} ms")
    plans = PLANS / times["memory of many training plans"]
    print(f"{plans / 1e3:,.0f} thousand training plans a second")
    if plans < TARGET_PLANS:
        misses.append(f"fewer than {TARGET_PLANS:,} training plans a second")
    for name in searches:
        rate = CANDIDATES / times[name]
        print(f"{rate / 1e6:.1f} million candidates a second, size and cache: {name.partition(', ')[2]}")
        if rate < TARGET_CANDIDATES:
            misses.append(f"fewer than {TARGET_CANDIDATES / 1e6:.0f} million candidates a second: {name}")
    if counted:
        for name in ("size", "size, from its configuration"):
            ratio = times[counted] / times[name]
            print(f"{ratio:,.0f} times as fast as transformers' own count: {name}")
            if ratio < TARGET_RATIO:
                misses.append(f"less than {TARGET_RATIO} times as fast as transformers: {name}")
    for miss in misses:
        print(miss, file=sys.stderr)
    return 1 if misses else 0


def accuracy() -> int:
    """Print the page of accuracies; status 1 where the planner is not exact in a row."""
    from benchmarks.accuracy import page

    text, right = page()
    print(text, end="")
    return 0 if right else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["accuracy"]:
        sys.exit(accuracy())
    if sys.argv[1:]:
        sys.exit("usage: python -m benchmarks.planner [accuracy]")
    one_core()
    sys.exit(main())
