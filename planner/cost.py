"""A model on devices of one's own, on rented ones, or by the token from somebody else: what a day costs, and where one
becomes cheaper than another.

A machine is ``devices`` of one kind and what they stand in; it writes ``tokens_per_second`` while it is busy, and
demand lets it be busy for ``peak_utilisation`` of its hours. More demand takes another machine, so costs of one's own
and of rented machines rise in steps, and where they cross is searched step by step, not read off a line.

* own: purchase less its residual value, spread over the life; upkeep; the power of waiting all day, and that of work
* rented: every machine's devices by the hour
* by the token: what is written, and what is read for it

All are ``approximated``: sums of assumptions, each of which names its source and can be changed.
"""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from planner.errors import UnsupportedPlan
from planner.hardware import Device, hardware
from planner.paths import ASSETS
from planner.plans import Plan
from planner.quantities import Quantity, ceiling_divide, largest

DAYS_A_YEAR = 365.25
MOST_MACHINES = 4096
"""As far as crossings are searched."""

WayName = Literal["own", "rented", "by the token"]


class _Sourced(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    as_of: datetime.date


class Assumption(_Sourced):
    """The default of a field, and where it is from."""

    value: float


class Purchase(_Sourced):
    """The list price of one device."""

    usd: float = Field(gt=0)


class Api(_Sourced):
    """The price of tokens, in US dollars a million."""

    name: str
    input_usd: float = Field(ge=0)
    output_usd: float = Field(ge=0)


class _Tables(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    assumptions: dict[str, Assumption]
    purchases: dict[str, Purchase]
    apis: dict[str, Api]


@functools.cache
def tables() -> _Tables:
    """``assets/costs.yaml``: assumptions by field, purchases by device, prices of tokens by id."""
    return _Tables.model_validate(yaml.safe_load((ASSETS / "costs.yaml").read_text(encoding="utf-8")))


def _assumed(name: str) -> float:
    return tables().assumptions[name].value


class CostPlan(Plan):
    """What the three ways are compared for. Money in US dollars; tokens are those written, unless said otherwise."""

    tokens_per_day: float = Field(title="Tokens a day", default=10_000_000, gt=0, le=1e15, allow_inf_nan=False)
    tokens_per_second: float = Field(title="Tokens a second, one machine", gt=0, le=1e9, allow_inf_nan=False)
    """What one machine writes while it is busy, all sequences together."""
    input_tokens_per_output_token: float = Field(
        title="Tokens read for one written",
        default_factory=lambda: _assumed("input_tokens_per_output_token"),
        ge=0,
        le=1e6,
        allow_inf_nan=False,
    )
    device: str = "rtx4090"
    devices: int = Field(title="Devices of a machine", default=1, gt=0, le=100_000)
    """Devices of a machine."""
    device_usd: float | None = Field(title="Price of a device, $", default=None, ge=0, allow_inf_nan=False)
    """Purchase of one device; absent: its list price, where its maker named one."""
    host_usd: float = Field(
        title="Rest of a machine, $", default_factory=lambda: _assumed("host_usd"), ge=0, allow_inf_nan=False
    )
    """The rest of a machine."""
    lifetime_years: float = Field(
        title="Life, years", default_factory=lambda: _assumed("lifetime_years"), gt=0, le=50, allow_inf_nan=False
    )
    residual_share: float = Field(
        title="Sold for, share of the price", default_factory=lambda: _assumed("residual_share"), ge=0, lt=1
    )
    """Share of the purchase that it is sold for at the end."""
    operations_share_a_year: float = Field(
        title="Upkeep a year, share of the price",
        default_factory=lambda: _assumed("operations_share_a_year"),
        ge=0,
        le=10,
    )
    """Upkeep, as a share of the purchase."""
    device_watts: float | None = Field(title="Power of a busy device, W", default=None, ge=0, allow_inf_nan=False)
    """Of a busy device; absent: the catalogue's."""
    host_watts: float = Field(
        title="Power of the rest, W", default_factory=lambda: _assumed("host_watts"), ge=0, allow_inf_nan=False
    )
    idle_power_share: float = Field(
        title="Power of an idle device, share", default_factory=lambda: _assumed("idle_power_share"), ge=0, le=1
    )
    """Share of its power that a device takes while it waits."""
    power_usage_effectiveness: float = Field(
        title="Power usage effectiveness",
        default_factory=lambda: _assumed("power_usage_effectiveness"),
        ge=1,
        le=10,
        allow_inf_nan=False,
    )
    """All power of the building over that of its machines."""
    electricity_usd_per_kwh: float = Field(
        title="Electricity, $ a kWh",
        default_factory=lambda: _assumed("electricity_usd_per_kwh"),
        ge=0,
        allow_inf_nan=False,
    )
    peak_utilisation: float = Field(
        title="Share of hours with work", default_factory=lambda: _assumed("peak_utilisation"), gt=0, le=1
    )
    """Share of its hours in which demand can keep a machine busy."""
    rented_usd_per_device_hour: float | None = Field(
        title="Rent of a device, $ an hour", default=None, ge=0, allow_inf_nan=False
    )
    """Absent: the catalogue's price, where one is known."""
    cloud_hours_a_day: float = Field(
        title="Rented hours a day", default_factory=lambda: _assumed("cloud_hours_a_day"), gt=0, le=24
    )
    """Hours of a day in which machines are rented."""
    input_usd_per_million: float | None = Field(
        title="A million tokens read, $", default=None, ge=0, allow_inf_nan=False
    )
    """Of tokens that are read; with ``output_usd_per_million`` absent, nothing is compared with buying tokens."""
    output_usd_per_million: float | None = Field(
        title="A million tokens written, $", default=None, ge=0, allow_inf_nan=False
    )


@dataclass(frozen=True, slots=True)
class CostTerm:
    """A part of a day's cost."""

    name: str
    usd_per_day: float
    formula: str


@dataclass(frozen=True, slots=True)
class Way:
    """One way of having tokens: ``machines(tokens) * usd_per_machine_day + tokens * usd_per_token``."""

    name: WayName
    usd_per_machine_day: float
    usd_per_token: float
    tokens_per_machine_day: float
    """What demand lets one machine write in a day; infinite where there are no machines."""
    fixed_terms: tuple[CostTerm, ...]
    """Of one machine, whether it works or not; they sum to ``usd_per_machine_day``."""
    token_formula: str

    def machines(self, tokens_per_day: Quantity) -> Quantity:
        """Machines that this many tokens a day take: at least one, where there are any."""
        if not self.usd_per_machine_day:
            return 0 * tokens_per_day
        return largest(ceiling_divide(tokens_per_day, self.tokens_per_machine_day), 1)

    def usd_per_day(self, tokens_per_day: Quantity) -> Quantity:
        """A day's cost; reads numbers and arrays."""
        return self.machines(tokens_per_day) * self.usd_per_machine_day + tokens_per_day * self.usd_per_token

    def usd_per_million(self, tokens_per_day: float) -> float:
        """Of a million tokens at this demand."""
        return float(1e6 * self.usd_per_day(tokens_per_day) / tokens_per_day)

    @property
    def least_usd_per_token(self) -> float:
        """What a token costs on full machines: the limit for very much demand."""
        return self.usd_per_machine_day / self.tokens_per_machine_day + self.usd_per_token


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where one way costs no more than another, in tokens a day."""

    cheaper: WayName
    dearer: WayName
    first: float | None
    """The least demand at which it costs no more; ``None``: at none."""
    always: float | None
    """From where on it never costs more again; ``None``: it does, again and again or at last."""


@dataclass(frozen=True, slots=True)
class CostComparison:
    """The ways whose prices are known, and where they cross."""

    plan: CostPlan
    ways: tuple[Way, ...]
    crossings: tuple[Crossing, ...]
    missing: tuple[str, ...]
    """Why a way is not there."""
    status: str = "approximated"

    def cheapest(self) -> Way | None:
        """The way that costs least at the plan's demand."""
        demand = self.plan.tokens_per_day
        return min(self.ways, key=lambda way: float(way.usd_per_day(demand)), default=None)


def purchase_price(plan: CostPlan) -> float | None:
    """Dollars of one device: the plan's, else its list price."""
    if plan.device_usd is not None:
        return plan.device_usd
    known = tables().purchases.get(plan.device)
    return None if known is None else known.usd


def compare_costs(plan: CostPlan) -> CostComparison:
    """What a day costs in each way whose prices are known.

    Raises
    ------
    UnsupportedPlan
        where the device is not in the catalogue, or only one of the two prices of tokens is given.
    """
    device = hardware(plan.device)
    if (plan.input_usd_per_million is None) != (plan.output_usd_per_million is None):
        absent = "input" if plan.input_usd_per_million is None else "output"
        raise UnsupportedPlan.of(
            f"Tokens have two prices, and the one of {absent} is missing.",
            path=f"{absent}_usd_per_million",
            remedy="Give both, or neither.",
            code="one_price",
        )
    missing = []
    ways = []
    for way, reason in (_own(plan, device), _rented(plan, device), _by_the_token(plan)):
        if way is None:
            missing.append(reason)
        else:
            ways.append(way)
    crossings = tuple(crossing(first, second) for first in ways for second in ways if first.name != second.name)
    return CostComparison(plan, tuple(ways), crossings, tuple(missing))


def _kwh_usd(plan: CostPlan, watts: float, hours: float) -> float:
    return watts * hours / 1000 * plan.power_usage_effectiveness * plan.electricity_usd_per_kwh


def _own(plan: CostPlan, device: Device) -> tuple[Way | None, str]:
    price = purchase_price(plan)
    watts = plan.device_watts if plan.device_watts is not None else device.power_watts
    if price is None:
        return None, f"No list price of {device.name} is known: enter device_usd to compare with buying it."
    if watts is None:
        return None, f"The power of {device.name} is not published: enter device_watts to compare with owning it."
    purchase = plan.devices * price + plan.host_usd
    waiting = plan.devices * watts * plan.idle_power_share + plan.host_watts
    terms = (
        CostTerm(
            "wear of the machine",
            purchase * (1 - plan.residual_share) / (plan.lifetime_years * DAYS_A_YEAR),
            "(devices · device_usd + host_usd) · (1 − residual_share) / (lifetime_years · 365.25)",
        ),
        CostTerm(
            "upkeep",
            purchase * plan.operations_share_a_year / DAYS_A_YEAR,
            "(devices · device_usd + host_usd) · operations_share_a_year / 365.25",
        ),
        CostTerm(
            "power while it waits",
            _kwh_usd(plan, waiting, 24),
            "(devices · device_watts · idle_power_share + host_watts) · 24 h · power_usage_effectiveness · price",
        ),
    )
    working = plan.devices * watts * (1 - plan.idle_power_share)
    return (
        Way(
            name="own",
            usd_per_machine_day=sum(term.usd_per_day for term in terms),
            usd_per_token=_kwh_usd(plan, working, 1 / plan.tokens_per_second / 3600),
            tokens_per_machine_day=plan.tokens_per_second * 86400 * plan.peak_utilisation,
            fixed_terms=terms,
            token_formula="devices · device_watts · (1 − idle_power_share) / tokens_per_second · "
            "power_usage_effectiveness · price",
        ),
        "",
    )


def _rented(plan: CostPlan, device: Device) -> tuple[Way | None, str]:
    price = plan.rented_usd_per_device_hour
    if price is None:
        price = device.price_per_hour_usd
    if price is None:
        return None, f"No price an hour of {device.name} is known: enter rented_usd_per_device_hour to compare."
    a_day = plan.devices * price * plan.cloud_hours_a_day
    return (
        Way(
            name="rented",
            usd_per_machine_day=a_day,
            usd_per_token=0.0,
            tokens_per_machine_day=plan.tokens_per_second * 3600 * plan.cloud_hours_a_day * plan.peak_utilisation,
            fixed_terms=(CostTerm("rent", a_day, "devices · rented_usd_per_device_hour · cloud_hours_a_day"),),
            token_formula="",
        ),
        "",
    )


def _by_the_token(plan: CostPlan) -> tuple[Way | None, str]:
    if plan.input_usd_per_million is None or plan.output_usd_per_million is None:
        return None, "No price of tokens is chosen: enter input_usd_per_million and output_usd_per_million to compare."
    read = plan.input_tokens_per_output_token * plan.input_usd_per_million
    return (
        Way(
            name="by the token",
            usd_per_machine_day=0.0,
            usd_per_token=(plan.output_usd_per_million + read) / 1e6,
            tokens_per_machine_day=float("inf"),
            fixed_terms=(),
            token_formula="(output_usd_per_million + input_tokens_per_output_token · input_usd_per_million) / 10⁶",
        ),
        "",
    )


def crossing(cheaper: Way, dearer: Way) -> Crossing:
    """Where ``cheaper`` costs no more than ``dearer``: exact, as both are lines between the steps of either."""
    steps = [
        np.arange(1, MOST_MACHINES + 1) * way.tokens_per_machine_day for way in (cheaper, dearer)
        if np.isfinite(way.tokens_per_machine_day)
    ]  # fmt: skip
    reach = min((float(step[-1]) for step in steps), default=1e15)
    ends = np.unique(np.concatenate([*steps, np.array([reach])]))
    ends = ends[ends <= reach]
    starts = np.concatenate([[0.0], ends[:-1]])
    # Between two steps both are a + b t: the fixed part is that at the end, where machines are counted alike.
    fixed = [way.usd_per_day(ends) - way.usd_per_token * ends for way in (cheaper, dearer)]
    gap, slope = fixed[0] - fixed[1], cheaper.usd_per_token - dearer.usd_per_token
    holds_at_end = gap + slope * ends <= 0
    holds_at_start = gap + slope * starts <= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        meets = np.clip(-gap / slope if slope else starts, starts, ends)
    first = always = None
    somewhere = holds_at_end | holds_at_start
    if somewhere.any():
        at = int(np.argmax(somewhere))
        first = float(starts[at] if holds_at_start[at] else meets[at])
    at_last = cheaper.least_usd_per_token < dearer.least_usd_per_token or (
        cheaper.least_usd_per_token == dearer.least_usd_per_token and bool(holds_at_end[-1])
    )
    if at_last and holds_at_end[-1]:
        broken = np.flatnonzero(~(holds_at_start & holds_at_end))
        if not broken.size:
            always = 0.0
        else:
            last = int(broken[-1])
            always = float(meets[last] if holds_at_end[last] else ends[last])
    return Crossing(cheaper.name, dearer.name, first, always)


def cost_curves(comparison: CostComparison, tokens_per_day: np.ndarray) -> dict[WayName, np.ndarray]:
    """A day's cost of each way over demand, for a plot."""
    demand = np.asarray(tokens_per_day, dtype=np.float64)
    return {way.name: np.asarray(way.usd_per_day(demand), dtype=np.float64) for way in comparison.ways}
