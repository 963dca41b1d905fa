"""Devices: what their makers promise, what is left of the memory in use, and what was measured on this machine.

The catalogue is ``assets/hardware.yaml``, and what a person adds is a file of the same form in the data directory, so
that everyone who uses the same server sees it. "Fits" is said of usable memory, which is what the driver reports (or
what the system lets a process have), not of the number on the box. Peak rates are dense: makers' figures with
structured sparsity are halved. What is not published is absent, and nothing is filled in.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import os
import pathlib
import re
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.components.base import refuse
from planner.errors import UnsupportedPlan
from planner.paths import ASSETS, data_directory
from planner.spec import problems_of

GIB = 2**30
MIB = 2**20

DeviceKind = Literal["gpu", "unified", "cpu", "tpu"]
"""``unified``: a processor and a GPU that share their memory."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Record):
    """One device. Memory in bytes, rates in bytes or FLOPs a second, prices in US dollars an hour."""

    id: str
    name: str
    vendor: str
    kind: DeviceKind
    memory_bytes: int = Field(gt=0)
    """The number on the box, read as GiB, as the devices' own drivers do."""
    usable_memory_bytes: int = Field(gt=0)
    usable_reason: str
    usable_source: str = ""
    memory_bandwidth_bytes_per_second: float | None = Field(default=None, gt=0)
    peak_flops: dict[str, float] = {}
    """Dense peak by type: ``fp32 tf32 bf16 fp16 fp8 int8 fp4``."""
    power_watts: int | None = None
    price_per_hour_usd: float | None = None
    price_source: str = ""
    source: str
    as_of: datetime.date
    status: Literal["catalogue", "measured", "modelled", "own"] = "catalogue"
    """``measured``: from this machine's profile; ``modelled``: only the system's total memory is known; ``own``: a row
    that a person added."""


PeakType = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"]


class DeviceRow(_Record):
    """A row of the catalogue in the units in which makers and drivers write."""

    name: str = Field(min_length=1)
    vendor: str = ""
    kind: DeviceKind = "gpu"
    memory_gib: int = Field(gt=0)
    usable_mib: int = Field(gt=0)
    usable_reason: str = Field(min_length=1)
    usable_source: str = ""
    bandwidth_gb_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    peak_tflops: dict[PeakType, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    power_watts: int | None = Field(default=None, gt=0)
    price_per_hour_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    price_source: str = ""
    source: str = Field(min_length=1)
    as_of: datetime.date

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.usable_mib > 1024 * self.memory_gib:
            refuse(
                "usable_mib",
                f"{self.usable_mib:,} MiB are more than the {self.memory_gib:,} GiB on the box.",
                f"Choose at most {1024 * self.memory_gib:,}.",
                "more_than_there_is",
            )
        if self.price_per_hour_usd is not None and not self.price_source:
            refuse("price_source", "A price without a source cannot be checked.", "Say where it is from.", "no_source")
        return self

    def device(self, identifier: str, status: Literal["catalogue", "own"] = "catalogue") -> Device:
        """The same in bytes and FLOPs a second."""
        bandwidth = self.bandwidth_gb_per_second
        return Device(
            id=identifier,
            name=self.name,
            vendor=self.vendor,
            kind=self.kind,
            memory_bytes=self.memory_gib * GIB,
            usable_memory_bytes=self.usable_mib * MIB,
            usable_reason=self.usable_reason,
            usable_source=self.usable_source,
            memory_bandwidth_bytes_per_second=None if bandwidth is None else bandwidth * 1e9,
            peak_flops={dtype: rate * 1e12 for dtype, rate in self.peak_tflops.items()},
            power_watts=self.power_watts,
            price_per_hour_usd=self.price_per_hour_usd,
            price_source=self.price_source,
            source=self.source,
            as_of=self.as_of,
            status=status,
        )


LEAST_GAIN = 1.3
"""How many times as fast bf16 products must be for bf16 autocast to be chosen."""


class MachineProfile(_Record):
    """What was measured on one machine; the worker writes it as JSON to :func:`profile_path`."""

    device_name: str
    kind: DeviceKind = "cpu"
    memory_bytes: int = Field(gt=0)
    """All memory of the device."""
    usable_memory_bytes: int = Field(gt=0)
    """What a job may fill: free memory when measured, or what the system allows."""
    matmul_flops_per_second: dict[str, float] = {}
    """Measured rate of a large matrix multiplication by type: ``fp32``, ``bf16`` …"""
    memory_bandwidth_bytes_per_second: float | None = Field(default=None, gt=0)
    threads: int = Field(default=1, gt=0)
    versions: dict[str, str] = {}
    measured_at: datetime.datetime

    @property
    def fastest_precision(self) -> Literal["fp32", "bf16_autocast"]:
        """bf16 autocast where products of bf16 matrices are clearly faster, so that the casts around them pay: some
        processors that claim bf16 are slower with it."""
        rates = self.matmul_flops_per_second
        pays = rates.get("bf16", 0.0) > LEAST_GAIN * rates.get("fp32", float("inf"))
        return "bf16_autocast" if pays else "fp32"

    @property
    def why_fastest(self) -> str:
        """The rates behind :attr:`fastest_precision`, in words."""
        rates = [f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in self.matmul_flops_per_second.items()]
        return f"matrices are multiplied here at {' and '.join(rates)}"

    def device(self) -> Device:
        """The machine as a device of the catalogue's form, with measured rates in place of promised ones."""
        return Device(
            id="here",
            name=f"This machine ({self.device_name})",
            vendor="",
            kind=self.kind,
            memory_bytes=self.memory_bytes,
            usable_memory_bytes=self.usable_memory_bytes,
            usable_reason="free when the machine was measured",
            memory_bandwidth_bytes_per_second=self.memory_bandwidth_bytes_per_second,
            peak_flops=dict(self.matmul_flops_per_second),
            source="measured on this machine",
            as_of=self.measured_at.date(),
            status="measured",
        )


def profile_path() -> pathlib.Path:
    """The file that holds this machine's profile."""
    return data_directory() / "profile.json"


def machine_profile(path: pathlib.Path | None = None) -> MachineProfile | None:
    """This machine's profile, or ``None`` where it has not been measured yet.

    Raises
    ------
    UnsupportedPlan
        where the file is there but cannot be read as a profile.
    """
    file = path or profile_path()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return MachineProfile.model_validate_json(text)
    except ValidationError as error:
        first = problems_of(error)[0]
        raise UnsupportedPlan.of(
            f"The profile of this machine cannot be read: {first}",
            path="hardware",
            remedy=f"Delete {file} and measure the machine again.",
            code="unreadable_profile",
        ) from error


@functools.cache
def _catalogue() -> dict[str, Device]:
    rows = yaml.safe_load((ASSETS / "hardware.yaml").read_text(encoding="utf-8"))
    return {identifier: DeviceRow.model_validate(row).device(identifier) for identifier, row in rows.items()}


def own_devices_path() -> pathlib.Path:
    """The file of the rows that people added."""
    return data_directory() / "hardware.yaml"


def own_rows() -> dict[str, DeviceRow]:
    """The rows that people added, by id.

    Raises
    ------
    UnsupportedPlan
        where the file is there but a row of it cannot be read.
    """
    file = own_devices_path()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        rows = yaml.safe_load(text) or {}
        if not isinstance(rows, dict):
            raise yaml.YAMLError("it has no rows by id")
        return {str(identifier): _row(str(identifier), row) for identifier, row in rows.items()}
    except (yaml.YAMLError, UnsupportedPlan) as error:
        raise UnsupportedPlan.of(
            f"The devices that were added cannot be read: {error}",
            path="hardware",
            remedy=f"Mend {file}, or delete it.",
            code="unreadable_devices",
        ) from error


def _row(identifier: str, data: Any) -> DeviceRow:
    try:
        return DeviceRow.model_validate(data)
    except ValidationError as error:
        raise UnsupportedPlan(problems_of(error)) from error


def add_device(identifier: str, data: dict[str, Any]) -> Device:
    """Add a row, or replace one that was added before; ``data`` has the fields of :class:`DeviceRow`.

    Raises
    ------
    UnsupportedPlan
        naming each field that is wrong, or ``id`` where the id is not one or is the catalogue's own.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{1,39}", identifier) or identifier == "here":
        raise UnsupportedPlan.of(
            f"{identifier!r} cannot name a device.",
            path="id",
            remedy="Choose 2 to 40 small letters, digits and underscores, the first a letter, and not 'here'.",
            code="not_an_id",
        )
    if identifier in _catalogue():
        raise UnsupportedPlan.of(
            f"{identifier} is a device of the catalogue, whose rows keep their sources.",
            path="id",
            remedy=f"Choose another, for example my_{identifier}.",
            code="id_taken",
        )
    row = _row(identifier, data)
    _write_rows({**own_rows(), identifier: row})
    return row.device(identifier, "own")


def remove_device(identifier: str) -> None:
    """Remove a row that was added; nothing where there is none."""
    _write_rows({name: row for name, row in own_rows().items() if name != identifier})


def _write_rows(rows: dict[str, DeviceRow]) -> None:
    path = own_devices_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    plain = {identifier: row.model_dump(mode="json", exclude_defaults=True) for identifier, row in rows.items()}
    temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(path)


def _devices() -> dict[str, Device]:
    """The catalogue and what was added to it; an id of a newer catalogue goes before an added row of that id."""
    return {name: row.device(name, "own") for name, row in own_rows().items()} | _catalogue()


def hardware_catalogue(with_own: bool = True) -> tuple[Device, ...]:
    """All devices of the catalogue and, ``with_own``, those that people added, by usable memory."""
    devices = _devices() if with_own else _catalogue()
    return tuple(sorted(devices.values(), key=lambda device: (device.usable_memory_bytes, device.id)))


def hardware(name: str) -> Device:
    """A device by its id; ``here`` is this machine.

    Unmeasured, ``here`` has the system's total memory alone and ``status`` ``modelled``: no rates are guessed.
    """
    if name == "here":
        profile = machine_profile()
        return profile.device() if profile is not None else _unmeasured()
    if name in _catalogue():  # before the file of added rows is read
        return _catalogue()[name]
    devices = _devices()
    if name in devices:
        return devices[name]
    near = difflib.get_close_matches(name.lower(), devices, n=3, cutoff=0.4)
    raise UnsupportedPlan.of(
        f"No device {name!r} is in the catalogue.",
        path="hardware",
        remedy=f"Choose {' or '.join(near)}." if near else f"Choose one of {', '.join(sorted(devices))} or here.",
        code="unknown_hardware",
    )


def _unmeasured() -> Device:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError) as error:
        raise UnsupportedPlan.of(
            "This machine has not been measured, and its system does not tell how much memory it has.",
            path="hardware",
            remedy="Start a worker: it measures the machine. Or choose a device of the catalogue.",
            code="machine_not_measured",
        ) from error
    return Device(
        id="here",
        name="This machine (not measured yet)",
        vendor="",
        kind="cpu",
        memory_bytes=total,
        usable_memory_bytes=total,
        usable_reason="all of the system's memory: what else runs here is not known before a worker measures it",
        source="os.sysconf",
        as_of=datetime.datetime.now(datetime.UTC).date(),
        status="modelled",
    )
