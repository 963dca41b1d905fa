"""What an estimate of a step's time says."""

from __future__ import annotations

from dataclasses import dataclass

from planner.quantities import Quantity
from planner.units import seconds_text

NO_DEVICE = "No device is named: set hardware in the plan."


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of an optimizer step, and of what; all ``None`` or empty where it is not known, with the reason."""

    seconds: Quantity | None
    low_seconds: Quantity | None
    high_seconds: Quantity | None
    """Four of five measured runs lay between these shares of their predictions."""
    parts: dict[str, Quantity]
    """The slowest stage's work by part, and what a step waits for beside it; the parts sum to ``seconds``."""
    ideal_seconds: Quantity | None
    """The needed FLOPs at the devices' promised peak: no step is faster."""
    tokens: Quantity
    devices: int
    model_flops: Quantity
    """FLOPs that the step needs: three forward passes, attention without what its masks leave out."""
    hardware_flops: Quantity
    """With what is computed again in the backward pass."""
    peak_flops: float | None
    """FLOPs a second of one device, of bf16 unless the plan is in fp32: what utilizations are of."""
    profile: str | None
    """The profile of efficiencies that was used."""
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The time in a sentence, or why there is none."""
        if self.seconds is None or self.low_seconds is None or self.high_seconds is None:
            return " ".join(self.notes)
        share = self.model_flops_utilization
        used = "" if share is None else f", {100 * share:.0f}% of the peak"
        said = (
            f"{seconds_text(self.seconds)} a step ({seconds_text(self.low_seconds)} to "
            f"{seconds_text(self.high_seconds)}){used}: modelled, with what runs on {self.profile} reach."
        )
        return " ".join([said, *self.notes])

    @property
    def tokens_per_second(self) -> Quantity | None:
        """Of all devices together."""
        return None if self.seconds is None else self.tokens / self.seconds

    @property
    def model_flops_utilization(self) -> Quantity | None:
        """Needed FLOPs over those that the devices' peak would allow."""
        return self._share(self.model_flops)

    @property
    def hardware_flops_utilization(self) -> Quantity | None:
        """The same with what is computed again."""
        return self._share(self.hardware_flops)

    def _share(self, flops: Quantity) -> Quantity | None:
        if self.seconds is None or self.peak_flops is None:
            return None
        return flops / (self.peak_flops * self.devices * self.seconds)


def unknown(tokens: Quantity, devices: int, model_flops: Quantity, hardware_flops: Quantity, *notes: str) -> StepTime:
    """No time, for a reason."""
    return StepTime(None, None, None, {}, None, tokens, devices, model_flops, hardware_flops, None, None, tuple(notes))
