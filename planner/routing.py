"""How routers are balanced while a prototype trains: what a design must have for each setting of the plan."""

from __future__ import annotations

from planner.components import MoE
from planner.errors import UnsupportedPlan
from planner.plans import PrototypePlan
from planner.spec import ArchitectureSpec

SETTINGS = ("router_auxiliary_loss", "router_z_loss", "router_bias_update_rate")
"""Fields of the plan that have an effect on routers alone; 0 leaves each of them out."""


def check_routing(spec: ArchitectureSpec, plan: PrototypePlan) -> None:
    """Refuse settings that would have no effect on the design.

    Raises
    ------
    UnsupportedPlan
        naming the field, where there are no routers to balance, or no biases to balance them by.
    """
    routed = [layer.channel_mixer for _, layer in spec.iterate_layers() if isinstance(layer.channel_mixer, MoE)]
    for field in SETTINGS:
        if getattr(plan, field) and not routed:
            raise UnsupportedPlan.of(
                "The design has no mixture of experts, and so no router to balance.",
                path=field,
                remedy="Set it to 0, or give a layer a channel mixer of kind moe.",
                code="no_router",
            )
    if plan.router_bias_update_rate and not any(mixer.score_correction_bias for mixer in routed):
        raise UnsupportedPlan.of(
            "No router of the design has a correction of its scores that could be moved.",
            path="router_bias_update_rate",
            remedy="Set score_correction_bias to true in a mixture of experts, or this to 0.",
            code="no_score_correction",
        )
