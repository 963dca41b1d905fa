"""Readings of the process and the device while a job runs. What is not there is absent, never zero."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the process and its GPU."""

    process_bytes: int
    gpu_used_bytes: int | None
    gpu_utilization: float | None
    """Share of the last moment in which a kernel ran, from 0 to 1."""


class Telemetry:
    """Reads this process, and the first NVIDIA GPU where NVML finds one."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._gpu = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            self.note = ""
        except ImportError:
            self.note = "no GPU readings: nvidia-ml-py is not installed"
        except pynvml.NVMLError as error:
            self.note = f"no GPU readings: {error}"

    def read(self) -> Reading:
        """The process's resident memory, and the GPU's where there is one."""
        resident = self._process.memory_info().rss
        if self._gpu is None:
            return Reading(resident, None, None)
        import pynvml

        used = utilization = None
        with contextlib.suppress(pynvml.NVMLError):
            used = int(pynvml.nvmlDeviceGetMemoryInfo(self._gpu).used)
            utilization = pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100
        return Reading(resident, used, utilization)
