"""The catalogue's rows, and this machine with and without a profile."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest

from planner import MachineProfile, UnsupportedPlan, hardware, hardware_catalogue
from planner.hardware import GIB, add_device, machine_profile, own_devices_path, profile_path, remove_device

NAMED = [
    "t4", "a10", "l4", "l40s", "a100_40gb", "a100", "h100", "h200", "b200", "b300", "gb200", "gb300",
    "rtx3090", "rtx4090", "rtx5090", "mi300x", "mi325x", "mi355x", "m2_ultra", "m3_max", "m4_max",
    "tpu_v4", "tpu_v5e", "tpu_v5p", "tpu_v6e", "tpu_v7", "laptop_16gb", "cpu_server",
    "v100", "a30", "a40", "a100_pcie", "h100_pcie", "h100_nvl", "gh200", "l40", "rtx_a6000", "rtx_6000_ada",
    "rtx_pro_6000", "rtx3060", "rtx3080", "rtx4080", "rtx5080", "dgx_spark", "mi210", "mi250x", "mi300a", "mi350x",
    "gaudi2", "gaudi3", "trainium1", "trainium2", "m1_max", "m3_ultra", "ryzen_7950x", "xeon_8480", "epyc_9755",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_the_named_devices_are_there(name: str) -> None:
    assert hardware(name).id == name


def test_the_catalogue_spans_laptop_to_b200() -> None:
    devices = hardware_catalogue()
    assert len(devices) >= 60
    sizes = [device.usable_memory_bytes for device in devices]
    assert sizes == sorted(sizes)
    assert devices[0].memory_bytes == 10 * GIB
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
        # Half of the A30's sparse 330 TFLOP/s; the RTX PRO 6000's 4,030 are sparse and fp4: an eighth in bf16, dense.
        ("a30", 165e12, 933e9),
        ("rtx_pro_6000", 4030.4e12 / 8, 1792e9),
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


@pytest.mark.parametrize(
    "rates, expected",
    [
        ({"fp32": 1.74e11, "bf16": 9.4e11}, "bf16_autocast"),
        ({"fp32": 3.0e11, "bf16": 6.0e10}, "fp32"),  # a processor that claims bf16 all the same
        ({"fp32": 2.0e11, "bf16": 2.5e11}, "fp32"),  # the casts take more than that
        ({"fp32": 2.0e11}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_the_fastest_precision_is_chosen_by_measured_rates(rates: dict[str, float], expected: str) -> None:
    assert PROFILE.model_copy(update={"matmul_flops_per_second": rates}).fastest_precision == expected


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


ROW = {
    "name": "Two of a kind",
    "memory_gib": 48,
    "usable_mib": 48_000,
    "usable_reason": "as its driver says",
    "bandwidth_gb_per_second": 1000.0,
    "peak_tflops": {"bf16": 100.0},
    "source": "the shop's offer",
    "as_of": "2026-11-01",
}


def test_an_added_device_is_as_good_as_one_of_the_catalogue(data_directory: pathlib.Path) -> None:
    before = len(hardware_catalogue())
    add_device("my_card", ROW)
    found = hardware("my_card")
    assert (found.status, found.memory_bytes, found.usable_memory_bytes) == ("own", 48 * GIB, 48_000 * 2**20)
    assert found.peak_flops == {"bf16": 1e14}
    assert found in hardware_catalogue()
    assert len(hardware_catalogue()) == before + 1
    add_device("my_card", {**ROW, "name": "Another"})
    assert hardware("my_card").name == "Another"
    remove_device("my_card")
    with pytest.raises(UnsupportedPlan):
        hardware("my_card")


@pytest.mark.parametrize(
    "identifier, changed, path",
    [
        ("H 100", {}, "id"),
        ("here", {}, "id"),
        ("h100", {}, "id"),
        ("my_card", {"memory_gib": 0}, "memory_gib"),
        ("my_card", {"usable_mib": 50_000}, "usable_mib"),
        ("my_card", {"peak_tflops": {"bf17": 1}}, "peak_tflops.bf17.[key]"),
        ("my_card", {"peak_tflops": {"bf16": -1}}, "peak_tflops.bf16"),
        ("my_card", {"bandwidth_gb_per_second": float("nan")}, "bandwidth_gb_per_second"),
        ("my_card", {"price_per_hour_usd": 2.0}, "price_source"),
        ("my_card", {"source": ""}, "source"),
        ("my_card", {"as_of": "some day"}, "as_of"),
        ("my_card", {"colour": "green"}, "colour"),
    ],
)
def test_a_wrong_row_is_refused_at_its_field_and_nothing_is_written(
    data_directory: pathlib.Path, identifier: str, changed: dict[str, object], path: str
) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        add_device(identifier, {**ROW, **changed})
    assert caught.value.path == path
    assert caught.value.remedy
    assert not own_devices_path().exists()


@pytest.mark.parametrize("text", ["- 1", "my_card: 3", "my_card: {name: x}", "a: [", "5"])
def test_a_file_of_devices_that_cannot_be_read_is_an_error_with_a_remedy(
    data_directory: pathlib.Path, text: str
) -> None:
    own_devices_path().write_text(text, encoding="utf-8")
    assert hardware("h100").id == "h100"
    with pytest.raises(UnsupportedPlan) as caught:
        hardware_catalogue()
    assert caught.value.code == "unreadable_devices"
    assert str(own_devices_path()) in caught.value.remedy
