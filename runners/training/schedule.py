"""How fast a prototype learns: the rule for the peak rate, the warm-up and the decay."""

from __future__ import annotations

import math

BASE_RATE = 3e-3
BASE_WIDTH = 256
LEAST_SHARE = 0.1
RULE = (
    f"peak {BASE_RATE:g} at width {BASE_WIDTH}, in proportion to 1/width (Yang et al. 2022, arXiv:2203.03466), "
    "at most twice that"
)


def peak_rate(hidden_size: int) -> float:
    """The peak learning rate of AdamW for a model of that width, at most twice the base."""
    return min(2 * BASE_RATE, BASE_RATE * BASE_WIDTH / hidden_size)


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up over ``warmup_steps``, then a cosine down to a tenth at the last step. Steps count from 0."""
    warmup = min(warmup_steps, max(0, steps - 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (LEAST_SHARE + (1 - LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
