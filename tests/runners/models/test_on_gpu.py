"""Known designs on a GPU: the same logits as on the CPU, and a training step in bf16."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from planner.presets import preset, preset_ids
from planner.prototype import scale_down
from runners.models import build
from runners.models.decoder import next_tokens

LENGTH = 65
WITH_KERNELS = (
    "llama-3-8b",
    "gemma-2-9b",
    "gemma-3-4b",
    "gpt-oss-20b",
    "mixtral-8x7b",
    "mamba2-2.7b",
    "deepseek-v2-lite",
)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name, kernels",
    [*((name, "eager") for name in preset_ids()), *((name, "auto") for name in WITH_KERNELS)],
)
def test_a_design_is_the_same_on_a_gpu_and_trains_in_bf16(name: str, kernels: Any) -> None:
    spec = scale_down(preset(name).spec, 2_000_000, sequence_length=LENGTH).spec
    torch.manual_seed(0)
    there = build(spec, device="cpu", kernels="eager")
    here = build(spec, device="cuda", kernels=kernels)
    here.load_state_dict(there.state_dict())
    tokens = torch.randint(0, spec.vocab_size, (2, LENGTH))
    with torch.no_grad():
        expected = there(tokens).logits
        found = here(tokens.cuda()).logits.cpu()
    has_experts = any(layer.channel_mixer and layer.channel_mixer.kind == "moe" for _, layer in spec.iterate_layers())
    # fp32 products add up in another order; a router's choice between experts that are all but level may turn.
    differ = (found - expected).abs().amax(-1) > 2e-3 * expected.abs().max()
    assert differ.float().mean() <= (0.05 if has_experts else 0)
    with torch.autocast("cuda", torch.bfloat16):
        loss = here.loss(tokens.cuda(), next_tokens(tokens.cuda()))
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        plain = there.loss(tokens, next_tokens(tokens))
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)
    gradients = [parameter.grad for parameter in here.parameters() if parameter.grad is not None]
    assert all(math.isfinite(gradient.float().norm().item()) for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
