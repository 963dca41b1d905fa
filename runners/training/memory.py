"""Peak memory of a training step, measured by MemTracker on tensors without data.

One step of fused AdamW with its state in place (the ``foreach`` kind needs a temporary as large as the parameters
besides), PyTorch's fused attention, on its CPU operator set. Nothing is allocated, so a model of any size can be
measured on any machine.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from planner.spec import ArchitectureSpec
from runners.models import build
from runners.models.blocked_attention import fused_attention
from runners.models.decoder import next_tokens
from runners.training.recompute import recompute_layers


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """Bytes at the step's peak, by part; ``activations_bytes`` is what is neither state nor gradient."""

    total_bytes: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int


def measure_training_memory(
    spec: ArchitectureSpec,
    batch_size: int,
    sequence_length: int,
    precision: Literal["fp32", "bf16_autocast"],
    *,
    recompute: Literal["none", "full"] = "none",
    chunked_loss: bool = False,
    accumulates: bool = False,
) -> MeasuredMemory:
    """The peak of one optimizer step over (batch_size, sequence_length) tokens; ``accumulates``: onto gradients."""
    with FakeTensorMode(), fused_attention():
        model = build(spec, kernels="eager")
        if recompute == "full":
            recompute_layers(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tokens = torch.zeros(batch_size, sequence_length, dtype=torch.long)
        autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if precision == "bf16_autocast":
            autocast = torch.autocast("cpu", torch.bfloat16)
        for parameter in model.parameters():  # the first step makes the optimizer's state
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not accumulates)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, tokens)
        with tracker:
            with autocast:
                if chunked_loss:
                    loss: torch.Tensor | None = model.loss(tokens, next_tokens(tokens))
                else:
                    output = model(tokens, labels=tokens)  # held, logits and all, as most training loops hold it
                    loss = output.loss
            assert loss is not None
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        snapshot = next(iter(tracker.get_tracker_snapshot("peak").values()))
    parts = {str(kind.value if hasattr(kind, "value") else kind): int(value) for kind, value in snapshot.items()}
    total = parts.pop("Total")
    parameters, gradients, optimizer_state = (parts.get(name, 0) for name in ("Parameter", "Gradient", "Optstate"))
    rest = total - parameters - gradients - optimizer_state
    return MeasuredMemory(total, parameters, gradients, optimizer_state, rest)
