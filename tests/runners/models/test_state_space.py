"""Mamba-1 and Mamba-2 blocks against their recurrences in float64, position by position, with every option."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import planner.components as components
from runners.models.context import BuildContext
from runners.models.mamba1 import Mamba1
from runners.models.mamba2 import Mamba2
from runners.models.mlp import activate
from tests.runners.models.specs import HIDDEN, mamba1s, mamba2s

DRAWN = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
CONTEXT = BuildContext(HIDDEN, components.RMSNorm(epsilon=0.02), None, "eager")


def filled(module: torch.nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """The module in float64 with every parameter drawn, and its parameters by name."""
    module = module.double()
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.5)
    return module, dict(module.named_parameters())


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def normed(x: Tensor, weight: Tensor | float, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight


def convolved(named: dict[str, Tensor], x: Tensor, activation: Any) -> Tensor:
    """x (positions, channels) through the causal filter, one position and tap after the other."""
    weight = named["conv1d.weight"][:, 0]
    outputs = []
    for position in range(x.shape[0]):
        mixed = named.get("conv1d.bias", torch.zeros(x.shape[1]).double())
        for tap in range(weight.shape[1]):
            source = position - weight.shape[1] + 1 + tap
            if source >= 0:
                mixed = mixed + weight[:, tap] * x[source]
        outputs.append(activate(mixed, activation))
    return torch.stack(outputs)


def projected(named: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ named[f"{name}.weight"].T + named.get(f"{name}.bias", 0.0)


@given(mamba1s())
@DRAWN
@torch.no_grad()
def test_mamba1_is_its_recurrence(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block, named = filled(Mamba1(components.Mamba1(**fields), CONTEXT))
    x = torch.randn(9, HIDDEN, dtype=torch.float64)
    rank, size = fields["time_step_rank"], fields["state_size"]

    inputs, gate = projected(named, "in_proj", x).chunk(2, -1)
    inputs = convolved(named, inputs, fields["activation"])
    dt, B, C = (inputs @ named["x_proj.weight"].T).split((rank, size, size), -1)
    if fields["parameter_norms"]:
        epsilon = fields["parameter_norm_epsilon"] or 0.02
        weights = [named.get(f"{part}_norm.weight", 1.0) for part in ("dt", "b", "c")]
        assert all(isinstance(w, Tensor) == fields["parameter_norm_weights"] for w in weights)
        dt, B, C = (normed(part, weight, epsilon) for part, weight in zip((dt, B, C), weights, strict=True))
    steps = softplus(projected(named, "dt_proj", dt))
    state, outputs = torch.zeros(fields["intermediate_size"], size, dtype=torch.float64), []
    for t in range(9):
        decay = torch.exp(-steps[t][:, None] * named["A_log"].exp())
        state = decay * state + (steps[t] * inputs[t])[:, None] * B[t]
        outputs.append((state @ C[t] + named["D"] * inputs[t]) * silu(gate[t]))
    torch.testing.assert_close(block(x[None])[0], projected(named, "out_proj", torch.stack(outputs)))


@given(mamba2s())
@DRAWN
@torch.no_grad()
def test_mamba2_is_its_recurrence(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block, named = filled(Mamba2(components.Mamba2(**fields), CONTEXT))
    x = torch.randn(9, HIDDEN, dtype=torch.float64)
    heads, width, size, groups = (fields[name] for name in ("num_heads", "head_dim", "state_size", "n_groups"))
    inner, shared = heads * width, groups * size

    rows = projected(named, "in_proj", x)
    if fields["projection_multipliers"]:
        parts = rows.split((inner, inner, shared, shared, heads), -1)
        factors = fields["projection_multipliers"]
        rows = torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)], -1)
    gate, mixed, dt = rows.split((inner, inner + 2 * shared, heads), -1)
    inputs, B, C = convolved(named, mixed, fields["activation"]).split((inner, shared, shared), -1)
    steps = softplus(dt + named["dt_bias"])
    if fields["shortest_time_step"]:
        steps = torch.where(steps < fields["shortest_time_step"], fields["shortest_time_step"], steps)
    if fields["longest_time_step"]:
        steps = torch.where(steps > fields["longest_time_step"], fields["longest_time_step"], steps)
    states, outputs = [torch.zeros(width, size, dtype=torch.float64) for _ in range(heads)], []
    for t in range(9):
        made = []
        for head in range(heads):
            group = head // (heads // groups)
            own = inputs[t, head * width : (head + 1) * width]
            read, write = C[t, group * size : (group + 1) * size], B[t, group * size : (group + 1) * size]
            decay = torch.exp(-steps[t, head] * named["A_log"][head].exp())
            states[head] = decay * states[head] + steps[t, head] * torch.outer(own, write)
            made.append(states[head] @ read + named["D"][head] * own)
        outputs.append(torch.cat(made))
    y = torch.stack(outputs)
    if fields["norm"]:
        parts, epsilon = fields["norm_groups"] or groups, fields["norm_epsilon"] or 0.02

        def norm(rows: Tensor) -> Tensor:
            scaled = [normed(part, 1.0, epsilon) for part in rows.chunk(parts, -1)]
            return torch.cat(scaled, -1) * named["norm.weight"]

        y = norm(y) * silu(gate) if fields["norm_before_gate"] else norm(y * silu(gate))
    else:
        y = y * silu(gate)
    torch.testing.assert_close(block(x[None])[0], projected(named, "out_proj", y))
