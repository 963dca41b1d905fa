"""How long sizing takes, beside a baseline of the same run: ``python -m benchmarks.planner``.

Machines differ and their clocks wander, so each figure also stands as a ratio to a fixed piece of Python work that is
timed in the same rounds. The target is that of a page that sizes on every key stroke: 0.5 ms for a model of 61 layers.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from planner import ArchitectureSpec, cache_bytes, flops, parse_spec, size
from planner.sizing import count_parameters
from planner.symbolic import candidates

TARGET_SECONDS = 0.5e-3
ROUNDS = 40
CANDIDATES = 16_384

_LATENT = {
    "kind": "latent_attention",
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_EXPERTS = {
    "kind": "moe",
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "intermediate_size": 2048,
    "shared_intermediate_size": 2048,
    "num_expert_groups": 8,
    "groups_per_tok": 4,
}
_DENSE = {"kind": "mlp", "intermediate_size": 18_432}


def deepseek_v3() -> ArchitectureSpec:
    """DeepSeek-V3 (arXiv:2412.19437): 61 layers, three of them dense."""
    groups = [
        {"repeats": 3, "layers": [{"sequence_mixer": _LATENT, "channel_mixer": _DENSE}]},
        {"repeats": 58, "layers": [{"sequence_mixer": _LATENT, "channel_mixer": _EXPERTS}]},
    ]
    return parse_spec({"vocab_size": 129_280, "hidden_size": 7168, "layer_groups": groups})


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


def main() -> int:
    """Print the table; status 1 where sizing misses its target."""
    spec = deepseek_v3()
    many = candidates(spec, {"hidden_size": np.linspace(1024.0, 16_384.0, CANDIDATES)})
    works: dict[str, tuple[Callable[[], object], int]] = {
        "baseline": (baseline, 5),
        "size": (lambda: size(spec).parameters.total, 50),
        "size, every tensor": (lambda: size(spec).tensors, 2),
        "flops": (lambda: flops(spec, 4096).total, 50),
        "cache": (lambda: cache_bytes(spec, 32_768), 50),
        f"size of {CANDIDATES:,} candidates": (lambda: count_parameters(many).total, 2),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, (work, repeats) in works.items():
            times[name].append(seconds_of(work, repeats))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:32} {seconds * 1e3:9.4f} ms  {seconds / medians['baseline']:8.3f} × baseline")
    per_second = CANDIDATES / medians[f"size of {CANDIDATES:,} candidates"]
    print(f"{per_second / 1e6:.1f} million candidates a second")
    if medians["size"] > TARGET_SECONDS:
        print(f"size takes longer than {TARGET_SECONDS * 1e3} ms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
