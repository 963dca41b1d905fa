"""Numbers as people read them."""

import pytest

from planner.units import bytes_text, count_text, flops_text, money_text, seconds_text


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1 K"),
        (7_241_732_096, "7.24 B"),
        (671_026_404_352, "671 B"),
        (14.8e12, "14.8 T"),
        (999_600, "1 M"),
        (999_400, "999 K"),
        (-1500, "-1.5 K"),
        (0.25, "0.25"),
    ],
)
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    "size, text, disk",
    [
        (512, "512 B", "512 B"),
        (1536, "1.5 KiB", "1.54 kB"),
        (14.5 * 2**30, "14.5 GiB", "15.6 GB"),
        (80 * 2**30, "80 GiB", "85.9 GB"),
        (2**40, "1 TiB", "1.1 TB"),
    ],
)
def test_memory_is_binary_and_disk_decimal(size: float, text: str, disk: str) -> None:
    assert bytes_text(size) == text
    assert bytes_text(size, disk=True) == disk


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (3e-9, "3 ns"),
        (2.5e-5, "25 µs"),
        (0.34, "340 ms"),
        (90, "1.5 min"),
        (21 * 3600, "21 h"),
        (12 * 86400, "12 days"),
        (3.2 * 365.25 * 86400, "3.2 years"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_flops_and_money() -> None:
    assert flops_text(13.9e9) == "13.9 GFLOPs"
    assert flops_text(6.21e21) == "6.21 ZFLOPs"
    assert flops_text(5) == "5 FLOPs"
    assert [money_text(value) for value in (0.42, 340, 20_750, 1.2e6, -3)] == [
        "$0.42", "$340", "$20,750", "$1.2 M", "-$3.00",
    ]  # fmt: skip
