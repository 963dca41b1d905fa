"""Mixture of experts, the twin of :mod:`planner.components.moe`: dropless top-k routing, experts as one product."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import planner.components as components
from runners.models.context import BuildContext, Kernels, in_compute_type
from runners.models.expert_matmul import Groups, expert_matmul, groups_of, multiplied_in_groups, reads_numbers
from runners.models.mlp import FeedForward, activated, gated


class Router(nn.Module):
    """Scores of the experts: weight (num_experts, hidden_size), bias, and the correction that steers the choice."""

    def __init__(self, component: components.MoE, hidden_size: int) -> None:
        super().__init__()
        self.component = component
        self.weight = nn.Parameter(torch.empty(component.num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(component.num_experts)) if component.router_bias else None
        if component.score_correction_bias:
            self.score_correction_bias: Tensor
            correction = torch.zeros(component.num_experts)
            if component.score_correction_is_parameter:
                self.register_parameter("score_correction_bias", nn.Parameter(correction, requires_grad=False))
            else:
                self.register_buffer("score_correction_bias", correction)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen experts and their weights, both (rows, num_experts_per_tok); the logits (rows, num_experts)."""
        component = self.component
        logits = torch.nn.functional.linear(rows, self.weight, self.bias)
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
        return chosen, weights * component.routed_scaling_factor, wide

    def _in_chosen_groups(self, steering: Tensor) -> Tensor:
        """Rule out the experts of groups that are not chosen; a group's score is that of its best one or two."""
        component = self.component
        grouped = steering.view(steering.shape[0], component.num_expert_groups, -1)
        counted = 1 if component.group_score == "max" else min(2, grouped.shape[-1])
        best = grouped.topk(counted, -1).values.sum(-1)
        groups = best.topk(component.groups_per_tok, -1).indices
        allowed = torch.zeros_like(best, dtype=torch.bool).scatter(1, groups, True)
        return grouped.masked_fill(~allowed[..., None], float("-inf")).flatten(1)


@dataclass(frozen=True, slots=True)
class Routing:
    """What a router decided in one forward pass; its gradients reach the router."""

    component: components.MoE
    logits: Tensor
    """(rows, num_experts) of fp32 or fp64: one row a token."""
    chosen: Tensor
    """(rows, num_experts_per_tok) of int64."""

    @property
    def probabilities(self) -> Tensor:
        """(rows, num_experts): softmax of the logits, or sigmoids made to sum to one (DeepSeek-V3, arXiv:2412.19437,
        equation 19)."""
        if self.component.router_scores == "softmax":
            return self.logits.softmax(-1)
        scores = self.logits.sigmoid()
        return scores / (scores.sum(-1, keepdim=True) + 1e-20)

    @property
    def load(self) -> Tensor:
        """(num_experts,): the share of the tokens that went to each expert; they sum to ``num_experts_per_tok``."""
        counts = torch.bincount(self.chosen.flatten(), minlength=self.component.num_experts)
        return counts.to(self.logits.dtype) / len(self.chosen)


@contextlib.contextmanager
def recorded_routing(model: nn.Module) -> Iterator[dict[str, Routing]]:
    """What the routers of a model decide in its latest forward pass within, by the name of their MoE.

    The names are those of ``model.named_modules()``, such as ``layers.3.channel_mixer``, in the order of the layers.
    """
    found: dict[str, Routing] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, MoE):

            def keep(router: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor], name: str = name) -> None:
                found[name] = Routing(router.component, output[2], output[0])

            handles.append(module.router.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def load_balancing_loss(routing: Routing) -> Tensor:
    """``E sum_e f_e P_e`` with the load f and the mean probability P of each of E experts (Switch, arXiv:2101.03961,
    equations 4 to 6), for any number of experts a token: that number is its value at even load."""
    return routing.component.num_experts * (routing.load * routing.probabilities.mean(0)).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """Mean square of the log-sum-exp of a token's logits (ST-MoE, arXiv:2202.08906, equation 5)."""
    return routing.logits.logsumexp(-1).square().mean()


class Experts(nn.Module):
    """The matrices of all experts, stacked: (num_experts, outputs, inputs); their biases (num_experts, outputs)."""

    def __init__(self, component: components.MoE, inputs: int, kernels: Kernels) -> None:
        super().__init__()
        self.component = component
        self.kernels = kernels
        width, count = component.intermediate_size, component.num_experts
        name, outputs = ("gate_up_proj", 2 * width) if component.gated else ("up_proj", width)
        self.register_parameter(name, nn.Parameter(torch.empty(count, outputs, inputs)))
        self.down_proj = nn.Parameter(torch.empty(count, inputs, width))
        if component.expert_bias:
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(count, outputs)))
            self.down_proj_bias = nn.Parameter(torch.zeros(count, inputs))
        self.widening = name

    def reset_special(self) -> None:
        """Biases start at zero, though they are matrices by their shape."""
        if self.component.expert_bias:
            with torch.no_grad():
                self.get_parameter(f"{self.widening}_bias").zero_()
                self.down_proj_bias.zero_()

    def _project(self, name: str, rows: Tensor, experts: Tensor, ends: Tensor | Groups) -> Tensor:
        weights = self.get_parameter(name).transpose(1, 2)
        if isinstance(ends, Tensor):
            projected = expert_matmul(rows, weights, ends)
        else:
            projected = multiplied_in_groups(rows, weights, ends)
        if not self.component.expert_bias:
            return projected
        return projected + self.get_parameter(f"{name}_bias")[experts].to(projected.dtype)

    def forward(self, rows: Tensor, experts: Tensor, ends: Tensor | Groups) -> Tensor:
        """Rows (rows, inputs) each through its own of ``experts`` (rows,), in the order that ``ends`` tells."""
        widened = self._project(self.widening, rows, experts, ends)
        if self.component.gated:
            gate, up = widened.chunk(2, -1)
            mixed = gated(gate, up, self.component.activation, self.kernels)
        else:
            mixed = activated(widened, self.component.activation, self.kernels)
        return self._project("down_proj", mixed, experts, ends)


class _Dispatched(torch.autograd.Function):
    """Each row ``copies`` times, in an order whose inverse is known: so the gradient is a gather and a sum, which are
    parallel and always add in the same order, where PyTorch would add row after row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return rows[order // copies]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return gradients[0][back].unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


class _Permuted(torch.autograd.Function):
    """Rows in an order whose inverse is known; the gradient is the same the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return gradients[0][back], None, None


class MoE(nn.Module):
    """Routed experts and an optional shared one over x (batch, positions, hidden_size)."""

    def __init__(self, component: components.MoE, context: BuildContext) -> None:
        super().__init__()
        self.component = component
        self.kernels = context.kernels
        hidden, latent = context.hidden_size, component.latent_size
        self.router = Router(component, hidden)
        self.latent_in = nn.Linear(hidden, latent, component.latent_bias) if latent is not None else None
        self.experts = Experts(component, hidden if latent is None else latent, context.kernels)
        self.latent_out = nn.Linear(latent, hidden, component.latent_bias) if latent is not None else None
        if component.shared_intermediate_size is not None:
            self.shared_expert = FeedForward(
                hidden,
                component.shared_intermediate_size,
                component.gated,
                component.activation,
                bias=component.shared_expert_bias,
                kernels=context.kernels,
            )
        if component.shared_expert_gate:
            self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = in_compute_type(x).reshape(-1, x.shape[-1])
        chosen, weights = self.router(rows)[:2]  # the logits are kept no longer than they are needed
        inputs = rows if self.latent_in is None else self.latent_in(rows)
        mixed = self._routed(inputs, chosen, weights.to(inputs.dtype))
        if self.latent_out is not None:
            mixed = self.latent_out(mixed)
        if self.component.shared_intermediate_size is not None:
            shared = self.shared_expert(rows)
            if self.component.shared_expert_gate:
                shared = shared * torch.sigmoid(self.shared_expert_gate(rows))
            factor = self.component.shared_scaling_factor
            mixed = mixed + (shared if factor == 1 else shared * factor)
        return mixed.view(x.shape)

    def _routed(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What the experts make of rows (rows, inputs); ``chosen`` and ``weights`` (rows, num_experts_per_tok)."""
        if self.kernels != "reference" and reads_numbers(rows):
            return self._in_groups(rows, chosen, weights)
        order = chosen.flatten().argsort(stable=True)
        experts = chosen.flatten()[order]
        counts = torch.zeros(self.component.num_experts, dtype=torch.int32, device=rows.device)
        ends = counts.scatter_add_(0, experts, torch.ones_like(experts, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
        # Back in the tokens' order, so that the sum over a token's experts is one reduction in a fixed order.
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        sorted_rows: Tensor = _Dispatched.apply(rows, order, back, self.component.num_experts_per_tok)
        if self.component.weights_on_input:
            sorted_rows = sorted_rows * weights.flatten()[order][:, None]
        outputs = self.experts(sorted_rows, experts, ends)
        outputs = _Permuted.apply(outputs, back, order).view(*chosen.shape, -1)
        return (outputs if self.component.weights_on_input else outputs * weights[..., None]).sum(1)

    def _in_groups(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What :meth:`_routed` gives, where the choice may be read: a single token's experts need no order."""
        copies, is_single = self.component.num_experts_per_tok, rows.shape[0] == 1
        if is_single:
            experts, spread = chosen[0], rows.expand(copies, -1)
            groups = [(expert, place, place + 1) for place, expert in enumerate(experts.tolist())]
        else:
            experts, order = chosen.flatten().sort(stable=True)
            spread, weights = rows[order // copies], weights.flatten()[order]
            groups = groups_of(experts)
        factors = weights.view(-1, 1)
        if self.component.weights_on_input:
            spread = spread * factors
        outputs = self.experts(spread, experts, groups)
        if not self.component.weights_on_input:
            outputs = outputs * factors
        if is_single:
            return outputs.sum(0, keepdim=True)
        in_order = torch.empty_like(outputs)
        in_order[order] = outputs
        return in_order.view(*chosen.shape, -1).sum(1)
