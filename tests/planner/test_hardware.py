"""The catalogue's rows, and this machine with and without a profile."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest

from planner import MachineProfile, UnsupportedPlan, hardware, hardware_catalogue
from planner.hardware import GIB, machine_profile, profile_path

NAMED = [
    "t4", "a10", "l4", "l40s", "a100_40gb", "a100", "h100", "h200", "b200", "b300", "gb200", "gb300",
    "rtx3090", "rtx4090", "rtx5090", "mi300x", "mi325x", "mi355x", "m2_ultra", "m3_max", "m4_max",
    "tpu_v5e", "tpu_v5p", "tpu_v6e", "laptop_16gb", "cpu_server",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_the_named_devices_are_there(name: str) -> None:
    assert hardware(name).id == name


def test_the_catalogue_spans_laptop_to_b200() -> None:
    devices = hardware_catalogue()
    assert len(devices) >= 16
    sizes = [device.usable_memory_bytes for device in devices]
    assert sizes == sorted(sizes)
    assert devices[0].memory_bytes == 16 * GIB
    assert {"gpu", "unified", "cpu"} <= {device.kind for device in devices}


@pytest.mark.parametrize("device", hardware_catalogue(), ids=lambda device: device.id)
def test_every_row_says_where_it_comes_from(device) -> None:  # type: ignore[no-untyped-def]
    assert device.source.startswith("https://")
    assert device.as_of <= datetime.date(2026, 12, 31)
    assert device.usable_reason
    assert (device.price_per_hour_usd is None) == (not device.price_source)
    assert 0.5 * device.memory_bytes < device.usable_memory_bytes <= device.memory_bytes


@pytest.mark.parametrize(
    "name, bf16, bandwidth",
    [
        # From the makers' data sheets, dense: the A100's 312, the H100's 1,979 sparse halved, the MI300X's 1,307.
        ("a100", 312e12, 2039e9),
        ("h100", 989.4e12, 3350e9),
        ("mi300x", 1307.4e12, 5300e9),
    ],
)
def test_peaks_are_dense(name: str, bf16: float, bandwidth: float) -> None:
    device = hardware(name)
    assert device.peak_flops["bf16"] == pytest.approx(bf16)
    assert device.memory_bandwidth_bytes_per_second == pytest.approx(bandwidth)


def test_an_unknown_device_is_refused_with_what_was_meant() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        hardware("H100s")
    assert caught.value.path == "hardware"
    assert "h100" in caught.value.remedy


PROFILE = MachineProfile(
    device_name="two cores",
    memory_bytes=8 * GIB,
    usable_memory_bytes=6 * GIB,
    matmul_flops_per_second={"fp32": 1.2e11},
    threads=2,
    versions={"torch": "2.13.0"},
    measured_at=datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC),
)


@pytest.fixture
def data_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    return tmp_path


def test_unmeasured_this_machine_has_its_memory_alone(data_directory: pathlib.Path) -> None:
    assert machine_profile() is None
    here = hardware("here")
    assert here.status == "modelled"
    assert here.memory_bytes > GIB
    assert here.peak_flops == {}
    assert here.memory_bandwidth_bytes_per_second is None


def test_measured_this_machine_has_what_was_measured(data_directory: pathlib.Path) -> None:
    profile_path().write_text(PROFILE.model_dump_json(), encoding="utf-8")
    assert machine_profile() == PROFILE
    here = hardware("here")
    assert here.status == "measured"
    assert here.usable_memory_bytes == 6 * GIB
    assert here.peak_flops == {"fp32": 1.2e11}
    assert here.as_of == datetime.date(2026, 11, 1)


@pytest.mark.parametrize("text", ["{", json.dumps({"device_name": "x"}), "[]"])
def test_an_unreadable_profile_is_an_error_with_a_remedy(data_directory: pathlib.Path, text: str) -> None:
    profile_path().write_text(text, encoding="utf-8")
    with pytest.raises(UnsupportedPlan) as caught:
        hardware("here")
    assert caught.value.code == "unreadable_profile"
    assert "measure" in caught.value.remedy
