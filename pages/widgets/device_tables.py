"""The catalogue of devices as a table, and the form of a row of one's own."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, get_args

import streamlit as st

from pages.widgets import chrome, figures
from planner import Device
from planner.hardware import DeviceKind, DeviceRow, PeakType

SHOWN_PEAKS = ("fp32", "bf16", "fp8", "fp4")
_MARKS = {"catalogue": "", "own": "added here", "measured": "measured", "modelled": "not measured"}


def devices_html(devices: Sequence[Device]) -> str:
    """HTML of a table with one row a device; sources are links."""
    heads = (
        "Device",
        "Box",
        "Usable",
        "Bandwidth",
        *(f"{name} peak" for name in SHOWN_PEAKS),
        "Power",
        "Rent",
        "Source",
    )
    head = "".join(f"<th>{chrome.escape(name)}</th>" for name in heads)
    return (
        f'<div class="pl-scroll"><table class="pl-table"><tr>{head}</tr>'
        f"{''.join(_row(device) for device in devices)}</table></div>"
    )


def _cell(text: str, hover: str = "") -> str:
    title = f' title="{chrome.escape(hover)}"' if hover else ""
    return f'<td class="fig"{title}>{chrome.escape(text)}</td>'


def _row(device: Device) -> str:
    usable = figures.memory(device.usable_memory_bytes)
    bandwidth = device.memory_bandwidth_bytes_per_second
    where = f"{device.usable_reason}" + (f" ({device.usable_source})" if device.usable_source else "")
    price = device.price_per_hour_usd
    cells = [
        f'<td title="{chrome.escape(device.id)}">{chrome.escape(device.name)} '
        f'<small class="pl-soft">{chrome.escape(_MARKS[device.status])}</small></td>',
        _cell(str(figures.memory(device.memory_bytes)), figures.memory(device.memory_bytes).exact),
        _cell(str(usable), f"{usable.exact}: {where}"),
        _cell("–" if bandwidth is None else f"{figures.disk(bandwidth)}/s"),
        *(_cell(_rate(device.peak_flops.get(name))) for name in SHOWN_PEAKS),
        _cell("–" if device.power_watts is None else f"{device.power_watts:,} W"),
        _cell("–" if price is None else f"${price:,.2f}/h", device.price_source),
        f'<td class="pl-once">{_source(device)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _rate(flops_per_second: float | None) -> str:
    return "–" if flops_per_second is None else f"{figures.flops(flops_per_second)}/s"


def _source(device: Device) -> str:
    when = f"{device.as_of:%Y-%m-%d}"
    if device.source.startswith("https://"):
        return f'<a href="{chrome.escape(device.source)}" target="_blank" rel="noopener">{when}</a>'
    return f'<span title="{chrome.escape(device.source)}">{when}</span>'


def row_fields(row_class: type[DeviceRow], key: str) -> dict[str, Any]:
    """Widgets for a row of one's own; what they hold, as plain data with its ``id``."""
    first = st.columns(4, gap="small")
    data: dict[str, Any] = {
        "id": first[0].text_input("Id", key=f"{key}-id", placeholder="my_card", help="The name that plans use."),
        "name": first[1].text_input("Name", key=f"{key}-name"),
        "vendor": first[2].text_input("Maker", key=f"{key}-vendor"),
        "kind": first[3].selectbox("Kind", list(get_args(DeviceKind)), key=f"{key}-kind"),
    }
    second = st.columns(4, gap="small")
    for place, (name, label) in zip(
        second,
        (
            ("memory_gib", "Memory on the box, GiB"),
            ("usable_mib", "Usable, MiB"),
            ("bandwidth_gb_per_second", "Bandwidth, GB/s"),
            ("power_watts", "Power, W"),
        ),
        strict=True,
    ):
        _number(data, name, place.text_input(label, key=f"{key}-{name}"))
    peaks: dict[str, Any] = {}
    third = st.columns(len(get_args(PeakType)), gap="small")
    for place, peak in zip(third, get_args(PeakType), strict=True):
        _number(peaks, peak, place.text_input(f"{peak}, TFLOP/s", key=f"{key}-peak-{peak}"))
    if peaks:
        data["peak_tflops"] = peaks
    fourth = st.columns([1, 1.5, 1.5, 1.5], gap="small")
    _number(data, "price_per_hour_usd", fourth[0].text_input("Rent, $ an hour", key=f"{key}-price"))
    data["price_source"] = fourth[1].text_input("Source of the rent", key=f"{key}-price-source")
    data["usable_reason"] = fourth[2].text_input("How the usable memory is known", key=f"{key}-reason")
    data["source"] = fourth[3].text_input("Source of the rest", key=f"{key}-source")
    data["as_of"] = datetime.datetime.now(datetime.UTC).date()
    return data


def _number(data: dict[str, Any], name: str, text: str) -> None:
    """What was typed, if anything was: the row itself says what is wrong with it."""
    if text.strip():
        data[name] = text.strip().replace(",", "")
