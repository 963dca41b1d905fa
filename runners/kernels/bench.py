"""Times of the kernels on a GPU, as ratios to PyTorch's own in the same run.

python -m runners kernels bench [--json]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence

import torch

from runners.kernels.registry import KERNELS

WARMUPS, ROUNDS = 5, 20
ROUND_MILLISECONDS = 10.0


def _elapsed(call: Callable[[], object]) -> float:
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return started.elapsed_time(ended)


def milliseconds(call: Callable[[], object]) -> float:
    """The GPU's own time of one call: recorded calls are replayed, since launching a short one takes Python longer."""
    # A backward pass runs on the stream of its forward pass, and the one that is recorded is none's default.
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARMUPS):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    calls = max(1, round(ROUND_MILLISECONDS / max(_elapsed(call), 1e-3)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    return statistics.median(_elapsed(graph.replay) for _ in range(ROUNDS)) / calls


def main(argv: Sequence[str]) -> int:
    """Exit status 2 where there is no GPU: a time that was not taken on one does not exist."""
    parser = argparse.ArgumentParser(prog="python -m runners kernels bench")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kernel", choices=[kernel.name for kernel in KERNELS], help="this one alone")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("There is no CUDA device here: kernels are timed on a GPU alone.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    rows = []
    for kernel in KERNELS:
        if arguments.kernel not in (None, kernel.name):
            continue
        for case in kernel.benchmark_cases():
            inputs = case.make(device)
            calls = {name: functools.partial(case.call, name, inputs) for name in ("eager", "triton")}
            times = {name: milliseconds(call) for name, call in calls.items()}
            del inputs, calls
            torch.cuda.empty_cache()
            rows.append(
                {
                    "kernel": kernel.name,
                    "case": case.label,
                    "eager_milliseconds": times["eager"],
                    "triton_milliseconds": times["triton"],
                    "ratio": times["eager"] / times["triton"],
                    "gigabytes_per_second": case.moved_bytes / times["triton"] / 1e6,
                    "teraflops_per_second": case.operations / times["triton"] / 1e9,
                }
            )
    if arguments.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}))
    else:
        for row in rows:
            print(
                f"{row['kernel']:<18} {row['case']:<75} {row['triton_milliseconds']:8.3f} ms, "
                f"{row['ratio']:.2f} times PyTorch's own ({row['eager_milliseconds']:.3f} ms)"
            )
    return 0
