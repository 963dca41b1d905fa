"""Mixture of experts, the twin of :mod:`planner.components.moe`: dropless top-k routing, experts as one product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, Kernels, in_compute_type
from runners.models.expert_matmul import expert_matmul
from runners.models.mlp import FeedForward, activate, gated


class Router(nn.Module):
    """Scores of the experts: weight (num_experts, hidden_size), and the buffer that steers the choice."""

    def __init__(self, component: components.MoE, hidden_size: int) -> None:
        super().__init__()
        self.component = component
        self.weight = nn.Parameter(torch.empty(component.num_experts, hidden_size))
        if component.score_correction_bias:
            self.score_correction_bias: Tensor
            self.register_buffer("score_correction_bias", torch.zeros(component.num_experts))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts and their weights, both (rows, num_experts_per_tok)."""
        component = self.component
        logits = torch.nn.functional.linear(rows, self.weight)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        scores = wide.softmax(-1) if component.router_scores == "softmax" else wide.sigmoid()
        steering = scores.detach()
        if component.score_correction_bias:
            steering = steering + self.score_correction_bias
        if component.num_expert_groups > 1:
            steering = self._in_chosen_groups(steering)
        chosen = steering.topk(component.num_experts_per_tok, -1).indices
        weights = scores.gather(-1, chosen)
        if component.normalize_weights:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * component.routed_scaling_factor

    def _in_chosen_groups(self, steering: Tensor) -> Tensor:
        """Rule out the experts of groups that are not chosen; a group's score is the sum of its two best."""
        component = self.component
        grouped = steering.view(steering.shape[0], component.num_expert_groups, -1)
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        groups = best.topk(component.groups_per_tok, -1).indices
        allowed = torch.zeros_like(best, dtype=torch.bool).scatter(1, groups, True)
        return grouped.masked_fill(~allowed[..., None], float("-inf")).flatten(1)


class Experts(nn.Module):
    """The matrices of all experts, stacked: (num_experts, outputs, inputs)."""

    def __init__(self, component: components.MoE, hidden_size: int, kernels: Kernels) -> None:
        super().__init__()
        self.component = component
        self.kernels = kernels
        width, count = component.intermediate_size, component.num_experts
        if component.gated:
            self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden_size))
        else:
            self.up_proj = nn.Parameter(torch.empty(count, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(count, hidden_size, width))

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Rows (rows, hidden_size) sorted by expert through each one's expert."""
        if self.component.gated:
            gate, up = expert_matmul(rows, self.gate_up_proj.transpose(1, 2), ends).chunk(2, -1)
            mixed = gated(gate, up, self.component.activation, self.kernels)
        else:
            mixed = activate(expert_matmul(rows, self.up_proj.transpose(1, 2), ends), self.component.activation)
        return expert_matmul(mixed, self.down_proj.transpose(1, 2), ends)


class MoE(nn.Module):
    """Routed experts and an optional shared one over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.MoE, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        hidden = context.hidden_size
        self.router = Router(component, hidden)
        self.experts = Experts(component, hidden, context.kernels)
        if component.shared_intermediate_size is not None:
            width = component.shared_intermediate_size
            self.shared_expert = FeedForward(
                hidden, width, component.gated, component.activation, bias=False, kernels=context.kernels
            )
        if component.shared_expert_gate:
            self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = in_compute_type(x).reshape(-1, x.shape[-1])
        chosen, weights = self.router(rows)
        order = chosen.flatten().argsort(stable=True)
        experts = chosen.flatten()[order]
        counts = torch.zeros(self.component.num_experts, dtype=torch.int32, device=x.device)
        ends = counts.scatter_add_(0, experts, torch.ones_like(experts, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
        source = order // self.component.num_experts_per_tok
        outputs = self.experts(rows[source], ends)
        # Back in the tokens' order, so that the sum over a token's experts is one reduction in a fixed order.
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        outputs = outputs[back].view(*chosen.shape, -1)
        mixed = (outputs * weights.to(outputs.dtype)[..., None]).sum(1)
        if self.component.shared_intermediate_size is not None:
            shared = self.shared_expert(rows)
            if self.component.shared_expert_gate:
                shared = shared * torch.sigmoid(self.shared_expert_gate(rows))
            mixed = mixed + shared
        return mixed.view(x.shape)
