"""All kernels. A new one is its file and one line here."""

from __future__ import annotations

from runners.kernels import causal_attention, rms_norm, swiglu
from runners.kernels.base import Kernel

KERNELS: tuple[Kernel, ...] = (rms_norm.KERNEL, swiglu.KERNEL, causal_attention.KERNEL)
