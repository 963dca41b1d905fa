"""Time, energy and money of training on a budget of tokens, with interruptions.

With checkpoints every ``τ`` seconds that take ``δ``, failures with a mean time ``M`` between them and ``R`` seconds to
come back, a run of ``T`` seconds of work takes ``M exp(R/M) (exp((τ + δ)/M) − 1) T/τ`` (Daly 2006,
doi:10.1016/j.future.2004.11.016, equation 20). The best ``τ`` is near ``√(2 δ M)`` (Young 1974,
doi:10.1145/361147.361115); Daly's equation 37 refines it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.errors import UnsupportedPlan
from planner.hardware import Device
from planner.step_time.records import StepTime

LLAMA_3_HOURS_BETWEEN_FAILURES = 50_700.0
"""Hours of one device between unexpected interruptions: 419 of them in 54 days of 16,384 H100 (arXiv:2407.21783,
section 3.3.4)."""
SECONDS_AN_HOUR = 3600.0
LONGEST_RUN = 100
"""Times the work beyond which a run does not end."""
EXPONENT = 100.0
"""Beyond which an exponential is no number any more, and the run too long."""


@dataclass(frozen=True, slots=True)
class Interruptions:
    """What keeps a run from working all the time."""

    checkpoint_seconds: float
    """That the devices wait for a checkpoint to be written."""
    restart_seconds: float
    """From a failure until work goes on from the last checkpoint."""
    device_hours_between_failures: float = LLAMA_3_HOURS_BETWEEN_FAILURES
    checkpoint_interval_seconds: float | None = None
    """Between two checkpoints; absent: the best."""


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run takes. Times are of the clock, not of devices."""

    steps: int
    work_seconds: float
    """Of the steps alone."""
    checkpoint_seconds: float
    failure_seconds: float
    """Work that is lost with a failure, and the way back."""
    checkpoint_interval_seconds: float | None
    devices: int
    device_hours: float
    energy_kwh: float | None
    """Of the devices at their board power; without hosts, network and cooling unless ``overhead`` counts them."""
    price_usd: float | None
    notes: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """From the first step to the last."""
        return self.work_seconds + self.checkpoint_seconds + self.failure_seconds

    @property
    def goodput(self) -> float:
        """The share of the time in which steps are made that count."""
        return self.work_seconds / self.total_seconds


def best_interval(checkpoint_seconds: float, seconds_between_failures: float) -> float:
    """Daly's interval between checkpoints (his equation 37)."""
    if checkpoint_seconds >= 2 * seconds_between_failures:
        return seconds_between_failures
    share = checkpoint_seconds / (2 * seconds_between_failures)
    young = math.sqrt(2 * checkpoint_seconds * seconds_between_failures)
    return young * (1 + math.sqrt(share) / 3 + share / 9) - checkpoint_seconds


def run_cost(
    step: StepTime,
    device: Device,
    tokens: float,
    interruptions: Interruptions | None = None,
    overhead: float = 1.0,
    price_per_hour_usd: float | None = None,
) -> RunCost:
    """What training on ``tokens`` tokens takes on the devices of ``step``.

    ``overhead``: power of the whole over that of the devices. ``price_per_hour_usd``: of one device, in place of the
    catalogue's.

    Raises
    ------
    UnsupportedPlan
        where the time of a step is not known, or failures come faster than the run can restart.
    """
    if step.seconds is None:
        raise UnsupportedPlan.of(
            "The time of a step is not known: " + " ".join(step.notes),
            path="hardware",
            remedy="Name a device with a profile.",
            code="no_step_time",
        )
    steps = math.ceil(tokens / step.tokens)
    work = steps * float(step.seconds)
    written, lost, interval = 0.0, 0.0, None
    if interruptions is not None:
        between = interruptions.device_hours_between_failures * SECONDS_AN_HOUR / step.devices
        wait = interruptions.checkpoint_seconds
        interval = interruptions.checkpoint_interval_seconds or best_interval(wait, between)
        whole = between * math.exp(min(interruptions.restart_seconds / between, EXPONENT))
        # A checkpoint that takes no time is written at every moment: the limit of an interval of nothing.
        segment = math.expm1(min((interval + wait) / between, EXPONENT)) / interval if interval else 1 / between
        total = whole * segment * work
        if total > LONGEST_RUN * work:
            raise UnsupportedPlan.of(
                f"A failure every {between:,.0f} s leaves no time to work.",
                path="device_hours_between_failures",
                remedy="Use fewer devices, or checkpoint and restart faster.",
                code="more_failures_than_work",
            )
        written = wait * work / interval if interval else 0.0
        lost = total - work - written
    hours = step.devices * (work + written + lost) / SECONDS_AN_HOUR
    price = device.price_per_hour_usd if price_per_hour_usd is None else price_per_hour_usd
    notes = []
    if device.power_watts is None:
        notes.append(f"The power of {device.name} is not known.")
    if price is None:
        notes.append(f"No price of {device.name} is known.")
    return RunCost(
        steps=steps,
        work_seconds=work,
        checkpoint_seconds=written,
        failure_seconds=lost,
        checkpoint_interval_seconds=interval,
        devices=step.devices,
        device_hours=hours,
        energy_kwh=None if device.power_watts is None else hours * device.power_watts * overhead / 1e3,
        price_usd=None if price is None else hours * price,
        notes=tuple(notes),
    )
