"""Gradients of the loss of ours and of transformers with the same weights: what is learnt is the same."""

from __future__ import annotations

import pytest
import torch

from runners.models import load_huggingface
from tests.runners.models.test_huggingface import CONFIGS, transformers_model

LENGTH = 70
"""More than one chunk of every scan: transformers' delta rule takes 64 positions at a time."""
RELATIVE = 1e-3
"""Rounding in float32: most families differ by 1e-6, those with the gated delta rule by 2e-4, as both of us do there
from ours in float64."""
ZERO = 1e-6
"""Share of the whole gradient's norm below which a tensor's is rounding: a bias of keys moves no softmax at all."""


@pytest.mark.parametrize("model_type", CONFIGS)
def test_gradients_are_those_of_transformers(model_type: str) -> None:
    theirs = transformers_model(model_type, initializer_range=0.1)  # at 0.3 the delta rule magnifies rounding by 10
    config = theirs.config.to_dict()
    ours = load_huggingface(theirs.state_dict(), config)
    tokens = torch.randint(0, 96, (2, LENGTH))  # with the token that pads, whose row of the embedding learns nothing
    loss = theirs(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    found = ours(tokens, labels=tokens).loss
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    # Their gradients in a model of ours: the layout map moves elements, and changes none.
    gradients = dict(theirs.state_dict())
    for name, parameter in theirs.named_parameters(remove_duplicate=False):
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    expected = dict(load_huggingface(gradients, config).named_parameters())
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = (gradient - expected[name]).norm()
        assert difference <= RELATIVE * expected[name].norm() + ZERO * whole, name
