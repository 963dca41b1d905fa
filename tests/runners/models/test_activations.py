"""What autograd keeps, tensor storage by tensor storage, against the planner's list: equal to the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn

from planner import ArchitectureSpec
from planner.activations import ACTIVATION_TYPES, saved_bytes, saved_model_activations
from runners.models import build
from tests.runners.models.specs import specs

BATCH, LENGTH = 2, 24


def kept_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes of all storages that autograd keeps during ``run``, but for the parameters'."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in own:
            kept.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast", "bf16"])
@given(spec=specs())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_planner_lists_what_autograd_keeps(precision: str, spec: ArchitectureSpec) -> None:
    # PyTorch's LayerNorm keeps its statistics in fp32, as the planner counts them, on a GPU, but in bf16 on a CPU where
    # neither its input nor its weight is wider: without a weight it may be the output of a mixer under autocast.
    in_float32 = precision == "fp32" or (precision == "bf16_autocast" and spec.norm.has_weight)
    assume(in_float32 or spec.norm.kind == "rms_norm")
    model = build(spec, kernels="eager", dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    tokens = torch.randint(0, spec.vocab_size, (BATCH, LENGTH))

    def run() -> Tensor:
        loss = model(tokens, labels=tokens).loss
        assert loss is not None
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16_autocast"):
        kept = kept_bytes(model, run)
    types = ACTIVATION_TYPES[precision]
    listed = saved_model_activations(spec, LENGTH, BATCH)
    assert kept == sum(times * saved_bytes(saved, types) for _, times, saved in listed)
