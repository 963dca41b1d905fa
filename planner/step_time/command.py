"""What the command line asks and says of a run on a budget of tokens."""

from __future__ import annotations

import argparse
import math

from planner.errors import PlannerError
from planner.hardware import hardware
from planner.step_time.records import StepTime
from planner.step_time.run_cost import LLAMA_3_HOURS_BETWEEN_FAILURES, Interruptions, RunCost, run_cost
from planner.units import money_text, seconds_text

OPTIONS = {
    "tokens": "of a whole run, whose time, energy and price are then told",
    "checkpoint_seconds": "that the devices wait for a checkpoint; with --restart-seconds",
    "restart_seconds": "from a failure until work goes on from the last checkpoint",
    "hours_between_failures": "of one device; absent: as in the training of Llama 3",
}


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    for name, about in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=about)


def is_run(options: argparse.Namespace) -> bool:
    """Whether any option of a run is given."""
    return any(getattr(options, name) is not None for name in OPTIONS)


def run_of(options: argparse.Namespace, time: StepTime, device: str | None) -> RunCost:
    """What a run takes, with interruptions where both of their times are given; ``PlannerError`` names an option."""
    for name in OPTIONS:
        amount = getattr(options, name)
        if amount is not None and not 0 < amount < math.inf:
            raise PlannerError.of(
                f"{amount} is no amount.",
                path=f"--{name.replace('_', '-')}",
                remedy="Choose a value above 0.",
                code="not_positive",
            )
    if options.tokens is None:
        raise PlannerError.of(
            "A run needs its tokens.",
            path="--tokens",
            remedy="Add --tokens 1e12.",
            code="no_run",
        )
    if device is None or time.seconds is None:
        raise PlannerError.of(time.text, path="hardware", remedy="Add --set hardware=h100.", code="no_step_time")
    if (options.checkpoint_seconds is None) != (options.restart_seconds is None):
        raise PlannerError.of(
            "Interruptions need both times: to write a checkpoint, and to go on from one.",
            path="--checkpoint-seconds",
            remedy="Give --checkpoint-seconds and --restart-seconds, or neither.",
            code="half_of_interruptions",
        )
    interruptions = None
    if options.checkpoint_seconds is not None:
        between = options.hours_between_failures or LLAMA_3_HOURS_BETWEEN_FAILURES
        interruptions = Interruptions(options.checkpoint_seconds, options.restart_seconds, between)
    return run_cost(time, hardware(device), options.tokens, interruptions)


def rows_of_run(run: RunCost) -> list[tuple[str, ...]]:
    """A run as rows of a table."""
    rows: list[tuple[str, ...]] = [
        ("steps", f"{run.steps:,}"),
        ("time of the run", seconds_text(run.total_seconds)),
        ("of it in steps that count", f"{run.goodput:.1%}"),
        ("device hours", f"{run.device_hours:,.0f}"),
    ]
    if run.checkpoint_interval_seconds is not None:
        rows.append(("between checkpoints", seconds_text(run.checkpoint_interval_seconds)))
    if run.energy_kwh is not None:
        rows.append(("energy of the devices", f"{run.energy_kwh:,.0f} kWh"))
    if run.price_usd is not None:
        rows.append(("price", money_text(run.price_usd)))
    return rows
