"""Balance of routers in training: losses beside the model's own, biases moved after a step, and the load by expert.

Nothing is recorded, and nothing costs anything, in steps where none of it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runners.models.moe import MoE, Routing, load_balancing_loss, recorded_routing, router_z_loss


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What is done beside recording; zeros do nothing."""

    auxiliary_loss: float = 0.0
    """Factor on the load-balancing loss, the mean over the layers that route."""
    z_loss: float = 0.0
    """Factor on the z-loss, the mean over those layers."""
    bias_update_rate: float = 0.0
    """By how much a step moves the bias that steers the choice of an expert."""

    @property
    def is_needed(self) -> bool:
        """Whether every step looks at what routers decide."""
        return bool(self.auxiliary_loss or self.z_loss or self.bias_update_rate)


UNBALANCED = RouterSettings()


@dataclass(frozen=True, slots=True)
class RouterStep:
    """What the routers of a model did in one training step."""

    auxiliary_loss: float
    """Mean over the layers, before its factor; ``num_experts_per_tok`` where the load is even."""
    z_loss: float
    """Mean over the layers, before its factor."""
    load: Mapping[str, tuple[float, ...]]
    """By the name of each MoE, the share of the step's tokens that went to each expert."""
    largest_load: float
    """The most that an expert of any layer took, over its even share."""


def recorded(
    model: nn.Module, settings: RouterSettings, is_asked_for: bool
) -> contextlib.AbstractContextManager[dict[str, Routing]]:
    """The routing of the forward pass within, where somebody wants to know; else nothing."""
    if settings.is_needed or is_asked_for:
        return recorded_routing(model)
    return contextlib.nullcontext({})


def router_loss(routing: Mapping[str, Routing], settings: RouterSettings) -> Tensor | None:
    """What is added to the loss that is trained on; ``None`` where no factor is set."""
    parts = [
        factor * torch.stack([loss(one) for one in routing.values()]).mean()
        for factor, loss in ((settings.auxiliary_loss, load_balancing_loss), (settings.z_loss, router_z_loss))
        if factor
    ]
    return sum(parts[1:], parts[0]) if parts else None


@torch.no_grad()
def balance(model: nn.Module, routing: Mapping[str, Routing], rate: float) -> None:
    """Raise the bias of experts that took less than their even share by ``rate``, and lower it of those with more
    (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""
    for name, one in routing.items():
        mixer = model.get_submodule(name)
        assert isinstance(mixer, MoE)
        if one.component.score_correction_bias:
            load = one.load
            bias = mixer.router.score_correction_bias
            bias.add_(torch.sign(load.mean() - load).to(bias.dtype), alpha=rate)


@torch.no_grad()
def summary(routing: Mapping[str, Routing]) -> RouterStep | None:
    """The step as numbers; ``None`` where nothing was recorded."""
    if not routing:
        return None
    loads = {name: one.load.tolist() for name, one in routing.items()}
    return RouterStep(
        torch.stack([load_balancing_loss(one) for one in routing.values()]).mean().item(),
        torch.stack([router_z_loss(one) for one in routing.values()]).mean().item(),
        {name: tuple(load) for name, load in loads.items()},
        max(max(load) * len(load) / sum(load) for load in loads.values()),
    )
