"""Feed-forward channel mixers: plain (two projections) and gated (three; Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from planner.components.base import Component, Operation, SavedTensor, Tensor, linear, projection
from planner.quantities import Quantity

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]


def saved_inside(activation: Activation, gated: bool, rows: Quantity, width: Quantity) -> Iterator[SavedTensor]:
    """What is kept between the projections of ``rows`` rows through ``width`` channels."""
    if gated:
        yield SavedTensor("gate and up projections", rows * 2 * width)
    elif activation != "relu":  # whose derivative is read from its result
        yield SavedTensor("up projection", rows * width)
    yield SavedTensor("activated", rows * width)


class MLP(Component):
    """``down(activation(gate(x)) * up(x))``, or ``down(activation(up(x)))`` without a gate."""

    component: ClassVar[str] = "mlp"
    symbols: ClassVar[dict[str, str]] = {"intermediate_size": "f"}

    kind: Literal["mlp"] = "mlp"
    intermediate_size: int = Field(gt=0)
    gated: bool = True
    activation: Activation = "silu"
    bias: bool = False

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        if self.gated:
            yield from linear("gate_proj", self.component, self.intermediate_size, hidden_size, self.bias)
        yield from linear("up_proj", self.component, self.intermediate_size, hidden_size, self.bias)
        yield from linear("down_proj", self.component, hidden_size, self.intermediate_size, self.bias)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        if self.gated:
            yield projection("gate projection", self.component, tokens, hidden_size, self.intermediate_size)
        yield projection("up projection", self.component, tokens, hidden_size, self.intermediate_size)
        yield projection("down projection", self.component, tokens, self.intermediate_size, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size)
        yield from saved_inside(self.activation, self.gated, tokens, self.intermediate_size)
