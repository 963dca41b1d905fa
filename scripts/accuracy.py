"""How far predictions are from published runs, written from the runs and the code.

    python -m scripts.accuracy           writes docs/accuracy.md
    python -m scripts.accuracy --check   exit status 1 where the page there differs from what would be written

A section is a function that gives lines of Markdown; :data:`SECTIONS` lists them in the page's order.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

from planner.efficiency import SHARES, profiles
from planner.measured import TrainingRow, skipped_rows, summary, training_rows
from planner.measured.predicted import Reading, memory_of, time_of
from planner.measured.split import is_held_out
from planner.sizing import count_parameters
from planner.step_time import step_time
from scripts import accuracy_serving
from scripts.accuracy_tables import counted, error_row, prose
from scripts.left_out import read_left_out

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
LARGE = 1e9
"""Parameters from which a model's step says more of its arithmetic than of its launches."""

Section = Callable[[], Iterator[str]]
By = Callable[[TrainingRow], str]


def model_kind(row: TrainingRow) -> str:
    """Dense, with experts, with states, or both."""
    mixers = {
        getattr(mixer, "family", "")
        for group in row.spec.layer_groups
        for layer in group.layers
        for mixer in (layer.sequence_mixer, layer.channel_mixer)
    }
    words = [word for family, word in (("state-space", "states"), ("experts", "experts")) if family in mixers]
    return "with " + " and ".join(words) if words else "dense"


def device(row: TrainingRow) -> str:
    """The catalogue's id, or the source's own name."""
    return row.plan.hardware or row.gpu


def precision(row: TrainingRow) -> str:
    """Eight bits, or sixteen."""
    return "fp8" if row.plan.precision == "fp8" else "16 bits"


def table(readings: Sequence[Reading], name: str, by: By) -> Iterator[str]:
    """Errors by group, the largest group first."""
    groups: dict[str, list[float]] = {}
    for reading in readings:
        if reading.error is not None:
            groups.setdefault(by(reading.row), []).append(reading.error)
    yield f"| {name} | rows | median | mean | 90% within | median with sign |"
    yield "|---|--:|--:|--:|--:|--:|"
    for group, errors in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"| {group} | {error_row(errors)} |"
    if len(groups) > 1:
        yield f"| all | {error_row([error for errors in groups.values() for error in errors])} |"
    yield ""


def memory_section() -> Iterator[str]:
    """Peak memory of training."""
    readings = [reading for row in training_rows() if (reading := memory_of(row)) is not None]
    yield "## Memory of training"
    yield ""
    yield from prose(
        "Peak memory of the device that was read: Megatron-LM's tests read the last pipeline rank, others the one that "
        "needs most. What an allocator reports is held against the prediction without the process's overhead, what was "
        "printed by a tool that the source does not name, or by `nvidia-smi` (bigscience's), against the least that a "
        "caching allocator keeps, with the overhead."
    )
    yield from prose(
        "What is left of the printed ones has names. bigscience's chronicle tells of `nvidia-smi`, which also shows "
        "blocks that were split and NCCL's buffers. nanotron's log writes allocated and reserved bytes side by side, "
        "and its figure one of them without saying which; its own operators keep a gate's activation and logits in 16 "
        "and 32 bits, its gradients stay whole in 16 bits beside those in fp32, and DistributedDataParallel has "
        "buckets for them once more, none of which is modelled. ms-swift's tables do not say what was read. Nothing is "
        "fitted to them."
    )
    yield from table(readings, "source", lambda row: row.repository)
    yield from table(readings, "device", device)
    yield from table(readings, "reading", lambda row: "" if row.memory is None else row.memory.kind)
    yield from table(readings, "model", model_kind)
    yield from counted("not predicted, because", (reading.reason for reading in readings if reading.reason))


def time_section() -> Iterator[str]:
    """Time of a training step."""
    found = [reading for row in training_rows() if (reading := time_of(row)) is not None]
    readings = [reading for reading in found if count_parameters(reading.row.spec).total >= LARGE]
    b200 = [reading for reading in readings if reading.row.id.startswith("training_b200")]
    world = [reading for reading in readings if not reading.row.id.startswith("training_b200")]
    yield "## Time of a training step"
    yield ""
    yield from prose(
        "Models of a billion parameters and more. The efficiencies are calibrated on one half of the settings and held "
        "against the other; rows that repeat a setting are in one half."
    )
    yield from table(b200, "eight B200 (SimuMax)", _half)
    yield from table(world, "half", _half)
    yield from table(world, "source", lambda row: row.repository)
    yield from table(world, "device", device)
    yield from table(world, "precision", precision)
    yield from table(world, "model", model_kind)
    small = [reading for reading in found if count_parameters(reading.row.spec).total < LARGE]
    yield "Smaller models, of which host and launches decide more than is modelled:"
    yield ""
    yield from table(small, "source", lambda row: row.repository)
    yield from counted("not predicted, because", (reading.reason for reading in found if reading.reason))


def left_out_section() -> Iterator[str]:
    """What is calibrated without a source or a device, against its rows."""
    found = read_left_out()
    readings = [reading for row in training_rows() if (reading := time_of(row)) is not None]
    large = [reading for reading in readings if count_parameters(reading.row.spec).total >= LARGE]
    yield "## Time of a training step of sources and devices that were left out"
    yield ""
    yield from prose(
        "The honest figure for runs that are not here: all rows of a source, predicted by a calibration that saw none "
        "of them. In the second table a device has the numbers of its family's other devices, as one has of which no "
        "run was ever measured."
    )

    def without(reading: Reading, name: str) -> Reading:
        profiles_without = found[name]
        (profile,) = [each for each in profiles_without.values() if reading.row.plan.hardware in each.devices]
        seconds = step_time(reading.row.spec, reading.row.plan, profile).seconds
        return dataclasses.replace(reading, predicted=None if seconds is None else float(seconds))

    yield from table(
        [without(each, each.row.repository) for each in large], "source left out", lambda row: row.repository
    )
    of_devices = [without(each, device(each.row)) for each in large if device(each.row) in found]
    yield from table(of_devices, "device left out", device)


def _half(row: TrainingRow) -> str:
    return "held out" if is_held_out(row) else "calibrated on"


def efficiency_section() -> Iterator[str]:
    """The efficiencies that times stand on."""
    yield "## Efficiencies"
    yield ""
    yield from prose(
        "What training reaches of promised rates, with the interval of two standard errors to each side. A profile "
        "without devices is its family's, for those that borrow it; their interval is the wider one."
    )
    yield (
        "| profile | devices | "
        + " | ".join(SHARES)
        + " | a kernel's launch | measured over predicted | where borrowed |"
    )
    yield "|---|---|" + "--:|" * (len(SHARES) + 3)
    for profile in profiles().values():
        cells = []
        for name in SHARES:
            share = getattr(profile, name)
            cells.append("" if share is None else f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f})")
        low, high = profile.relative_interval
        wide = profile.borrowed_interval
        borrowed = f"{wide[0]:.2f} to {wide[1]:.2f}" if profile.borrowed_by else ""
        yield (
            f"| {profile.id} | {', '.join(profile.devices)} | {' | '.join(cells)} | "
            f"{1e6 * profile.launch_seconds:.1f} µs | {low:.2f} to {high:.2f} | {borrowed} |"
        )
    yield ""
    for profile in profiles().values():
        yield f"- {profile.id}: {profile.calibrated_on}."
        if profile.borrowed_by:
            yield f"  Borrowed by {', '.join(profile.borrowed_by)}."
    yield ""


def skipped_section() -> Iterator[str]:
    """Rows that are not used."""
    found = summary()
    yield "## What is left out"
    yield ""
    yield from prose(
        f"Of {found.rows} rows of training, {found.with_memory} with memory and {found.with_time} with a time, "
        f"{found.used_for_memory} are used for memory and {found.used_for_time} for time. A row whose setting no plan "
        "can say is skipped; these are the reasons."
    )
    yield from counted("skipped", (row.reason for row in skipped_rows()))
    yield from counted("memory not used", (row.memory_reason for row in training_rows() if row.memory_reason))
    yield from counted("time not used", (row.time_reason for row in training_rows() if row.time_reason))


SECTIONS: tuple[Section, ...] = (
    memory_section,
    time_section,
    left_out_section,
    efficiency_section,
    skipped_section,
    *accuracy_serving.SECTIONS,
)

OPENING = """\
# How far predictions are from measured runs

Runs that others published, each with its source, license and date in `assets/measured`, against what the planner says
of the same specification and plan today. Written by `python -m scripts.accuracy`; a test holds the page to the code.
An error is the prediction over the measurement, less one; medians, means and the bound of nine in ten are of its size.
The parameters of known models are on [a page of their own](planner/accuracy.md).
"""


def page() -> str:
    """The whole page."""
    lines = [OPENING]
    for section in SECTIONS:
        lines += section()
    return "\n".join(lines).rstrip("\n") + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or say whether it is as it would be written."""
    parser = argparse.ArgumentParser(prog="python -m scripts.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/accuracy.md is not what the code says: run `python -m scripts.accuracy`.", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
