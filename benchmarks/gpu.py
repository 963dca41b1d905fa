"""Prefill, decoding and a training step on a GPU: each design with Triton's kernels beside PyTorch's own, in one run.

``python -m benchmarks.gpu [DESIGN …] > FILE`` prints one JSON object. Ends with status 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from planner.plans import BenchmarkPlan
from planner.spec import ArchitectureSpec, parse_spec
from runners.environment import describe
from runners.events import Result
from runners.jobs import benchmark
from runners.jobs.base import JobContext

LAYERS = 16
WIDTH = 2048
_MAMBA_2 = {"kind": "mamba2", "num_heads": 64, "head_dim": 64, "state_size": 128}
_MLP = {"kind": "mlp", "intermediate_size": 5632}
_ATTENTION = {"kind": "attention", "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
DESIGNS: dict[str, list[dict[str, Any]]] = {
    "grouped queries": [{"sequence_mixer": _ATTENTION, "channel_mixer": _MLP}],
    "window of 1024": [{"sequence_mixer": {**_ATTENTION, "sliding_window": 1024}, "channel_mixer": _MLP}],
    "blocks of 128: two back, one global, three random": [
        {
            "sequence_mixer": {
                **_ATTENTION,
                "block_size": 128,
                "block_offsets": [1, 2],
                "random_blocks": 3,
                "global_tokens": 128,
            },
            "channel_mixer": _MLP,
        }
    ],
    "experts, 2 of 8": [
        {
            "sequence_mixer": _ATTENTION,
            "channel_mixer": {"kind": "moe", "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 2816},
        }
    ],
    "Mamba-2": [
        {
            "sequence_mixer": {"kind": "mamba2", "num_heads": 64, "head_dim": 64, "state_size": 128},
            "channel_mixer": None,
        }
    ],
}


def design(layers: list[dict[str, Any]]) -> ArchitectureSpec:
    """Sixteen layers of 2,048 channels."""
    groups = [{"repeats": LAYERS // len(layers), "layers": layers}]
    return parse_spec({"vocab_size": 32_000, "hidden_size": WIDTH, "layer_groups": groups})


def measure(spec: ArchitectureSpec, kernels: Any) -> dict[str, Any]:
    """One benchmark as the runner takes it."""
    plan = BenchmarkPlan(
        batch_size=4,
        sequence_length=4096,
        decode_tokens=2,
        parameter_budget=None,
        max_repetitions=12,
        precision="bf16_autocast",
        kernels=kernels,
    )
    with tempfile.TemporaryDirectory() as directory:
        events = list(benchmark.run(spec, plan, JobContext(directory=pathlib.Path(directory), attempt=1)))
    torch.cuda.empty_cache()
    return next(dict(event.values) for event in events if isinstance(event, Result))


def main(argv: Sequence[str]) -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("designs", nargs="*", help=f"of {', '.join(DESIGNS)}; all, unless named")
    chosen = parser.parse_args(argv).designs or list(DESIGNS)
    unknown = [name for name in chosen if name not in DESIGNS]
    if unknown:
        parser.error(f"there is no design {unknown[0]!r}")
    if not torch.cuda.is_available():
        print("There is no CUDA device here.", file=sys.stderr)
        return 2
    rows = []
    for name in chosen:
        spec = design(DESIGNS[name])
        runs: dict[str, Any] = {}
        for kernels in ("eager", "block_sparse", "triton") if "blocks" in name else ("eager", "triton"):
            try:
                runs[kernels] = measure(spec, kernels)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"{name}, {kernels}: {error}", file=sys.stderr)
        for phase in ("prefill", "decode", "training"):
            speeds = {kernels: run["timings"][phase]["tokens_per_second"] for kernels, run in runs.items()}
            rows.append({"design": name, "phase": phase, "tokens_per_second": speeds})
            print(name, phase, {kernels: round(speed) for kernels, speed in speeds.items()}, file=sys.stderr)
    print(json.dumps({"environment": describe("cuda"), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
