"""Layers that are computed again in the backward pass, so that only their inputs are kept."""

from __future__ import annotations

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint

from runners.models import Decoder


def recompute_layers(model: Decoder) -> None:
    """Let every layer of ``model`` keep its input alone, and compute the rest again when its gradient is asked for.

    Raises ``ValueError`` where layers hand keys and values on to later ones: those would be computed apart from them.
    """
    if model.shares_key_values:
        raise ValueError("layers that share keys and values cannot be computed again one by one")
    layers: Any = model.layers
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
