"""How fast models train, beside transformers' on the same weights, batches, optimizer and machine, in one run.

usage: python -m benchmarks.training [--write] [--json FILE] [--only NAME …]

Batches of 8 sequences of 512 bytes of Python's standard library, 6 layers of 256 channels, fused AdamW. Times are
interleaved, repetition by repetition, and ratios are medians over the repetitions; of Mamba-1 one step of transformers
takes minutes, so that it has one, and ours has some before and as many after. transformers runs in fp32 and under bf16
autocast, with PyTorch's fused attention, and the better of the two is what ours is compared with. Ours runs in the
precision that a timed product of matrices shows to pay. Peak memory is the most that a process of its own held in
memory over what it held before its model was made, in a few steps. Losses are those of training from the same weights;
the noise beside them is the deviation over initializations. With --write the table goes into docs/models.md. The exit
status is 1 where ours is slower, takes more memory or learns otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from planner.interop import from_huggingface
from runners.environment import describe
from runners.models import Decoder, build, load_huggingface
from runners.models.decoder import next_tokens
from runners.profile import measure
from runners.training.data import STANDARD_LIBRARY, batch, load_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- benchmarks.training -->", "<!-- end of benchmarks.training -->"
BATCH, LENGTH = 8, 512
REPETITIONS = 7
LEARNING_RATE = 1e-3
CURVE_STEPS, CURVE_LENGTH, CURVE_SEEDS = 30, 128, 4
NAIVE = frozenset({"Mamba-1"})
"""transformers goes through these position by position, which takes minutes a step: it has one, which gives its time
and its peak, and losses are of short sequences."""
NAIVE_CURVE_LENGTH = 24

_SHARED = {
    "vocab_size": 256,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 704}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "llama", **_SHARED, **_ATTENTION},
    "Mamba-1": {"model_type": "mamba", **_SHARED, "intermediate_size": 512, "state_size": 16, "time_step_rank": 16},
    "Mamba-2": {
        "model_type": "mamba2", **_SHARED, "num_heads": 8, "head_dim": 64, "state_size": 64, "n_groups": 1,
        "chunk_size": 64,
    },
    "MoE": {
        "model_type": "mixtral", **_SHARED, **_ATTENTION, "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": None,
    },
}  # fmt: skip

Loss = Callable[[Tensor], Tensor]


def theirs(name: str, seed: int = 0) -> Any:
    """transformers' model with PyTorch's fused attention, where it has attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(CONFIGS[name])
    torch.manual_seed(seed)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config)


def ours(model: Any) -> Decoder:
    """Our model of the same weights."""
    return load_huggingface(model.state_dict(), model.config.to_dict())


def loss_of(model: nn.Module) -> Loss:
    """What each side's training loop minimizes."""
    if isinstance(model, Decoder):
        return lambda tokens: model.loss(tokens, next_tokens(tokens))
    return lambda tokens: model(input_ids=tokens, labels=tokens).loss


class Training:
    """A model, its optimizer and its precision."""

    def __init__(self, model: nn.Module, bf16: bool) -> None:
        self.loss, self.bf16 = loss_of(model), bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(self, tokens: Tensor) -> float:
        """One step; its loss."""
        autocast = torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = self.loss(tokens)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def seconds(self, tokens: Tensor) -> float:
        """How long one step takes."""
        started = time.perf_counter()
        self.step(tokens)
        return time.perf_counter() - started


def batches(count: int, length: int) -> list[Tensor]:
    """The same for everyone."""
    text = load_text(STANDARD_LIBRARY).training
    return [batch(text, 0, step, BATCH, length) for step in range(count)]


def speed(name: str, bf16: bool) -> dict[str, Any]:
    """Seconds a step of each side, repetition by repetition."""
    reference = theirs(name)
    sides = {"ours": Training(ours(reference), bf16)} | {
        f"transformers {precision}": Training(reference, precision == "bf16") for precision in ("fp32", "bf16")
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repetition, tokens in enumerate(batches(REPETITIONS + 1, LENGTH)):
        for side, training in sides.items():
            took = training.seconds(tokens)
            if repetition:  # the first warms up
                seconds[side].append(took)
    return seconds


def speed_and_peaks(name: str, bf16: bool) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each side's steps, and the peak bytes of both."""
    if name not in NAIVE:
        seconds = speed(name, bf16)
        best = better(seconds)
        return seconds, {
            "ours": alone(name, "ours", bf16)[1],
            "transformers": alone(name, "transformers", best.endswith("bf16"))[1],
        }
    # The better of its two precisions by short sequences; the other is not waited for.
    reference = theirs(name)
    short = batches(1, NAIVE_CURVE_LENGTH)[0]
    trial = {precision: Training(reference, precision == "bf16") for precision in ("fp32", "bf16")}
    best = min(trial, key=lambda precision: min(trial[precision].seconds(short) for _ in range(2)))
    before, peak = alone(name, "ours", bf16)
    slow, its_peak = alone(name, "transformers", best == "bf16")
    after, _ = alone(name, "ours", bf16)
    around = statistics.median(before + after)
    return {"ours": [around], f"transformers {best}": [slow[-1]]}, {"ours": peak, "transformers": its_peak}


def better(seconds: dict[str, list[float]]) -> str:
    """The faster of the other sides."""
    return min((side for side in seconds if side != "ours"), key=lambda side: statistics.median(seconds[side]))


def curves(name: str, bf16: bool) -> dict[str, Any]:
    """Losses of both from the same weights and batches, and of ours from other weights."""
    length = NAIVE_CURVE_LENGTH if name in NAIVE else CURVE_LENGTH
    made = batches(CURVE_STEPS, length)

    def trained(model: nn.Module) -> list[float]:
        training = Training(model, bf16)
        return [training.step(tokens) for tokens in made]

    found: dict[str, Any] = {"length": length}
    models = [theirs(name, seed) for seed in range(CURVE_SEEDS)]
    of_seeds = [trained(ours(model)) for model in models]
    found["ours"], found["transformers"] = of_seeds[0], trained(models[0])
    tail = CURVE_STEPS // 3
    means = [statistics.mean(losses[-tail:]) for losses in of_seeds]
    found["ours_mean"], found["transformers_mean"] = means[0], statistics.mean(found["transformers"][-tail:])
    found["difference"] = found["ours_mean"] - found["transformers_mean"]
    found["seed_deviation"] = statistics.stdev(means)
    return found


def alone(name: str, side: str, bf16: bool) -> tuple[list[float], int]:
    """Seconds of one side's steps in a process of their own, and the most that it held over what it held before."""
    command = [sys.executable, "-m", "benchmarks.training", "--alone", name, side, "bf16" if bf16 else "fp32"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["peak_bytes"]


def print_alone(name: str, side: str, precision: str) -> None:
    """What the process of :func:`alone` does: of several steps the first warms up, unless there is one alone."""
    tokens = batches(1, LENGTH)[0]
    if side == "ours":
        spec = from_huggingface(CONFIGS[name])
        make: Callable[[], nn.Module] = lambda: build(spec)  # noqa: E731
    else:
        import transformers  # noqa: F401

        make = lambda: theirs(name)  # noqa: E731
    before = psutil.Process().memory_info().rss
    training = Training(make(), precision == "bf16")
    naive = name in NAIVE
    seconds = [training.seconds(tokens) for _ in range(1 if naive and side != "ours" else REPETITIONS if naive else 2)]
    found = {"seconds": seconds[1:] or seconds, "peak_bytes": _most_resident_bytes() - before}
    print(json.dumps(found))


def _most_resident_bytes() -> int:
    """The most that this process has held, as Linux keeps it for the program that runs now.

    ``ru_maxrss`` is no help: a process inherits that of the one that started it.
    """
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measured(name: str, bf16: bool) -> dict[str, Any]:
    """Everything of one model."""
    seconds, peaks = speed_and_peaks(name, bf16)
    sides = [side for side in seconds if side != "ours"]
    best = better(seconds)
    ratios = {side: [slow / fast for slow, fast in zip(seconds[side], seconds["ours"], strict=True)] for side in sides}
    return {
        "model": name,
        "seconds": seconds,
        "tokens_per_second": {side: BATCH * LENGTH / statistics.median(took) for side, took in seconds.items()},
        "better": best,
        "ratios": {side: statistics.median(found) for side, found in ratios.items()},
        "least_and_most": [min(ratios[best]), max(ratios[best])],
        "peak_bytes": peaks,
        "losses": curves(name, bf16),
    }


def is_won(row: dict[str, Any]) -> bool:
    """Whether ours is faster, takes less memory and learns the same."""
    losses, peaks = row["losses"], row["peak_bytes"]
    learns_the_same = abs(losses["difference"]) <= losses["seed_deviation"]
    return row["ratios"][row["better"]] > 1 and peaks["ours"] < peaks["transformers"] and learns_the_same


def table(rows: list[dict[str, Any]], rates: dict[str, float], bf16: bool) -> str:
    """The rows as Markdown, with the machine that they are of."""
    machine = describe("cpu")
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
    capability = torch.backends.cpu.get_cpu_capability()
    first = CURVE_STEPS - CURVE_STEPS // 3 + 1
    lines = [
        f"{machine['device']}, {machine['threads']} threads, {capability}, load {machine['load_before']} before;",
        f"Python {platform.python_version()}, torch {machine['torch']}, transformers {version_of_transformers()}. "
        f"Products of matrices of 1,024 took {products}: so ours",
        f"trains in {'bf16 autocast' if bf16 else 'fp32'}. Speeds are tokens a second, of transformers' two "
        "precisions the better one; peaks are MiB;",
        f"losses are nats, the mean of steps {first} to {CURVE_STEPS}, and their deviation over {CURVE_SEEDS} seeds.",
        "",
        "| model | ours | transformers | times as fast | (of its fp32) | peak | its peak | loss | its loss | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        best, speeds, losses = row["better"], row["tokens_per_second"], row["losses"]
        low, high = row["least_and_most"]
        full = row["ratios"].get("transformers fp32")
        peaks = [f"{row['peak_bytes'][side] / 2**20:,.0f}" for side in ("ours", "transformers")]
        spread = f"**{row['ratios'][best]:.2f}**" + (f" ({low:.2f} to {high:.2f})" if low != high else "")
        lines.append(
            f"| {row['model']} | {speeds['ours']:,.0f} | {speeds[best]:,.0f}, {best.split()[1]} | "
            f"{spread} | "
            f"{'' if full is None else f'{full:.2f}'} | {peaks[0]} | {peaks[1]} | {losses['ours_mean']:.4f} | "
            f"{losses['transformers_mean']:.4f} | ± {losses['seed_deviation']:.4f} |"
        )
    return "\n".join(lines)


def version_of_transformers() -> str:
    """The installed version."""
    import transformers

    return str(transformers.__version__)


def write(text: str) -> None:
    """Put the table between its marks in the documentation."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the status whether ours is ahead everywhere."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="these models alone")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.alone:
        print_alone(*arguments.alone)
        return 0
    profile = measure()
    rates = profile.matmul_flops_per_second
    bf16 = profile.fastest_precision == "bf16_autocast"
    rows = []
    for name in arguments.only:
        started = time.perf_counter()
        row = measured(name, bf16)
        rows.append(row)
        print(f"{name}: {row['ratios']}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    text = table(rows, rates, bf16)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": describe("cpu"), "rates": rates, "rows": rows}, indent=1))
    if arguments.write:
        write(text)
    return 0 if all(is_won(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
