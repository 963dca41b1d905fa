"""The sections on serving of ``docs/accuracy.md``."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence

from planner.measured.inference import GPU_FILE, InferenceRow, counted_reasons, inference_rows, is_held_out
from planner.measured.served import Case, error_of
from planner.measured.weights import skipped_weights, weights_rows
from planner.serving.engines import engine_profiles
from scripts.accuracy_tables import counted, error_row, prose

SHARES = ("memory", "memory_packed", "cache", "arithmetic", "attention", "network", "overlap")
SECONDS = ("launch_seconds", "host_seconds", "pass_seconds", "between_seconds", "latency_seconds")


def _by(rows: Sequence[tuple[InferenceRow, float]], name: str, key: Callable[[InferenceRow], str]) -> Iterator[str]:
    groups: dict[str, list[float]] = {}
    for row, error in rows:
        groups.setdefault(key(row), []).append(error)
    yield f"| {name} | readings | median | mean | 90% within | median with sign |"
    yield "|---|--:|--:|--:|--:|--:|"
    for group, errors in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"| {group} | {error_row(errors)} |"
    yield ""


def _half(row: InferenceRow) -> str:
    return "held out" if is_held_out(row) else "calibrated on"


def gpu_section() -> Iterator[str]:
    """Every row of ``serving_gpu.csv``."""
    yield "## Time of an output token on GPUs"
    yield ""
    yield from prose(
        "All rows of aiconfigurator's aggregated mode; nothing is calibrated on them. Requests are taken to come and "
        "go, so that passes also read prompts; TensorRT-LLM is taken to keep keys and values in fp8 where weights have "
        "fewer than 16 bits. The rows that come out lowest waited half a minute for their first token: more was asked "
        "of these servers than they could do."
    )
    rows = [row for row in inference_rows() if row.id.startswith(GPU_FILE)]
    yield "| engine | model | device | setting | measured | predicted | error |"
    yield "|---|---|---|---|--:|--:|--:|"
    errors = []
    for row in rows:
        predicted = Case.of(row).seconds()
        errors.append(predicted / row.value - 1)
        plan = row.plan
        shared = f"TP {plan.tensor_parallel}" + (f", EP {plan.expert_parallel}" if plan.expert_parallel > 1 else "")
        yield (
            f"| {row.engine} | {row.model} | {plan.hardware} | {row.notes}, {shared} | {1e3 * row.value:.1f} ms | "
            f"{1e3 * predicted:.1f} ms | {100 * errors[-1]:+.0f}% |"
        )
    yield ""
    yield f"Median error {100 * statistics.median(map(abs, errors)):.1f}%."
    yield ""


def serving_section() -> Iterator[str]:
    """Times and memory of ``inference_world.csv``."""
    rows = [(row, error_of(row)) for row in inference_rows() if not row.id.startswith(GPU_FILE)]
    times = [(row, error) for row, error in rows if row.reading in ("token", "answer")]
    prompts = [(row, error) for row, error in rows if row.reading == "prompt"]
    memory = [(row, error) for row, error in rows if row.reading == "memory"]
    yield "## Time of serving"
    yield ""
    yield from prose(
        "Time of a token, or of a whole answer with its prompt where a source gives that. Settings (a model in a "
        "format on a device) are halved: the profiles are calibrated on one half and held against the other. litgpt's "
        "are only held against them. Meta's fp8 weights on MI300X, which took four times as long as AMD's own there, "
        "are left out, as are rows of which the source says that requests may have waited."
    )
    yield from _by(times, "source, half", lambda row: f"{row.group.split('/')[-1]}, {_half(row)}")
    yield from _by(times, "engine, half", lambda row: f"{row.plan.engine}, {_half(row)}")
    yield from _by(times, "device", lambda row: row.plan.hardware or "")
    yield "## Time of reading prompts"
    yield ""
    yield from prose("Where a source gives it alone: of one prompt, or of all of a batch that come at once.")
    yield from _by(prompts, "source, half", lambda row: f"{row.group.split('/')[-1]}, {_half(row)}")
    yield from _by(prompts, "device", lambda row: row.plan.hardware or "")
    yield "## Memory of serving"
    yield ""
    yield from prose(
        "What an allocator, or llama.cpp, says of its buffers, against the prediction without the process's overhead."
    )
    yield from _by(memory, "source", lambda row: row.group.split("/")[-1])
    yield from _by(memory, "format", lambda row: row.plan.weight_format)
    yield from counted("row or reading not used, because", counted_reasons().elements())


def weights_section() -> Iterator[str]:
    """Sizes of files."""
    rows = weights_rows()
    errors = [row.error for row in rows]
    yield "## Sizes of quantized weights"
    yield ""
    yield "| files | median | mean | 90% within | median with sign |"
    yield "|--:|--:|--:|--:|--:|"
    yield f"| {error_row(errors, 3)} |"
    yield ""
    worst = sorted(rows, key=lambda row: -abs(row.error))[:5]
    listed = "; ".join(f"{row.model} in {row.weight_format} {100 * row.error:+.2f}%" for row in worst)
    yield from prose(
        f"The worst: {listed}. Files also hold the vocabulary, which is not counted. DeepSeek's were made with an "
        "importance matrix, by which llama.cpp keeps an eighth of the ways down in Q4_1."
    )
    yield from counted("file not used, because", (row.reason for row in skipped_weights()))


def terms_section() -> Iterator[str]:
    """The terms that times of serving stand on."""
    yield "## What engines reach"
    yield ""
    yield "Shares of promised rates and microseconds that are added, with the 10th and 90th percentile of refits."
    yield ""
    profiles = engine_profiles()
    yield "| term | " + " | ".join(f"{each.engine}, {each.memory_text}" for each in profiles) + " |"
    yield "|---|" + "--:|" * len(profiles)
    for name in (*SHARES, *SECONDS):
        factor, digits = (1e6, 0) if name in SECONDS else (1.0, 2)
        cells = []
        for profile in profiles:
            term = getattr(profile, name)
            value, low, high = (f"{factor * each:.{digits}f}" for each in (term.value, term.low, term.high))
            cells.append(f"{value} ({low} to {high})" if term.high > 0 else "")
        yield f"| {name.replace('_seconds', ', µs').replace('_', ' ')} | {' | '.join(cells)} |"
    bounds = (f"{low:.2f} to {high:.2f}" for low, high in (each.relative_interval for each in profiles))
    yield f"| measured over predicted | {' | '.join(bounds)} |"
    yield ""
    for profile in profiles:
        yield from textwrap.wrap(
            f"- {profile.engine} on {profile.memory_text}: {profile.calibrated_on}.", 116, subsequent_indent="  "
        )
    yield ""


def left_out_section() -> Iterator[str]:
    """Each source by what the others give."""
    yield "## Each source by what the others give"
    yield ""
    yield from prose(
        "Profiles fitted anew without a source, against its rows; of a profile with one source without a device, and "
        "of one with one device without a model. What nothing resembles, as a model with experts among dense ones, "
        "shows here."
    )
    yield "| profile | left out | readings | median | median with sign |"
    yield "|---|---|--:|--:|--:|"
    for profile in engine_profiles():
        for each in profile.left_out:
            name = each.name.removeprefix("web page/")
            yield (
                f"| {profile.engine}, {profile.memory_text} | {name} | {each.readings} | "
                f"{100 * each.median:.1f}% | {100 * each.signed:+.1f}% |"
            )
    yield ""


SECTIONS = (gpu_section, serving_section, weights_section, terms_section, left_out_section)
