"""Profiles that were calibrated without one source, or one device (``assets/efficiencies_left_out.yaml``)."""

from __future__ import annotations

import yaml

from planner.efficiency import SHARES, Efficiency, Profile, profiles
from planner.paths import ASSETS

FILE = ASSETS / "efficiencies_left_out.yaml"
LeftOut = dict[str, dict[str, Profile]]
"""By the source or the device that was left out, and the profile's id."""
HEADER = """\
# The numbers of assets/efficiencies.yaml, calibrated without the rows of one source or of one device. Written by
# `python -m scripts.calibrate`; docs/accuracy.md says how far they are from the rows that were left out.

"""


def write_left_out(found: LeftOut) -> None:
    """Write the file, a line a profile."""
    lines = []
    for without, made in found.items():
        lines.append(f"{without}:")
        for identifier, profile in made.items():
            numbers = {name: getattr(profile, name).value for name in SHARES if getattr(profile, name) is not None}
            inside = ", ".join(f"{name}: {value}" for name, value in numbers.items())
            lines.append(f"  {identifier}: {{{inside}, launch_seconds: {profile.launch_seconds:.2e}}}")
    FILE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


def read_left_out() -> LeftOut:
    """The profiles of the file."""
    rows = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {
        without: {identifier: _with(profiles()[identifier], numbers) for identifier, numbers in made.items()}
        for without, made in rows.items()
    }


def _with(profile: Profile, numbers: dict[str, float]) -> Profile:
    update: dict[str, object] = {
        name: Efficiency(value=value, low=value, high=value) if name in SHARES else value
        for name, value in numbers.items()
    }
    return profile.model_copy(update=update)
